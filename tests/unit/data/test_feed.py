"""Images on a device, in its memory, brought ahead by a thread or from the mapped files: the same images."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sandglass.data.feed import Feed
from sandglass.data.loader import Split, open_split
from sandglass.runs import write_json

CPU = torch.device("cpu")
ROWS = [torch.tensor(some) for some in ([5, 0, 6], [6, 6, 1], [2], [4, 3])]
WAYS = {"mapped": None, "resident": 1e9, "ahead": 0.0}


def split_of(folder: Path, kind: str) -> tuple[Split, list[np.ndarray]]:
    """Seven images: of one size, of several, or of one size in two files."""
    random, sizes = np.random.default_rng(0), [(9, 12)] * 7
    if kind == "ragged":
        sizes = [(9, 12), (20, 8), (8, 8), (10, 30), (9, 9), (12, 12), (8, 30)]
    images = [random.integers(1, 256, (3, *size), dtype=np.uint8) for size in sizes]
    files = {"train": images[:4], "unlabelled": images[4:]} if kind == "two files" else {"train": images}
    for name, some in files.items():
        stored = np.concatenate([image.ravel() for image in some]) if kind == "ragged" else np.stack(some)
        np.save(folder / f"{name}.npy", stored)
        np.save(folder / f"{name}_sizes.npy", np.array([image.shape[1:] for image in some]))
        np.save(folder / f"{name}_labels.npy", np.zeros(len(some), dtype=np.int64))
    write_json(folder / "info.json", {"name": "toy", "counts": {name: len(some) for name, some in files.items()}})
    return open_split(folder, "pretrain"), images


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["uniform", "ragged", "two files"])
def test_every_way_gives_the_images_asked_for(tmp_path: Path, kind: str, way: str) -> None:
    split, images = split_of(tmp_path, kind)
    feed = Feed(split, CPU, WAYS[way])
    assert (feed.resident is not None) == (way == "resident")
    for rows, batch in zip(ROWS, feed.images(iter(ROWS)), strict=True):
        assert batch.dtype == torch.uint8 and (way == "mapped" or batch.shape[2:] == feed.canvas)
        for row, given in zip(rows.tolist(), batch):
            height, width = images[row].shape[1:]
            assert np.array_equal(given[:, :height, :width], images[row])
            assert int(given.sum()) == images[row].sum()  # nothing but zeros beside it


def test_one_batch_is_read_while_another_is_worked_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split, _ = split_of(tmp_path, "uniform")
    read: list[list[int]] = []
    known, take = threading.Semaphore(0), Split.take

    def noted(self: Split, index: Tensor, canvas: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor]:
        assert threading.current_thread() is not threading.main_thread()
        read.append(index.tolist())
        known.release()
        return take(self, index, canvas)

    monkeypatch.setattr(Split, "take", noted)
    coming = Feed(split, CPU, 0.0).images(iter(ROWS))
    for i in range(len(ROWS)):
        next(coming)
        for _ in range(2 if i == 0 else i < len(ROWS) - 1):
            assert known.acquire(timeout=10)
        assert read == [rows.tolist() for rows in ROWS[: i + 2]]  # it and the next, and no more
    assert next(coming, None) is None


def test_an_error_in_the_thread_reaches_who_asked(tmp_path: Path) -> None:
    split, _ = split_of(tmp_path, "uniform")
    coming = Feed(split, CPU, 0.0).images([torch.tensor([1]), torch.tensor([99])])
    assert next(coming).shape == (1, 3, 9, 12)
    with pytest.raises(IndexError, match="99"):
        next(coming)


def test_who_stops_early_leaves_no_thread(tmp_path: Path) -> None:
    split, _ = split_of(tmp_path, "uniform")
    before = threading.active_count()
    coming = Feed(split, CPU, 0.0).images(ROWS)
    next(coming)
    coming.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
