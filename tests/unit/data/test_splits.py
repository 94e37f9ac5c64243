"""Index arrays: counts against published ones, nesting, and the same images for ever."""

import hashlib

import numpy as np
import pytest

from sandglass.data.splits import _hash, label_fraction, stratified_cut
from sandglass.errors import Exit, Problem

IMAGENETTE = [963, 955, 993, 858, 941, 956, 961, 931, 951, 960]  # training images per class, version 2


def shuffled(counts: list[int]) -> np.ndarray:
    labels = np.repeat(np.arange(len(counts)), counts)
    return labels[np.random.default_rng(0).permutation(len(labels))]


@pytest.mark.parametrize(("fraction", "total"), [(0.01, 97), (0.1, 947), (1.0, 9469)])
def test_imagenette_fractions_have_the_known_sizes(fraction: float, total: int) -> None:
    assert len(label_fraction(shuffled(IMAGENETTE), fraction, seed=3)) == total


def test_imagewoof_at_one_percent_has_the_known_size() -> None:
    """9,025 images: 804 foxhounds less 224 for validation, two classes of 1,350 less 401, seven of 921 to 943."""
    counts = [580, 949, 949, 921, 943, 936, 936, 937, 937, 937]
    labels = shuffled(counts)
    one, ten, all_ = (label_fraction(labels, f, seed=1) for f in (0.01, 0.1, 1.0))
    assert len(one) == 87 and len(all_) == sum(counts) == 9025
    assert np.bincount(labels[one]).tolist() == [6] + 9 * [9]
    assert np.bincount(labels[ten]).tolist() == [round(0.1 * n) for n in counts]
    assert set(one) < set(ten) < set(all_)


def test_each_class_gives_its_share_and_at_least_one() -> None:
    labels = shuffled([200, 30, 1])
    chosen = label_fraction(labels, 0.1, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [20, 3, 1]


def test_fractions_are_nested_for_one_seed_and_differ_between_seeds() -> None:
    labels = shuffled(IMAGENETTE)
    one, ten, all_ = (set(label_fraction(labels, f, seed=5).tolist()) for f in (0.01, 0.1, 1.0))
    assert one < ten < all_ == set(range(len(labels)))
    assert one != set(label_fraction(labels, 0.01, seed=6).tolist())


def test_rows_without_a_label_are_never_given() -> None:
    labels = np.array([-1, 0, 1, -1, 0, 1])
    assert label_fraction(labels, 1.0, seed=0).tolist() == [1, 2, 4, 5]


def test_the_cut_is_stratified_disjoint_and_ascending() -> None:
    labels = shuffled([50, 100, 7])
    stay, cut = stratified_cut(labels, 0.1, seed=0)
    assert np.bincount(labels[cut]).tolist() == [5, 10, 1]
    assert sorted([*stay, *cut]) == list(range(157))
    assert (np.diff(cut) > 0).all() and (np.diff(stay) > 0).all()


def test_a_cut_of_nothing_takes_nothing_and_a_cut_of_nearly_all_leaves_one() -> None:
    labels = np.repeat([0, 1], 5)
    assert len(stratified_cut(labels, 0.0, seed=0)[1]) == 0
    assert np.bincount(labels[stratified_cut(labels, 0.99, seed=0)[0]]).tolist() == [1, 1]


def test_classes_of_one_image_cannot_be_cut() -> None:
    with pytest.raises(Problem) as caught:
        stratified_cut(np.arange(1000), 0.1, seed=0)
    assert caught.value.exit == Exit.CONTENT and "1,000 of 1,000" in caught.value.what


def test_the_hash_is_splitmix64() -> None:
    """The published stream of SplitMix64 from state 1234567, found by starting where the seed's hash would."""
    start = int.from_bytes(hashlib.sha256(b"p/0").digest()[:8], "little")
    state, expected = start, []
    for _ in range(4):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        expected.append(z ^ (z >> 31))
    assert _hash(4, 0, "p").tolist() == expected


def test_the_chosen_images_never_change() -> None:
    """A change here would silently move every study's validation images."""
    labels = np.repeat(np.arange(10), 100)
    assert stratified_cut(labels, 0.01, seed=0)[1].tolist() == [17, 158, 279, 343, 485, 589, 651, 703, 820, 999]
    assert label_fraction(labels, 0.01, seed=0).tolist() == [51, 141, 232, 302, 415, 512, 632, 749, 875, 901]
