"""What the loop relies on, asked of every auxiliary task and every preset in the register.

A task of the grid is given any grid; one with a forward of its own is given a real encoder, and the grid it made.
"""

import copy
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sandglass.auxiliary import AUXILIARY
from sandglass.auxiliary._base import Auxiliary
from sandglass.backbones import grid as backbones
from sandglass.config import resolve
from sandglass.data.loader import Batch, step_generator
from sandglass.errors import Problem

CASES = [(name, preset) for name in AUXILIARY for preset in (None, *AUXILIARY.presets(name))]
DRAWS_NOTHING = {"activation_norm"}
LOOKING = [case for case in CASES if AUXILIARY.get(case[0]).own_forward]
SHAPE = (5, 12, 3, 4)  # not square: rows and columns cannot be exchanged unseen
PX = 32  # for the encoder, `toy`, whose grid then has 4 x 4 cells


@dataclass
class Scene:
    """A task, what it is given, and where its gradient must arrive."""

    task: Auxiliary
    encoder: Any
    views: list[Tensor]
    sources: list[Tensor]
    grid: Tensor | None  # None: the encoder's, of these views

    def ask(self, seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
        """The task's answer to these images, or to a grid `scale` times as large."""
        grid = self.encoder(self.views[0]).grid if self.grid is None else self.grid
        rows = torch.arange(len(grid))
        batch = Batch(self.views, torch.zeros_like(rows), rows, step_generator(seed, 0, 0, "loss"))
        return self.task.loss(self.encoder, scale * grid, batch)


def scene(name: str, preset: str | None, shape: tuple[int, ...] = SHAPE, px: int = PX) -> Scene:
    """`shape` of the grid that is given; for a task with a forward of its own, images (shape[0], 3, px, px)."""
    torch.manual_seed(0)
    settings, kind = resolve(AUXILIARY, name, {"preset": preset} if preset else {}), AUXILIARY.get(name)
    if kind.own_forward:
        encoder = backbones.build("toy", px, 0, [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]).train()
        found = Scene(
            kind(encoder, settings), encoder, [torch.rand(shape[0], 3, px, px)], [*encoder.parameters()], None
        )
    else:
        encoder, grid = SimpleNamespace(width=shape[1], grid_shape=shape[2:]), torch.randn(shape, requires_grad=True)
        found = Scene(kind(encoder, settings), encoder, [], [grid], grid)
    assert isinstance(found.task, Auxiliary)
    return found


def test_reading_the_register_imports_no_torch() -> None:
    code = "import sys; from sandglass.auxiliary import AUXILIARY as A; print(*map(A.about, A), 'torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert told.rstrip().endswith("False")


@pytest.mark.parametrize("name", list(AUXILIARY))
def test_presets_name_declared_settings_and_both_kinds_exist(name: str) -> None:
    presets = AUXILIARY.presets(name)
    assert {"thesis", "sound"} <= set(presets)
    for values in presets.values():
        resolve(AUXILIARY, name, values)  # raises for an unknown name, a wrong type, a value out of range
    assert AUXILIARY.about(name)["paper"].startswith("arXiv ")


@pytest.mark.parametrize("name, preset", CASES)
def test_loss_is_a_float32_scalar_with_gradient_and_the_rest_without(name: str, preset: str | None) -> None:
    given = scene(name, preset)
    answers = given.ask()
    for key, value in answers.items():
        assert value.shape == () and value.dtype == torch.float32 and value.isfinite(), key
        assert value.requires_grad == (key == "loss"), key
    answers["loss"].backward()
    assert all(source.grad is not None and source.grad.abs().sum() > 0 for source in given.sources)
    learned = [(name, p) for name, p in given.task.named_parameters() if p.requires_grad]
    idle = [name for name, p in learned if p.grad is None or not p.grad.abs().sum()]
    assert idle == []


@pytest.mark.parametrize("name, preset", CASES)
def test_half_precision_in_float32_out(name: str, preset: str | None) -> None:
    given = scene(name, preset)
    whole = given.ask()["loss"]
    given.grid = None if given.grid is None else given.grid.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = given.ask()["loss"]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(whole.item(), rel=0.02)  # bfloat16 keeps 8 bits


@pytest.mark.parametrize("name, preset", CASES)
def test_randomness_is_the_batch_generator_alone(name: str, preset: str | None) -> None:
    given = scene(name, preset)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = given.ask()["loss"]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(given.ask()["loss"], one)
    assert torch.equal(given.ask(seed=3)["loss"], one) == (name in DRAWS_NOTHING)


@pytest.mark.parametrize("name, preset", CASES)
def test_state_is_whole(name: str, preset: str | None) -> None:
    """A task loaded from another's state goes on as that one would."""
    given = scene(name, preset)
    given.ask()
    torch.manual_seed(9)
    other = copy.copy(given)
    other.task = type(given.task)(given.encoder, given.task.settings)
    other.task.load_state_dict(given.task.state_dict())
    theirs, ours = given.ask(scale=2), other.ask(scale=2)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert other.task.collapsed() == given.task.collapsed()


@pytest.mark.parametrize("name, preset", LOOKING)
def test_a_forward_of_its_own_leaves_batch_norm_as_it_was(name: str, preset: str | None) -> None:
    """By the running statistics the encoder is judged on whole images; the next of these are recorded again."""
    given = scene(name, preset)
    given.grid = given.encoder(given.views[0]).grid.detach()
    before = copy.deepcopy(given.encoder)
    given.ask()
    assert [m.training for m in given.encoder.modules()] == [m.training for m in before.modules()]
    after, kept = given.encoder.state_dict(), before.state_dict()
    assert all(torch.equal(after[key], kept[key]) for key in kept)
    given.encoder(given.views[0])
    assert not torch.equal(
        given.encoder.state_dict()["model.stages.0.1.running_mean"], kept["model.stages.0.1.running_mean"]
    )


@pytest.mark.parametrize("name, preset", CASES)
def test_the_weight_is_never_negative_nor_above_lambda(name: str, preset: str | None) -> None:
    task = scene(name, preset).task
    weights = [task.weight_at(step / 100) for step in range(101)]
    assert min(weights) >= 0 and max(weights) <= task.settings["weight"]


@pytest.mark.parametrize("name, preset", CASES)
@pytest.mark.parametrize("shape", [(1, 12, 3, 4), (4, 12, 1, 2), (4, 12, 2, 1)])
def test_small_batches_and_grids_are_no_error(name: str, preset: str | None, shape: tuple[int, ...]) -> None:
    answers = scene(name, preset, shape, px=16).ask()
    assert all(value.isfinite() for value in answers.values())


@pytest.mark.parametrize("name", list(AUXILIARY))
def test_a_grid_of_one_cell_is_refused(name: str) -> None:
    with pytest.raises(Problem, match="several cells"):
        scene(name, None, (4, 12, 1, 1), px=8)
