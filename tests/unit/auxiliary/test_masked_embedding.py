"""Masked embedding against its formula, its masks counted, its gradients taken apart, and its watch on collapse."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sandglass.auxiliary import AUXILIARY
from sandglass.auxiliary.masked_embedding import MaskedEmbedding
from sandglass.backbones.grid import Encoder, build
from sandglass.config import resolve
from sandglass.data.loader import Batch, step_generator
from sandglass.engine.optim import parameter_groups
from sandglass.errors import Problem
from sandglass.objectives._parts import effective_rank


def task(channels: int = 12, grid_shape: tuple[int, int] = (4, 4), **overrides: Any) -> MaskedEmbedding:
    torch.manual_seed(0)
    encoder = SimpleNamespace(width=channels, grid_shape=grid_shape)  # all that the task wants to know of it
    return MaskedEmbedding(encoder, resolve(AUXILIARY, "masked_embedding", {"depth": 1} | overrides))


def batch_of(images: int, seed: int = 0) -> Batch:
    rows = torch.arange(images)
    return Batch([], torch.zeros(images, dtype=torch.int64), rows, step_generator(seed, 0, 0, "loss"))


def rebuilt(me: MaskedEmbedding, grid: Tensor, masked: Tensor) -> Tensor:
    """E_hat, cell by cell: (B,hw,C)."""
    cells = [
        [me.mask_token if hidden else grid[b, :, i // grid.shape[3], i % grid.shape[3]] for i, hidden in enumerate(row)]
        for b, row in enumerate(masked.tolist())
    ]
    return me.blocks(torch.stack([torch.stack(row) for row in cells]) + me.positions)


@pytest.mark.parametrize("ratio, masked", [(0.65, 42), (0.70, 45), (0.75, 48), (0.80, 52), (0.85, 55), (0.90, 58)])
def test_masked_cells_of_64(ratio: float, masked: int) -> None:
    me = task(grid_shape=(8, 8), ratio=ratio)
    masks = me.draw(10, step_generator(0, 0, 0, "loss"))
    assert masks.sum(dim=1).tolist() == [masked] * 10
    assert float(me.loss(None, torch.randn(2, 12, 8, 8), batch_of(2))["mask_ratio"]) == pytest.approx(masked / 64)
    assert len({tuple(row.tolist()) for row in masks}) == 10  # each image has its own


def test_a_share_that_rounds_badly_and_one_that_leaves_nothing() -> None:
    assert task(grid_shape=(4, 5), ratio=0.9).masked_cells == 18  # 20 * (1 - 0.9) is 1.99999
    assert task(grid_shape=(1, 2), ratio=0.95).masked_cells == 1


@pytest.mark.parametrize("norm", ["none", "ln"])
def test_loss_equals_the_formula(norm: str) -> None:
    me, grid = task(grid_shape=(2, 5), target_norm=norm, ratio=0.65), torch.randn(3, 12, 2, 5)
    masked = me.draw(3, batch_of(3).generator)
    target = grid.flatten(2).transpose(1, 2)
    if norm == "ln":
        target = (target - target.mean(2, keepdim=True)) / (target.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    squares = (rebuilt(me, grid, masked) - target).square()
    assert me.loss(None, grid, batch_of(3))["loss"].item() == pytest.approx(squares[masked].mean().item(), rel=1e-5)


def test_nominal_divides_by_r_and_masked_by_what_is_masked() -> None:
    """At r = 0.9, 58 of 64 cells are masked: the literal loss is 0.7 % larger."""
    grid = torch.randn(2, 12, 8, 8)
    literal = task(grid_shape=(8, 8), ratio=0.9, divide_by="nominal").loss(None, grid, batch_of(2))["loss"]
    sound = task(grid_shape=(8, 8), ratio=0.9, divide_by="masked").loss(None, grid, batch_of(2))["loss"]
    assert (literal / sound).item() == pytest.approx((58 / 64) / 0.9)


def test_what_is_said_of_visible_cells_does_not_count() -> None:
    me, grid = task(), torch.randn(3, 12, 4, 4)
    before = me.loss(None, grid, batch_of(3))["loss"]
    masked = me.draw(3, batch_of(3).generator)
    me.blocks.register_forward_hook(lambda module, given, said: said + 100 * ~masked[..., None])
    assert torch.equal(me.loss(None, grid, batch_of(3))["loss"], before)


def test_what_is_masked_is_not_seen() -> None:
    """With the target set aside, only the visible cells have a gradient."""
    me, grid = task(target="detached"), torch.randn(3, 12, 4, 4, requires_grad=True)
    me.loss(None, grid, batch_of(3))["loss"].backward()
    assert grid.grad is not None
    reached = grid.grad.flatten(2).abs().sum(1) > 0
    assert torch.equal(reached, ~me.draw(3, batch_of(3).generator))


def test_attached_adds_exactly_the_target_term() -> None:
    grid = torch.randn(3, 12, 4, 4, requires_grad=True)
    slopes = {}
    for target in ("attached", "detached"):
        me = task(target=target, target_norm="none")
        (slopes[target],) = torch.autograd.grad(me.loss(None, grid, batch_of(3))["loss"], grid)
    masked = me.draw(3, batch_of(3).generator)
    error = grid.flatten(2).transpose(1, 2) - rebuilt(me, grid, masked)
    term = 2 * error * masked[..., None] / (masked.sum() * 12)
    difference = (slopes["attached"] - slopes["detached"]).flatten(2).transpose(1, 2)
    torch.testing.assert_close(difference, term, rtol=1e-5, atol=1e-7)


def test_parameters_at_the_thesis_size() -> None:
    me = task(312, (8, 8), depth=4)
    assert sum(p.numel() for p in me.parameters()) == 4_709_016


def test_parameters_with_the_projection_of_mae() -> None:
    assert sum(p.numel() for p in task(312, (8, 8), depth=4, projection=True).parameters()) == 4_807_296


@pytest.mark.parametrize("divide_by", ["masked", "nominal"])
def test_a_ratio_of_0_is_an_autoencoder(divide_by: str) -> None:
    me, grid = task(ratio=0, divide_by=divide_by, target_norm="none"), torch.randn(3, 12, 4, 4, requires_grad=True)
    nothing = torch.zeros(3, 16, dtype=torch.bool)
    assert torch.equal(me.draw(3, batch_of(3).generator), nothing)
    squares = (rebuilt(me, grid, nothing) - grid.flatten(2).transpose(1, 2)).square()
    seen = me.loss(None, grid, batch_of(3))
    assert seen["loss"].item() == pytest.approx(squares.mean().item(), rel=1e-5)
    assert float(seen["mask_ratio"]) == 0
    seen["loss"].backward()
    assert grid.grad is not None and (grid.grad.flatten(2).abs().sum(1) > 0).all()


def test_the_smallest_ratio_above_0_hides_one_cell() -> None:
    assert task(grid_shape=(8, 8), ratio=0.001).masked_cells == 1


@pytest.mark.parametrize("projection", [False, True])
def test_a_frozen_decoder_is_not_trained_and_still_teaches_the_grid(projection: bool) -> None:
    me, grid = task(decoder="frozen", projection=projection), torch.randn(3, 12, 4, 4, requires_grad=True)
    assert parameter_groups([me], 0.1) == []
    me.loss(None, grid, batch_of(3))["loss"].backward()
    assert grid.grad is not None and grid.grad.abs().sum() > 0
    same = task(projection=projection).loss(None, grid, batch_of(3))["loss"]  # it begins as the trained one does
    assert torch.equal(me.loss(None, grid, batch_of(3))["loss"], same)


def follower(**overrides: Any) -> tuple[Encoder, MaskedEmbedding]:
    torch.manual_seed(0)
    encoder = build("toy", 32, 10, [0.5] * 3, [0.25] * 3)
    settings = {"target": "ema", "target_norm": "none", "depth": 1, "heads": 4} | overrides
    return encoder, MaskedEmbedding(encoder, resolve(AUXILIARY, "masked_embedding", settings))


def seen_by(encoder: Encoder, me: MaskedEmbedding, seed: int = 0) -> Tensor:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    batch = Batch([images], torch.zeros(4, dtype=torch.int64), torch.arange(4), step_generator(seed, 0, 0, "loss"))
    return me.loss(encoder, encoder(images).grid, batch)["loss"]


def nudge(encoder: Encoder) -> None:
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))


def test_the_copy_follows_by_the_momentum() -> None:
    encoder, me = follower(momentum=0.75)
    before = [p.detach().double() for p in me.target.parameters()]
    nudge(encoder)
    me.after_step(encoder, 0.5)
    for old, new, own in zip(before, me.target.parameters(), encoder.parameters(), strict=True):
        torch.testing.assert_close(new.double(), 0.75 * old + 0.25 * own.double(), rtol=1e-5, atol=1e-6)


def test_a_copy_without_inertia_is_the_detached_target_and_one_that_never_moves_is_not() -> None:
    losses = {}
    for target, momentum in (("detached", 0.0), ("ema", 0.0), ("ema", 1.0)):
        encoder, me = follower(target=target, momentum=momentum)
        encoder.model.stages[0][1].running_mean.fill_(0.3)  # of a frozen stem: pretrained statistics
        if target == "ema":
            me.target.load_state_dict(encoder.state_dict())
        nudge(encoder)
        me.after_step(encoder, 0.5)
        encoder.train()
        encoder.model.stages[0].eval()
        losses[target, momentum] = seen_by(encoder, me).item()
    assert losses["ema", 0.0] == losses["detached", 0.0]
    assert losses["ema", 1.0] != losses["detached", 0.0]


def test_the_copy_is_not_trained_and_is_there_only_when_asked_for() -> None:
    encoder, me = follower()
    seen_by(encoder, me).backward()
    assert all(p.grad is None for p in me.target.parameters())
    trained = {id(p) for group in parameter_groups([encoder, me], 0.1) for p in group["params"]}
    assert not trained & {id(p) for p in me.target.parameters()}
    assert all(p.grad is not None for p in encoder.model.stages.parameters())
    assert not any(name.startswith("target") for name in follower(target="detached")[1].state_dict())


def test_a_run_that_follows_resumes_to_the_bit() -> None:
    def go_on(encoder: Encoder, me: MaskedEmbedding, search: torch.optim.Optimizer, steps: range) -> list[Tensor]:
        losses = []
        for step in steps:
            losses.append(seen_by(encoder, me, seed=step))
            search.zero_grad()
            losses[-1].backward()
            search.step()
            me.after_step(encoder, (step + 1) / 6)
        return losses

    def fresh() -> tuple[Encoder, MaskedEmbedding, torch.optim.Optimizer]:
        encoder, me = follower(momentum=0.9)
        return encoder, me, torch.optim.Adam([*encoder.parameters(), *me.parameters()], lr=1e-2)

    whole, broken, resumed = fresh(), fresh(), fresh()
    expected = go_on(*whole, range(6))
    go_on(*broken, range(3))
    nudge(resumed[0])  # whatever it began with is overwritten
    for part, state in zip(resumed, broken, strict=True):
        part.load_state_dict(state.state_dict())
    assert all(map(torch.equal, go_on(*resumed, range(3, 6)), expected[3:]))


def test_heads_that_do_not_divide_are_refused_with_those_that_do() -> None:
    with pytest.raises(Problem, match="5 heads do not divide the 12") as caught:
        task(heads=5)
    assert "1, 2, 3, 4, 6, 12" in caught.value.fix


def test_watch_by_hand() -> None:
    """Two images of one row and two cells: (1,2) and (3,6)."""
    me = task(1, (1, 2), heads=1, target_norm="none")
    grid = torch.tensor([[[[1.0, 2.0]]], [[[3.0, 6.0]]]])
    seen = me.loss(None, grid, batch_of(2))
    assert float(seen["rms"]) == pytest.approx((50 / 4) ** 0.5)
    assert float(seen["std_positions"]) == pytest.approx((0.5 + 1.5) / 2)
    assert float(seen["std_batch"]) == pytest.approx((1 + 2) / 2)
    assert float(seen["over_variance"]) == pytest.approx(seen["loss"].item() / 3.5)


def test_effective_rank_equals_its_definition() -> None:
    rows = torch.randn(40, 7, dtype=torch.float64) @ torch.diag(torch.tensor([5, 3, 2, 1, 1, 0.5, 0.1]).double())
    values = np.linalg.svd((rows - rows.mean(0)).numpy(), compute_uv=False)
    share = values / values.sum()
    assert float(effective_rank(rows)) == pytest.approx(float(np.exp(-(share * np.log(share)).sum())))
    assert float(effective_rank(torch.ones(40, 7))) == 1
    assert float(effective_rank(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]))) == pytest.approx(2)


def test_a_constant_grid_rings_every_bell() -> None:
    me, grid = task(), torch.full((4, 12, 4, 4), 0.3)
    seen = me.loss(None, grid, batch_of(4)) | me.monitor(grid)
    assert float(seen["std_positions"]) < 1e-6 and float(seen["std_batch"]) < 1e-6
    assert float(seen["effective_rank"]) == 1
    assert float(seen["rms"]) == pytest.approx(0.3)


def epochs(me: MaskedEmbedding, scales: list[float]) -> list[bool]:
    """Two steps of every epoch at each scale of the same grid, then the question."""
    answers = []
    for scale in scales:
        for seed in (0, 1):
            noise = torch.randn(8, 12, 4, 4, generator=torch.Generator().manual_seed(seed))
            me.loss(None, scale * noise, batch_of(8))
        answers.append(me.collapsed())
    return answers


def test_collapse_is_a_tenth_of_the_first_epoch() -> None:
    assert epochs(task(), [1, 0.5, 0.11, 0.09, 2]) == [False, False, False, True, False]
    assert task().collapsed() is False  # nothing seen yet


def test_a_position_code_without_images_is_collapse() -> None:
    """The scale of the grid stays; what differs between images goes."""
    me, code = task(), torch.randn(1, 12, 4, 4)
    assert epochs(me, [1]) == [False]
    me.loss(None, code + 0.01 * torch.randn(8, 12, 4, 4), batch_of(8))
    assert me.collapsed()


def test_a_resumed_task_answers_as_the_unbroken_one() -> None:
    whole, broken = task(), task()
    for me in (whole, broken):
        epochs(me, [1])
        half = 0.01 * torch.randn(8, 12, 4, 4, generator=torch.Generator().manual_seed(7))
        me.loss(None, half, batch_of(8))  # in mid-epoch
    resumed = task()
    resumed.load_state_dict(broken.state_dict())
    grid = torch.randn(8, 12, 4, 4)
    for _ in range(60):  # past the next measure of the rank
        ours, theirs = resumed.loss(None, 0.01 * grid, batch_of(8)), whole.loss(None, 0.01 * grid, batch_of(8))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert resumed.collapsed() and whole.collapsed()


def test_attached_shrinks_a_free_grid_and_detached_does_not() -> None:
    """What the watch is for: a grid that is itself learned, under nothing but this loss."""
    sizes = {}
    for target in ("attached", "detached"):
        me = task(target=target, target_norm="none")
        grid = torch.randn(4, 12, 4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
        start = grid.detach().square().mean().sqrt()
        search = torch.optim.Adam([grid, *me.parameters()], lr=1e-2)
        for step in range(150):
            search.zero_grad()
            seen = me.loss(None, grid, batch_of(4, seed=step))
            seen["loss"].backward()
            search.step()
        sizes[target] = float(seen["rms"] / start)
    assert sizes["attached"] < 0.9 < sizes["detached"]


def test_layer_norm_target_does_not_see_scale() -> None:
    grid = torch.randn(3, 12, 4, 4)
    me = task(target_norm="ln")
    me.blocks.register_forward_hook(lambda module, given, said: torch.zeros_like(said))
    unit = F.layer_norm(torch.randn(5, 12), (12,)).square().mean()
    for scale in (1.0, 10.0):
        assert me.loss(None, scale * grid, batch_of(3))["loss"].item() == pytest.approx(float(unit), rel=1e-3)
