"""In training an image gets the same views, to the bit, whatever the batch size, the order, the part of the split that
is learned from, and wherever the run was stopped and went on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sandglass.backbones.grid import Encoder, Features, build
from sandglass.config import Engine, Optimisation, resolve
from sandglass.data import catalog, pack
from sandglass.data.loader import Batch, open_split
from sandglass.engine import batches
from sandglass.engine.task import Task
from sandglass.engine.train import train
from sandglass.errors import Problem
from sandglass.objectives import OBJECTIVES
from sandglass.objectives.simsiam import SimSiam
from sandglass.views import RECIPES

IMAGES, EPOCHS = 32, 2
Views = dict[tuple[int, int], Tensor]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    pack.pack(catalog.CATALOG["digits"], None, folder, store_size=None, val_fraction=0.1, seed=0, on_bad_image="error")
    return folder


class Watching(SimSiam):
    """Keeps what it is shown: (epoch, row) -> two views."""

    seen: Any

    def features(self, encoder: Encoder, batch: Batch) -> list[Features]:
        for i, row in enumerate(batch.index.tolist()):
            assert (batch.clock.epoch, row) not in self.seen
            self.seen[batch.clock.epoch, row] = torch.stack([view[i] for view in batch.views])
        return super().features(encoder, batch)


def seen_by(
    packed: Path, state: Path, batch_size: int = 8, rows: Tensor | None = None, seed: int = 5, **more: Any
) -> Views:
    torch.manual_seed(0)
    split = open_split(packed, "train")
    encoder = build("toy", 16, 0, split.info["mean"], split.info["std"])
    learned = Watching(encoder, resolve(OBJECTIVES, "simsiam", {"hidden": 16, "out": 8, "bottleneck": 4}), 0)
    learned.seen = {}
    values = Optimisation(epochs=EPOCHS, batch_size=batch_size).model_dump()
    rows = torch.arange(100, 100 + IMAGES) if rows is None else rows
    views = {"baseline": resolve(RECIPES, "baseline", {})}
    try:
        train(Task(encoder, learned, {}, split, rows, views, 16, values, seed), state, Engine(device="cpu", **more))
    except Problem as stopped:
        assert stopped.id == "T-105"
    return learned.seen


def assert_equal(some: Views, others: Views) -> None:
    assert some and some.keys() == others.keys()
    assert all(torch.equal(value, others[key]) for key, value in some.items())


@pytest.fixture(scope="module")
def known(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Views:
    found = seen_by(packed, tmp_path_factory.mktemp("known"))
    assert found.keys() == {(epoch, row) for epoch in range(EPOCHS) for row in range(100, 100 + IMAGES)}
    return found


@pytest.mark.parametrize("batch_size", [4, 16, 32])
def test_in_batches_of_another_size(packed: Path, tmp_path: Path, known: Views, batch_size: int) -> None:
    assert_equal(seen_by(packed, tmp_path, batch_size), known)


def test_in_another_order(packed: Path, tmp_path: Path, known: Views, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "epoch_order", lambda n, seed, epoch: torch.arange(n).flip(0))
    assert_equal(seen_by(packed, tmp_path), known)


def test_stopped_at_every_step(packed: Path, tmp_path: Path, known: Views) -> None:
    found: Views = {}
    for _ in range(EPOCHS * IMAGES // 8):
        now = seen_by(packed, tmp_path, checkpoint_minutes=0, deadline_minutes=1e-9)
        assert len(now) == 8 and not now.keys() & found.keys()
        found |= now
    assert_equal(found, known)


def test_of_a_part_of_the_images(packed: Path, tmp_path: Path, known: Views) -> None:
    rows = torch.arange(101, 100 + IMAGES, 2)
    found = seen_by(packed, tmp_path, rows=rows)
    assert_equal(found, {key: value for key, value in known.items() if key[1] in rows})


def test_another_seed_and_another_epoch_show_others(packed: Path, tmp_path: Path, known: Views) -> None:
    other = seen_by(packed, tmp_path, seed=6)
    assert not any(torch.equal(other[key], value) for key, value in known.items())
    assert not any(torch.equal(known[0, row], known[1, row]) for _, row in known)
