"""Reading packed splits: every image where it was asked for, and randomness that depends on nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sandglass.data.loader import epoch_order, open_split, step_generator
from sandglass.errors import Exit, Problem

RANDOM = np.random.default_rng(0)


def write(
    folder: Path, split: str, images: list[np.ndarray], labels: list[int], flat: bool = False
) -> list[np.ndarray]:
    sizes = np.array([image.shape[1:] for image in images], dtype=np.int64).reshape(-1, 2)
    stored = np.concatenate([image.ravel() for image in images]) if flat else np.stack(images)
    for name, array in (("", stored), ("_labels", np.array(labels, dtype=np.int64)), ("_sizes", sizes)):
        np.save(folder / f"{split}{name}.npy", array)
    info = (
        json.loads((folder / "info.json").read_text())
        if (folder / "info.json").exists()
        else {"name": "toy", "counts": {}}
    )
    info["counts"][split] = len(images)
    (folder / "info.json").write_text(json.dumps(info))
    return images


def pictures(*sizes: tuple[int, int]) -> list[np.ndarray]:
    return [RANDOM.integers(1, 256, (3, *size), dtype=np.uint8) for size in sizes]


def test_uniform_images_come_in_the_order_asked_for(tmp_path: Path) -> None:
    images = write(tmp_path, "train", pictures(*[(9, 12)] * 7), list(range(7)))
    split = open_split(tmp_path, "train")
    index = torch.tensor([5, 0, 6, 5])
    taken, sizes = split.take(index)
    assert split.images_uniform and len(split) == 7
    assert taken.dtype == torch.uint8 and sizes.dtype == torch.int64
    assert torch.equal(taken, torch.from_numpy(np.stack(images))[index])
    assert sizes.tolist() == [[9, 12]] * 4


def test_ragged_images_sit_in_the_top_left_of_the_smallest_canvas(tmp_path: Path) -> None:
    images = write(tmp_path, "train", pictures((9, 12), (20, 8), (8, 8), (10, 30)), [0, 1, 0, 1], flat=True)
    split = open_split(tmp_path, "train")
    taken, sizes = split.take(np.array([2, 1, 0]))
    assert not split.images_uniform
    assert taken.shape == (3, 3, 20, 12)  # the widest of the data set is not in the batch
    assert sizes.tolist() == [[8, 8], [20, 8], [9, 12]]
    for row, source in enumerate((2, 1, 0)):
        height, width = images[source].shape[1:]
        assert np.array_equal(taken[row, :, :height, :width], images[source])
        assert taken[row].sum() == images[source].sum()  # nothing but zeros beside it


def test_pretrain_is_train_and_unlabelled_and_never_val(tmp_path: Path) -> None:
    train = write(tmp_path, "train", pictures((8, 8), (8, 8)), [0, 1])
    unlabelled = write(tmp_path, "unlabelled", pictures((8, 10), (12, 8)), [-1, -1], flat=True)
    write(tmp_path, "val", pictures((8, 8)), [0])
    split = open_split(tmp_path, "pretrain")
    assert split.labels.tolist() == [0, 1, -1, -1]
    taken, sizes = split.take(np.array([3, 1, 2]))
    assert sizes.tolist() == [[12, 8], [8, 8], [8, 10]]
    for row, image in enumerate((unlabelled[1], train[1], unlabelled[0])):
        assert np.array_equal(taken[row, :, : image.shape[1], : image.shape[2]], image)


def test_an_empty_index_and_a_wrong_one(tmp_path: Path) -> None:
    write(tmp_path, "train", pictures((8, 8)), [0])
    split = open_split(tmp_path, "train")
    assert split.take(np.zeros(0, dtype=np.int64))[0].shape == (0, 3, 0, 0)
    for wrong in (-1, 1):
        with pytest.raises(IndexError):
            split.take(np.array([wrong]))


def test_test_images_are_refused_outside_evaluation(tmp_path: Path) -> None:
    write(tmp_path, "test", pictures((8, 8)), [0])
    with pytest.raises(Problem) as caught:
        open_split(tmp_path, "test")
    assert caught.value.exit == Exit.REFUSED
    assert len(open_split(tmp_path, "test", evaluating=True)) == 1


def test_absent_and_damaged_data_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="not packed") as caught:
        open_split(tmp_path, "train")
    assert caught.value.exit == Exit.MISSING
    write(tmp_path, "train", pictures((8, 8), (8, 8)), [0, 1])
    with pytest.raises(Problem, match="no val images") as caught:
        open_split(tmp_path, "val")
    assert caught.value.exit == Exit.MISSING
    whole = (tmp_path / "train.npy").read_bytes()
    (tmp_path / "train.npy").write_bytes(whole[:-9])
    with pytest.raises(Problem, match="damaged") as caught:
        open_split(tmp_path, "train")
    assert caught.value.exit == Exit.CONTENT
    np.save(tmp_path / "train.npy", np.zeros((1, 3, 8, 8), dtype=np.uint8))
    with pytest.raises(Problem, match="damaged"):
        open_split(tmp_path, "train")


def test_a_generator_depends_on_all_four_and_on_nothing_else() -> None:
    def draw(*key: int | str) -> int:
        return int(torch.randint(2**62, (), generator=step_generator(*key)))  # type: ignore[arg-type]

    torch.manual_seed(1)
    first = draw(0, 1, 2, "views")
    torch.manual_seed(2)
    torch.rand(10)
    assert draw(0, 1, 2, "views") == first
    others = [
        draw(1, 1, 2, "views"),
        draw(0, 2, 1, "views"),
        draw(0, 1, 3, "views"),
        draw(0, 1, 2, "loss"),
        draw(0, 12, 2, "views"),
    ]
    assert len({first, *others}) == 6


def test_an_epochs_order_is_a_permutation_of_its_own() -> None:
    assert sorted(epoch_order(100, 0, 0).tolist()) == list(range(100))
    assert torch.equal(epoch_order(100, 0, 3), epoch_order(100, 0, 3))
    assert not torch.equal(epoch_order(100, 0, 3), epoch_order(100, 0, 4))
    assert not torch.equal(epoch_order(100, 0, 3), epoch_order(100, 1, 3))
