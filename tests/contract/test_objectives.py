"""The contract of every objective: a finite scalar, gradients to the encoder, all its state in state_dict."""

import pytest
import torch

from sandglass.backbones.grid import build
from sandglass.config import resolve
from sandglass.data.loader import Batch, step_generator
from sandglass.objectives import OBJECTIVES
from sandglass.registry import literals
from sandglass.views import RECIPES
from sandglass.views.recipes import located_views

CLASSES = 4


def setup(name):
    torch.manual_seed(0)
    kind = OBJECTIVES.get(name)
    encoder = build("toy", 32, CLASSES if kind.needs_labels else 0, [0.5] * 3, [0.25] * 3)
    settings = resolve(OBJECTIVES, name, {})
    settings |= {key: 16 for key, value in settings.items() if type(value) is int and value > 16}
    objective = kind(encoder, settings, CLASSES)
    recipe = literals(OBJECTIVES.rows[name].partition(":")[0])["VIEWS"]
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    sizes = torch.full((8, 2), 32)
    drawing = step_generator(0, 0, 0, "views")
    views, places = located_views(recipe, resolve(RECIPES, recipe, {}), images, sizes, 32, drawing)
    batch = Batch(views, torch.arange(8) % CLASSES, torch.arange(8), step_generator(0, 0, 0, "loss"), places=places)
    return encoder, objective, batch


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_contract(name):
    encoder, objective, batch = setup(name)
    features = objective.features(encoder, batch)
    out = objective.loss(encoder, features, batch)
    assert out["loss"].shape == () and out["loss"].dtype == torch.float32 and torch.isfinite(out["loss"])
    assert all(not value.requires_grad for key, value in out.items() if key != "loss")
    out["loss"].backward()
    used = [p for name, p in encoder.named_parameters() if p.grad is not None]
    assert used and all(torch.isfinite(p.grad).all() for p in used)
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)
    objective.after_step(encoder, 0.5)
    assert objective.monitor(features, batch).keys() >= {"feature_std", "effective_rank"}
    assert OBJECTIVES.about(name)["about"]


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_state_is_in_state_dict(name):
    encoder, objective, batch = setup(name)
    objective.after_step(encoder, 0.1)
    torch.manual_seed(5)
    other_encoder, other, _ = setup(name)
    other_encoder.load_state_dict(encoder.state_dict())
    other.load_state_dict(objective.state_dict())
    losses = []
    for enc, obj in ((encoder, objective), (other_encoder, other)):
        torch.manual_seed(0)
        batch.generator.manual_seed(7)
        losses.append(obj.loss(enc, obj.features(enc, batch), batch)["loss"])
    assert torch.equal(losses[0], losses[1])
