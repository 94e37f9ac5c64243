"""The size of the grid as a loss: by hand, beside the task it is the control of, and the figures all three share."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sandglass.auxiliary import AUXILIARY
from sandglass.auxiliary._base import Auxiliary
from sandglass.config import resolve
from sandglass.data.loader import Batch, step_generator

FIGURES = ("rms", "std_positions", "std_batch", "effective_rank")


def task(name: str = "activation_norm", **overrides: Any) -> Auxiliary:
    torch.manual_seed(0)
    made: Auxiliary = AUXILIARY.get(name)(
        SimpleNamespace(width=12, grid_shape=(3, 4)), resolve(AUXILIARY, name, overrides)
    )
    return made


def batch_of(images: int) -> Batch:
    rows = torch.arange(images)
    return Batch([], torch.zeros_like(rows), rows, step_generator(0, 0, 0, "loss"))


def test_loss_and_gradient_by_hand() -> None:
    grid = torch.randn(5, 12, 3, 4, requires_grad=True)
    seen = task().loss(None, grid, batch_of(5))
    assert seen["loss"].item() == pytest.approx(sum(x * x for x in grid.flatten().tolist()) / grid.numel(), rel=1e-5)
    assert float(seen["rms"]) ** 2 == pytest.approx(seen["loss"].item())
    seen["loss"].backward()
    assert grid.grad is not None
    torch.testing.assert_close(grid.grad, 2 * grid.detach() / grid.numel())


def test_it_is_masked_embedding_whose_decoder_says_nothing() -> None:
    """Attached, over every cell: the same loss and the same gradient."""
    me = task("masked_embedding", target="attached", target_norm="none", ratio=0)
    me.blocks.register_forward_hook(lambda module, given, said: 0 * said)
    slopes = {}
    for name, one in (("control", task()), ("mute", me)):
        grid = torch.randn(5, 12, 3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
        loss = one.loss(None, grid, batch_of(5))["loss"]
        (slopes[name],) = torch.autograd.grad(loss, grid)
        slopes[name + " loss"] = loss.detach()
    torch.testing.assert_close(slopes["mute"], slopes["control"])
    torch.testing.assert_close(slopes["mute loss"], slopes["control loss"])


def test_it_has_no_parameters_and_a_small_grid_is_no_collapse() -> None:
    one, grid = task(), torch.randn(5, 12, 3, 4)
    assert not list(one.parameters())
    for scale in (1.0, 1e-3):
        one.loss(None, scale * grid, batch_of(5))
        assert one.collapsed() is False


def test_the_same_grid_has_the_same_figures_in_every_task() -> None:
    grid = torch.randn(5, 12, 3, 4)
    tasks = [task(name) for name in ("activation_norm", "drloc", "masked_embedding")]
    seen = [one.loss(None, grid, batch_of(5)) | one.monitor(grid) for one in tasks]
    for figure in FIGURES:
        assert len({float(answers[figure]) for answers in seen}) == 1
