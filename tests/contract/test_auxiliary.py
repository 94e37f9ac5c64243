"""What the loop relies on, asked of every auxiliary task and every preset in the register."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sandglass.auxiliary import AUXILIARY
from sandglass.auxiliary._base import Auxiliary
from sandglass.config import resolve
from sandglass.data.loader import Batch, step_generator
from sandglass.errors import Problem

CASES = [(name, preset) for name in AUXILIARY for preset in (None, *AUXILIARY.presets(name))]
DRAWS_NOTHING = {"activation_norm"}
SHAPE = (5, 12, 3, 4)  # not square: rows and columns cannot be exchanged unseen


def build(name: str, preset: str | None, shape: tuple[int, ...] = SHAPE) -> Auxiliary:
    torch.manual_seed(0)
    settings = resolve(AUXILIARY, name, {"preset": preset} if preset else {})
    task = AUXILIARY.get(name)(SimpleNamespace(width=shape[1], grid_shape=shape[2:]), settings)
    assert isinstance(task, Auxiliary)
    return task


def ask(task: Auxiliary, grid: Tensor, seed: int = 0) -> dict[str, Tensor]:
    rows = torch.arange(len(grid))
    return task.loss(None, grid, Batch([], torch.zeros_like(rows), rows, step_generator(seed, 0, 0, "loss")))


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
    task, grid = build(name, preset), torch.randn(SHAPE, requires_grad=True)
    answers = ask(task, grid)
    for key, value in answers.items():
        assert value.shape == () and value.dtype == torch.float32 and value.isfinite(), key
        assert value.requires_grad == (key == "loss"), key
    answers["loss"].backward()
    assert grid.grad is not None and grid.grad.abs().sum() > 0
    idle = [name for name, p in task.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert idle == []


@pytest.mark.parametrize("name, preset", CASES)
def test_half_precision_in_float32_out(name: str, preset: str | None) -> None:
    task, grid = build(name, preset), torch.randn(SHAPE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = ask(task, grid.bfloat16())["loss"]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(ask(task, grid)["loss"].item(), rel=0.02)  # bfloat16 keeps 8 bits


@pytest.mark.parametrize("name, preset", CASES)
def test_randomness_is_the_batch_generator_alone(name: str, preset: str | None) -> None:
    task, grid = build(name, preset), torch.randn(SHAPE)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = ask(task, grid)["loss"]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(ask(task, grid)["loss"], one)
    assert torch.equal(ask(task, grid, seed=3)["loss"], one) == (name in DRAWS_NOTHING)


@pytest.mark.parametrize("name, preset", CASES)
def test_state_is_whole(name: str, preset: str | None) -> None:
    """A task loaded from another's state goes on as that one would."""
    old, grid = build(name, preset), torch.randn(SHAPE)
    ask(old, grid)
    torch.manual_seed(9)
    new = type(old)(SimpleNamespace(width=old.channels, grid_shape=old.grid_shape), old.settings)
    new.load_state_dict(old.state_dict())
    theirs, ours = ask(old, 2 * grid), ask(new, 2 * grid)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert new.collapsed() == old.collapsed()


@pytest.mark.parametrize("name, preset", CASES)
def test_the_weight_is_never_negative_nor_above_lambda(name: str, preset: str | None) -> None:
    task = build(name, preset)
    weights = [task.weight_at(step / 100) for step in range(101)]
    assert min(weights) >= 0 and max(weights) <= task.settings["weight"]


@pytest.mark.parametrize("name, preset", CASES)
@pytest.mark.parametrize("shape", [(1, 12, 3, 4), (4, 12, 1, 2), (4, 12, 2, 1)])
def test_small_batches_and_grids_are_no_error(name: str, preset: str | None, shape: tuple[int, ...]) -> None:
    answers = ask(build(name, preset, shape), torch.randn(shape))
    assert all(value.isfinite() for value in answers.values())


@pytest.mark.parametrize("name", list(AUXILIARY))
def test_a_grid_of_one_cell_is_refused(name: str) -> None:
    with pytest.raises(Problem, match="several cells"):
        build(name, None, (4, 12, 1, 1))
