"""Which images belong to which part: a validation split cut from the training images, and nested label fractions.

Everything is an index array made from (labels, fraction, seed) alone. The order within a class comes from a hash of
counters (SplitMix64, Steele et al. 2014), not from a library's generator: the same seed names the same images for
ever. A class of n images gives round(f n) of its first images, at least one, hence 1 % lies within 10 % within 100 %.
"""

from __future__ import annotations

import hashlib

import numpy as np

from sandglass.errors import Exit, Problem


def stratified_cut(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows that stay, rows cut off), both ascending int64, for labels (N,).

    Every class gives round(fraction n) of its n rows, at least one, and keeps at least one.
    Raises Problem D-117 (65) if a class is too small for that.
    """
    if fraction == 0:
        return np.arange(len(labels)), np.zeros(0, dtype=np.int64)
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        few = classes[counts < 2]
        raise Problem(
            "D-117",
            Exit.CONTENT,
            f"{len(few):,} of {len(classes):,} classes have a single image",
            where=f"class numbers {', '.join(map(str, few[:5]))}",
            why="each class needs 2 images: one to train on and one to hold out",
            fix="add images, give the held-out part as a folder of its own, or data.val_fraction: 0",
        )
    cut = _first_of_each_class(labels, fraction, seed, "cut", leave=1)
    return np.setdiff1d(np.arange(len(labels)), cut), cut


def label_fraction(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """The rows whose labels may be used: ascending int64, max(1, round(fraction n)) of each class; -1 has no label."""
    return _first_of_each_class(labels, fraction, seed, "labels", leave=0)


def _first_of_each_class(labels: np.ndarray, fraction: float, seed: int, purpose: str, leave: int) -> np.ndarray:
    order = np.argsort(_hash(len(labels), seed, purpose), kind="stable")
    chosen = []
    for label in np.unique(labels[labels >= 0]):
        rows = order[labels[order] == label]
        count = min(max(1, round(fraction * len(rows))), len(rows) - leave)
        chosen.append(rows[:count])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)


def _hash(n: int, seed: int, purpose: str) -> np.ndarray:
    """SplitMix64 of the counters 0..n-1 from a start that depends on seed and purpose: uint64 (n,)."""
    start = int.from_bytes(hashlib.sha256(f"{purpose}/{seed}".encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        z = np.uint64(start) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
