"""Packed splits, read from memory-mapped files, and the randomness that belongs to a step.

Every random number comes from a CPU generator seeded with a hash of (seed, epoch, step, purpose): restarts and workers
change nothing. Where images wait for a GPU is the matter of feed.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sandglass.errors import Exit, Problem
from sandglass.runs import read_json
from sandglass.views.places import Places


@dataclass(frozen=True)
class Clock:
    """Where training is, before the step at hand."""

    step: int = 0  # optimiser steps done
    steps: int = 1  # of the whole run
    steps_per_epoch: int = 1

    @property
    def progress(self) -> float:
        """In [0, 1)."""
        return self.step / self.steps

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.step // self.steps_per_epoch


@dataclass(frozen=True)
class Batch:
    """What a loss sees beside the features."""

    views: list[Tensor]  # each (B,3,S,S) float32 in [0,1]
    labels: Tensor  # (B,) int64, -1 where there is none
    index: Tensor  # (B,) rows of the split
    generator: torch.Generator  # CPU; all randomness of losses comes from it
    rank: int = 0  # of the parts in which processes (or one after the other) compute a batch, this is the rank-th
    processes: int = 1
    clock: Clock = Clock()
    places: list[Places] = field(default_factory=list)  # of each view: where in the image its pixels come from

    def drawn(self, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        """These images' rows of `draw(images, generator)`, drawn for the whole batch: sharing it changes no draw."""
        return draw(len(self.index) * self.processes, self.generator).chunk(self.processes)[self.rank]

    def now(self, value: Callable[[float], float]) -> float | Tensor:
        """`value` at this step's progress in [0, 1); a tensor where steps are recorded (engine/graph.py)."""
        return value(self.clock.progress)


class Split:
    """One packed split, memory-mapped: `labels` int64 (N,), -1 for none; `info`, the sidecar of its data set."""

    def __init__(self, folder: Path, names: list[str], info: dict[str, Any]) -> None:
        self.info = info
        self._parts = [_Part(folder, name) for name in names]
        self._starts = np.cumsum([0, *(len(part.sizes) for part in self._parts)])
        self.sizes = np.concatenate([part.sizes for part in self._parts])  # (N,2): h, w
        self.labels = np.concatenate([part.labels for part in self._parts])
        self.images_uniform = len(self.sizes) > 0 and bool((self.sizes == self.sizes[0]).all())

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray | Tensor, canvas: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor]:
        """Images uint8 (B,3,H,W), each in the top left of a canvas, as large as the largest of them if not given; true
        sizes int64 (B,2)."""
        rows = torch.as_tensor(index, dtype=torch.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a split of {len(self)}")
        sizes = torch.from_numpy(self.sizes).index_select(0, rows)
        if len(self._parts) == 1 and self._parts[0].uniform and len(rows):
            return self._parts[0].images.index_select(0, rows), sizes
        canvas = canvas or (tuple(sizes.amax(0).tolist()) if len(rows) else (0, 0))
        images = torch.zeros(len(rows), 3, *canvas, dtype=torch.uint8)
        for part, start in zip(self._parts, self._starts):
            here = ((rows >= start) & (rows < start + len(part.sizes))).nonzero().squeeze(1)
            if len(here):
                part.put(rows[here] - start, images, here)
        return images, sizes


class _Part:
    """The files of one split."""

    def __init__(self, folder: Path, name: str) -> None:
        try:
            mapped = np.load(
                folder / f"{name}.npy", mmap_mode="c", allow_pickle=False
            )  # torch asks for writable memory
            self.images = torch.from_numpy(mapped)
            self.uniform = mapped.ndim == 4
            self.labels = np.load(folder / f"{name}_labels.npy", allow_pickle=False)
            self.sizes = np.load(folder / f"{name}_sizes.npy", allow_pickle=False)
            self.ends = np.cumsum(3 * self.sizes.prod(axis=1))
            fits = len(self.labels) == len(self.sizes) and mapped.size == (self.ends[-1] if len(self.ends) else 0)
        except (ValueError, EOFError, FileNotFoundError) as error:
            raise _damaged(folder, str(error)) from None
        if not fits:
            raise _damaged(folder, f"the files of {name} do not belong together")

    def put(self, rows: Tensor, canvas: Tensor, places: Tensor) -> None:
        """Copy the images `rows` into canvas[places]."""
        if self.uniform:  # a gather of uint8 images is ten times as fast as reading one by one
            canvas[places, :, : self.images.shape[2], : self.images.shape[3]] = self.images.index_select(0, rows)
            return
        for row, place in zip(rows.tolist(), places.tolist()):
            end, (height, width) = self.ends[row], self.sizes[row]
            image = self.images[end - 3 * height * width : end].view(3, height, width)
            canvas[place, :, :height, :width] = image


def open_split(folder: Path, split: str, *, evaluating: bool = False) -> Split:
    """A split of a packed data set: train, val, test, unlabelled; pretrain: train + unlabelled; trainval: train + val.

    Raises Problem: D-114 (77) test images outside evaluation; D-115 (66) not packed, or no such split; D-116 (65)
    damaged files.
    """
    if split == "test" and not evaluating:
        raise Problem(
            "D-114",
            Exit.REFUSED,
            "test images are read by evaluation only",
            why="what is chosen or trained on them cannot be judged by them",
            fix="use val",
        )
    if not (folder / "info.json").is_file():
        raise Problem("D-115", Exit.MISSING, "the data set is not packed", where=str(folder), fix="sandglass data")
    info = read_json(folder / "info.json")
    names = {"pretrain": ["train", "unlabelled"], "trainval": ["train", "val"]}.get(split, [split])
    present = [name for name in names if info["counts"].get(name)]
    if not present:
        raise Problem(
            "D-115",
            Exit.MISSING,
            f"{info['name']} has no {split} images",
            where=str(folder),
            why=f"it has {', '.join(f'{n:,} {name}' for name, n in info['counts'].items())}",
            fix="data.val_fraction: 0.1" if split == "val" else "",
        )
    return Split(folder, present, info)


def _damaged(folder: Path, why: str) -> Problem:
    fix = "remove the folder and pack again"
    return Problem("D-116", Exit.CONTENT, "the packed data is damaged", where=str(folder), why=why, fix=fix)


def step_generator(seed: int, epoch: int, step: int, purpose: str) -> torch.Generator:
    """The CPU generator of one step for one purpose, the same wherever and whenever it is made."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{step}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order of n images in an epoch: a permutation, int64 (n,)."""
    return torch.randperm(n, generator=step_generator(seed, epoch, 0, "order"))
