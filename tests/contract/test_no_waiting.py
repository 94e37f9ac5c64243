"""No step asks the device for a value. On torch's "meta" device there are none, so whoever asks fails at once; what is
drawn or counted on the CPU may be asked, as it may be beside a GPU."""

from contextlib import nullcontext

import pytest
import torch

from sandglass.auxiliary import AUXILIARY
from sandglass.backbones.grid import build
from sandglass.config import resolve
from sandglass.data.loader import Batch, Clock, step_generator
from sandglass.engine import optim
from sandglass.engine.step import Step
from sandglass.objectives import OBJECTIVES
from sandglass.registry import literals
from sandglass.views import RECIPES
from sandglass.views.recipes import draw_views, located_views

IMAGES, CLASSES, META = 8, 4, torch.device("meta")


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """It does not know the device, and changes nothing here."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **more: nullcontext())


def stepping(objective, auxiliaries=(), backbone="toy"):
    encoder = build(backbone, 32, CLASSES if objective == "supervised" else 0, [0.5] * 3, [0.25] * 3)
    settings = resolve(OBJECTIVES, objective, {})
    settings |= {key: 2 * IMAGES for key in ("queue",) if key in settings}
    learned = OBJECTIVES.get(objective)(encoder, settings, CLASSES).to(META)
    tasks = {name: AUXILIARY.get(name)(encoder, resolve(AUXILIARY, name, {})).to(META) for name in auxiliaries}
    encoder.to(META)
    groups = optim.parameter_groups([encoder, learned, *tasks.values()], 0.05)
    optimizer = optim.build(groups, "lars", 0.1, 0.9)
    return encoder, learned, Step(encoder, learned, tasks, optimizer, clip_norm=3.0, half=False)


def batch_of(objective, step):
    recipe = literals(OBJECTIVES.rows[objective].partition(":")[0])["VIEWS"]
    images, sizes = torch.zeros(IMAGES, 3, 32, 32, dtype=torch.uint8), torch.full((IMAGES, 2), 32)
    generator = step_generator(0, 0, step, "views")
    drawn = draw_views(recipe, resolve(RECIPES, recipe, {}), sizes, 32, generator)
    views, places = located_views(drawn, images, torch.arange(IMAGES))
    views = [view.to(META) for view in views]
    labels = torch.zeros(IMAGES, dtype=torch.int64, device=META)
    clock = Clock(step, 12, 3)
    return Batch(views, labels, torch.arange(IMAGES), step_generator(0, 0, step, "loss"), clock=clock, places=places)


def steps_of(objective, auxiliaries=(), backbone="toy"):
    encoder, learned, step = stepping(objective, auxiliaries, backbone)
    for number in (0, 5, 10):  # a queue fills, what is frozen thaws
        seen = step([batch_of(objective, number)])
        learned.after_step(encoder, number / 12)
        for task in step.auxiliaries.values():
            task.after_step(encoder, number / 12)
    return seen


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_of_an_objective(objective):
    seen = steps_of(objective)
    assert seen.loss.device == META and all(value.device == META for value in seen.scalars.values())


@pytest.mark.parametrize("auxiliary", list(AUXILIARY))
def test_of_an_auxiliary_task(auxiliary):
    assert f"{auxiliary}/loss" in steps_of("supervised", (auxiliary,)).scalars


def test_whoever_asks_is_caught():
    _, learned, step = stepping("supervised")
    whole = learned.loss
    learned.loss = lambda *given: {"loss": whole(*given)["loss"] * bool(whole(*given)["loss"] > 0)}
    with pytest.raises(RuntimeError, match="meta"):
        step([batch_of("supervised", 0)])
