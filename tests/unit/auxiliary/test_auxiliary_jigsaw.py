"""Jigsaw as a task: pieces put down one by one, a head that knows every piece, and tokens without a place."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sandglass.auxiliary import AUXILIARY
from sandglass.auxiliary.jigsaw import Jigsaw, shuffled
from sandglass.backbones.grid import Encoder, Features, build
from sandglass.config import resolve
from sandglass.data.loader import Batch, step_generator
from sandglass.errors import Problem

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
NARROW = {"embed_dim": 24, "depth": 1, "num_heads": 2}


def made(name: str = "toy", arguments: dict[str, Any] | None = None, **overrides: Any) -> tuple[Encoder, Jigsaw]:
    torch.manual_seed(0)
    encoder = build(name, 32, 0, MEAN, STD, arguments or {}).train()
    return encoder, Jigsaw(encoder, resolve(AUXILIARY, "jigsaw", overrides))


def batch_of(view: Tensor, seed: int = 0) -> Batch:
    rows = torch.arange(len(view))
    return Batch([view], torch.zeros_like(rows), rows, step_generator(seed, 0, 0, "loss"))


def order_of(task: Jigsaw, images: int, seed: int = 0) -> Tensor:
    """The origins that a batch with this seed draws: (images, cells)."""
    return torch.rand(images, task.cells, generator=step_generator(seed, 0, 0, "loss")).argsort(1)


class Brightness(nn.Module):
    """An encoder of images of 12 px that says of each of 3 x 3 cells its mean of each colour."""

    width, grid_shape, size = 3, (3, 3), 12

    def forward(self, images: Tensor) -> Features:
        grid = F.avg_pool2d(images, 4)
        return Features(grid, grid, grid.mean((2, 3)))


def test_pieces_are_put_where_they_were_told() -> None:
    images, origin = torch.rand(2, 3, 12, 12), torch.stack([torch.randperm(9), torch.randperm(9)])
    found = shuffled(images, origin, 4)
    for b in range(2):
        for place, source in enumerate(origin[b].tolist()):
            (y, x), (v, u) = divmod(place, 3), divmod(source, 3)
            piece = images[b, :, 4 * v : 4 * v + 4, 4 * u : 4 * u + 4]
            assert torch.equal(found[b, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4], piece)
    assert torch.equal(shuffled(found, origin.argsort(1), 4), images)


def test_loss_equals_the_formula() -> None:
    encoder, task = made()
    encoder.double(), task.double()
    view = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    found = task.loss(encoder, torch.empty(0), batch_of(view))
    origin = order_of(task, 3)
    grid = encoder(shuffled(view, origin, 8)).grid
    total, right = 0.0, 0
    for b in range(3):
        for place in range(16):
            scores = task.head(grid[b, :, place // 4, place % 4]).tolist()
            total += math.log(sum(math.exp(score) for score in scores)) - scores[origin[b, place]]
            right += max(range(16), key=lambda n: scores[n]) == origin[b, place]
    assert found["loss"].item() == pytest.approx(total / 48, rel=1e-9)
    assert float(found["over_chance"]) == pytest.approx(total / 48 / math.log(16), rel=1e-6)
    assert float(found["accuracy"]) == pytest.approx(right / 48)


def test_a_head_that_knows_each_piece_has_no_loss() -> None:
    """Piece n has the brightness n / 10. Asked for the place, or for the way back, it would be wrong."""
    encoder = Brightness()
    task = Jigsaw(encoder, resolve(AUXILIARY, "jigsaw", {}))
    numbers = torch.arange(9.0)
    with torch.no_grad():
        for layer in (task.head[0], task.head[2]):
            layer.weight.copy_(torch.eye(3))
            layer.bias.zero_()
        task.head[4].weight.copy_((20 * numbers * 10 / 3)[:, None].expand(9, 3))  # -(10 x - n)^2, times ten
        task.head[4].bias.copy_(-10 * numbers**2)
    view = (numbers / 10).view(3, 3).repeat_interleave(4, 0).repeat_interleave(4, 1).expand(5, 3, 12, 12)
    found = task.loss(encoder, torch.empty(0), batch_of(view))
    assert float(found["accuracy"]) == 1 and found["loss"].item() < 1e-3
    flat = task.loss(encoder, torch.empty(0), batch_of(torch.full_like(view, 0.4)))
    assert float(flat["accuracy"]) == pytest.approx(1 / 9)  # the same guess for every piece


@pytest.mark.parametrize(("name", "form", "seen"), [("toy", "pixels", 16), ("vit_tiny_flat", "tokens", 64)])
def test_knowing_nothing_costs_the_logarithm_of_the_cells(name: str, form: str, seen: int) -> None:
    encoder, task = made(name, form=form)
    nn.init.zeros_(task.head[4].weight)
    nn.init.zeros_(task.head[4].bias)
    found = task.loss(encoder, torch.empty(0), batch_of(torch.rand(2, 3, 32, 32)))
    assert found["loss"].item() == pytest.approx(math.log(seen)) and float(found["over_chance"]) == pytest.approx(1)


@pytest.mark.parametrize("tokens", [{}, {"class_token": True}, {"dynamic_img_size": True}])
def test_tokens_come_without_positions_and_pixels_with(tokens: dict[str, Any]) -> None:
    for form in ("tokens", "pixels"):
        encoder, task = made("vit_tiny_flat", tokens, form=form)
        batch = torch.rand(2, 3, 32, 32)
        before = task.loss(encoder, torch.empty(0), batch_of(batch))["loss"]
        first = encoder.model.num_prefix_tokens
        with torch.no_grad():
            encoder.model.pos_embed[:, -64:] += 1.0 + torch.randn(64, 64)
        assert encoder.model.pos_embed.shape[1] in (64, 64 + first)
        after = task.loss(encoder, torch.empty(0), batch_of(batch))["loss"]
        assert torch.equal(before, after) == (form == "tokens")


@pytest.mark.parametrize(("ratio", "kept"), [(0.5, 32), (0.0, 64), (0.95, 3)])
def test_dropped_tokens_are_not_seen(ratio: float, kept: int) -> None:
    encoder, task = made("vit_tiny_flat", form="tokens", ratio=ratio)
    view = torch.rand(3, 3, 32, 32, requires_grad=True)
    task.loss(encoder, torch.empty(0), batch_of(view))["loss"].backward()
    assert view.grad is not None
    reached = F.max_pool2d(view.grad.abs().sum(1, keepdim=True), 4).flatten(1) > 0
    expected = torch.zeros(3, 64, dtype=torch.bool).scatter_(1, order_of(task, 3)[:, :kept], True)
    assert torch.equal(reached, expected)


def test_tokens_are_asked_where_they_are_from() -> None:
    """Each token alone, as its order does not matter to a transformer: the same answers in any order."""
    encoder, task = made("vit_tiny_flat", form="tokens")
    view, origin = torch.rand(2, 3, 32, 32), order_of(task, 2)[:, :32]
    turned = origin.flip(1)
    there, back = (task.see(encoder, view, order) for order in (origin, turned))
    torch.testing.assert_close(there.flip(1), back, rtol=1e-4, atol=1e-5)


def test_the_control_trains_its_head_alone_on_what_stays_untrained() -> None:
    encoder, task = made(encoder="untrained")
    view = torch.rand(4, 3, 32, 32)
    first = task.loss(encoder, torch.empty(0), batch_of(view))["loss"]
    first.backward()
    assert all(p.grad is None for p in encoder.parameters())
    assert all(p.grad is not None for p in task.head.parameters())
    plain = made()[1]
    assert torch.equal(plain.loss(encoder, torch.empty(0), batch_of(view))["loss"], first)  # as if at the start
    with torch.no_grad():
        for p in encoder.parameters():
            p.mul_(3)
    assert torch.equal(task.loss(encoder, torch.empty(0), batch_of(view))["loss"], first)


@pytest.mark.parametrize(("budget", "number"), [("native", 215_344), ("matched", 4_708_027)])
def test_parameters_at_the_thesis_size(budget: str, number: int) -> None:
    encoder = build("vit312", 32, 0, MEAN, STD, {"depth": 1})
    task = Jigsaw(encoder, resolve(AUXILIARY, "jigsaw", {"budget": budget}))
    assert sum(p.numel() for p in task.parameters()) == number
    assert budget == "native" or number == pytest.approx(4_709_016, rel=1e-3)


@pytest.mark.parametrize(("name", "arguments"), [("toy", {}), ("t2t312", NARROW), ("sl_vit312", NARROW)])
def test_tokens_that_cannot_be_shuffled_are_refused(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(Problem) as caught:
        made(name, arguments, form="tokens")
    assert caught.value.id == "T-156" and caught.value.fix == "auxiliary.jigsaw.form: pixels"


def test_a_grid_that_does_not_divide_is_refused() -> None:
    encoder = build("toy", 36, 0, MEAN, STD)  # 5 cells a side
    with pytest.raises(Problem, match="jigsaw: a grid of 5 cells") as caught:
        Jigsaw(encoder, resolve(AUXILIARY, "jigsaw", {}))
    assert caught.value.id == "T-161" and "35 px" in caught.value.fix
