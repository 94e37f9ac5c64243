"""DRLoc against distances worked by hand, a head that knows the answer, and one that knows nothing."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sandglass.auxiliary import AUXILIARY
from sandglass.auxiliary.drloc import DRLoc
from sandglass.config import resolve
from sandglass.data.loader import Batch, step_generator


def task(channels: int, grid_shape: tuple[int, int], **overrides: Any) -> DRLoc:
    torch.manual_seed(0)
    return DRLoc(SimpleNamespace(width=channels, grid_shape=grid_shape), resolve(AUXILIARY, "drloc", overrides))


def batch_of(images: int, seed: int = 0) -> Batch:
    rows = torch.arange(images)
    return Batch([], torch.zeros(images, dtype=torch.int64), rows, step_generator(seed, 0, 0, "loss"))


def knowing(signed: bool, **overrides: Any) -> tuple[DRLoc, Tensor]:
    """A 3x5 grid whose two channels are each cell's place, and a head that subtracts: max(x,0) +- max(-x,0)."""
    wise = task(2, (3, 5), signed=signed, hidden=4, **overrides)
    first, second, last = wise.head[0], wise.head[2], wise.head[4]
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1, 0, -1, 0], [-1, 0, 1, 0], [0, 1, 0, -1], [0, -1, 0, 1.0]]))
        second.weight.copy_(torch.eye(4))
        back = -1.0 if signed else 1.0
        last.weight.copy_(torch.tensor([[1, back, 0, 0], [0, 0, 1, back]]))
        for layer in (first, second, last):
            layer.bias.zero_()
    down, across = (axis.scale for axis in wise.axes)
    places = torch.stack([(torch.arange(3.0) / down)[:, None].expand(3, 5), (torch.arange(5.0) / across).expand(3, 5)])
    return wise, places[None]


def test_targets_of_a_2x2_grid_by_hand() -> None:
    cells = torch.tensor([[[0, 3], [1, 1], [0, 1], [2, 1]]])  # top left to bottom right; itself; along; along and up
    assert task(2, (2, 2)).apart(cells).tolist() == [[[1, 1], [0, 0], [0, 1], [1, 1]]]
    assert task(2, (2, 2), signed=True).apart(cells).tolist() == [[[-1, -1], [0, 0], [0, -1], [1, -1]]]


def test_a_longer_side_is_measured_by_itself() -> None:
    assert task(2, (3, 5)).apart(torch.tensor([[[0, 14]]])).tolist() == [[[2, 4]]]
    for scale, sides in (("h", [3, 5]), ("h-1", [2, 4]), ("cells", [1, 1])):
        assert [axis.scale for axis in task(2, (3, 5), target_scale=scale).axes] == sides


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_loss_equals_a_loop_over_pairs(reduction: str) -> None:
    drloc, grid = task(6, (3, 5), reduction=reduction, pairs=4), torch.randn(2, 6, 3, 5)
    found = drloc.loss(None, grid, batch_of(2))["loss"]
    expected = 0.0
    for image, pairs in enumerate(drloc.draw(2, batch_of(2).generator).tolist()):
        for one, other in pairs:
            (i, j), (k, m) = divmod(one, 5), divmod(other, 5)
            down, across = drloc.head(torch.cat([grid[image, :, i, j], grid[image, :, k, m]]))
            expected += abs(down.item() - abs(i - k) / 3) + abs(across.item() - abs(j - m) / 5)
    assert found.item() == pytest.approx(expected / 8 / (2 if reduction == "mean" else 1), rel=1e-5)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("scale", ["h", "h-1", "cells"])
def test_a_head_that_knows_the_places_has_no_loss(signed: bool, scale: str) -> None:
    """Exchanged axes, a transposed grid or a wrong order of the pair would all leave one."""
    wise, places = knowing(signed, target_scale=scale)
    assert wise.loss(None, places.expand(4, -1, -1, -1), batch_of(4))["loss"].item() < 1e-6


def test_chance_is_what_the_best_constant_gets() -> None:
    drloc = task(4, (8, 8), pairs=4096, hidden=1)
    assert drloc.chance == pytest.approx(0.390625)
    with torch.no_grad():
        drloc.head[4].weight.zero_()
        drloc.head[4].bias.fill_(0.25)
    got = drloc.loss(None, torch.randn(64, 4, 8, 8), batch_of(64))
    # 262,144 pairs, a standard deviation of about 0.2 per pair: four standard errors are 0.002
    assert got["loss"].item() == pytest.approx(0.390625, abs=2e-3)
    assert float(got["over_chance"]) == pytest.approx(1, abs=5e-3)


def test_pairs_are_uniform_with_coincidences_and_of_each_image() -> None:
    cells = task(4, (8, 8), pairs=1000).draw(50, step_generator(0, 0, 0, "loss"))
    assert cells.shape == (50, 1000, 2)
    counts = cells.flatten().bincount(minlength=64)
    chi2 = float(((counts - 100_000 / 64) ** 2 / (100_000 / 64)).sum())
    assert len(counts) == 64 and chi2 < 124  # 63 degrees of freedom, p = 1e-5
    same = float((cells[..., 0] == cells[..., 1]).float().mean())
    assert same == pytest.approx(1 / 64, abs=4 * (1 / 64 / 50_000) ** 0.5)
    assert not torch.equal(cells[0], cells[1])


def test_shared_pairs_are_the_same_for_every_image() -> None:
    cells = task(4, (8, 8), share_pairs=True).draw(5, step_generator(0, 0, 0, "loss"))
    assert cells.shape == (5, 32, 2)
    assert (cells == cells[:1]).all()


def test_parameters_at_the_thesis_size() -> None:
    assert sum(p.numel() for p in task(312, (8, 8)).parameters()) == 583_682


def test_weight_rises_and_falls() -> None:
    """20 of 300 epochs up, the rest down to nothing, as released with the paper."""
    falling = task(4, (2, 2), weight=0.5, lambda_schedule="warmup_decay")
    at = [falling.weight_at(epoch / 300) for epoch in (0, 10, 20, 160, 300)]
    assert at == pytest.approx([0, 0.25, 0.5, 0.25, 0])
    assert {task(4, (2, 2), weight=0.5).weight_at(p) for p in (0.0, 0.5, 1.0)} == {0.5}
