"""DRLoc against distances worked by hand, a head that knows the answer, and one that knows nothing."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sandglass.auxiliary import AUXILIARY
from sandglass.auxiliary._distances import FORMS
from sandglass.auxiliary.drloc import DRLoc
from sandglass.auxiliary.masked_embedding import MaskedEmbedding
from sandglass.config import resolve
from sandglass.data.loader import Batch, step_generator
from sandglass.engine.optim import parameter_groups


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


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_at_the_thesis_size() -> None:
    assert count(task(312, (8, 8))) == 583_682
    assert count(task(312, (8, 8), form="ce")) == count(task(312, (8, 8), form="cbr")) == 853_520


def test_matched_at_the_thesis_size_is_1870_wide() -> None:
    head = task(312, (8, 8), budget="matched").head
    assert head[0].out_features == 1870
    assert count(head) == 624 * 1870 + 1870 + 1870**2 + 1870 + 2 * 1870 + 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels, grid_shape", [(16, (3, 5)), (32, (4, 4)), (312, (8, 8))])
def test_matched_has_the_parameters_of_the_masked_embedding(form: str, channels: int, grid_shape: Any) -> None:
    encoder = SimpleNamespace(width=channels, grid_shape=grid_shape)
    measure = MaskedEmbedding(encoder, resolve(AUXILIARY, "masked_embedding", {}))
    assert count(task(channels, grid_shape, form=form, budget="matched")) == pytest.approx(count(measure), rel=0.05)


@pytest.mark.parametrize("form", ["ce", "cbr", "circular"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_each_axis_is_asked_about_its_own_side(form: str, reduction: str) -> None:
    """Signed distances of a 3x5 grid: 5 bins down, 9 across, and the loss is that of the two axes by themselves."""
    drloc, grid = task(6, (3, 5), form=form, signed=True, reduction=reduction, pairs=40), torch.randn(2, 6, 3, 5)
    assert drloc.answers == ([2, 2] if form == "circular" else [5, 9])
    cells = drloc.draw(2, batch_of(2).generator)
    tokens = torch.stack([grid[image].flatten(1).T[pairs].flatten(1) for image, pairs in enumerate(cells)])
    down, across = drloc.head(tokens).split(drloc.answers, dim=-1)
    first, second = cells.unbind(-1)
    axes = [FORMS[form](3, 3.0, True), FORMS[form](5, 5.0, True)]
    expected = axes[0].loss(down, first // 5 - second // 5).mean() + axes[1].loss(across, first % 5 - second % 5).mean()
    found = drloc.loss(None, grid, batch_of(2))
    half = 2 if reduction == "mean" else 1
    assert found["loss"].item() == pytest.approx(expected.item() / half, rel=1e-5)
    chance = (axes[0].chance() + axes[1].chance()) / half
    assert float(found["over_chance"]) == pytest.approx(found["loss"].item() / chance)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_teaches_the_grid_and_all_of_its_head(form: str) -> None:
    drloc, grid = task(6, (3, 5), form=form), torch.randn(4, 6, 3, 5, requires_grad=True)
    drloc.loss(None, grid, batch_of(4))["loss"].backward()
    assert grid.grad is not None and grid.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in drloc.parameters())


@pytest.mark.parametrize("scale, unit", [("h", (3, 5)), ("h-1", (2, 4)), ("cells", (1, 1))])
def test_the_error_is_in_cells_at_every_scale(scale: str, unit: tuple[int, int]) -> None:
    """A head that answers half a cell too much down and a quarter too much across."""
    wise, places = knowing(False, target_scale=scale)
    with torch.no_grad():
        wise.head[4].bias.copy_(torch.tensor([0.5 / unit[0], 0.25 / unit[1]]))
    seen = wise.loss(None, places.expand(4, -1, -1, -1), batch_of(4))
    assert float(seen["error_cells"]) == pytest.approx((0.5 + 0.25) / 2, rel=1e-5)


def test_places_alone_solve_the_task_whatever_the_image() -> None:
    """What `sees: positions` is for; and the encoder gets no gradient from it."""
    wise, places = knowing(False, sees="positions")
    with torch.no_grad():
        wise.positions.copy_(places[0].flatten(1).T)
    grid = torch.randn(4, 2, 3, 5, requires_grad=True)
    loss = wise.loss(None, grid, batch_of(4))["loss"]
    assert loss.item() < 1e-6
    wise.loss(None, grid, batch_of(4, seed=1))["loss"].backward()
    assert grid.grad is None and wise.positions.grad is not None
    bare = {id(p) for g in parameter_groups([wise], 0.1) if not g["weight_decay"] for p in g["params"]}
    assert id(wise.positions) in bare


def test_weight_rises_and_falls() -> None:
    """20 of 300 epochs up, the rest down to nothing, as released with the paper."""
    falling = task(4, (2, 2), weight=0.5, lambda_schedule="warmup_decay")
    at = [falling.weight_at(epoch / 300) for epoch in (0, 10, 20, 160, 300)]
    assert at == pytest.approx([0, 0.25, 0.5, 0.25, 0])
    assert {task(4, (2, 2), weight=0.5).weight_at(p) for p in (0.0, 0.5, 1.0)} == {0.5}
