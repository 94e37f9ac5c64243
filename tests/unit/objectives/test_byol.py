"""BYOL: the authors' loss, a target that only follows, and a monitor that sees collapse."""

import copy

import pytest
import torch
from torch import nn

from sandglass.backbones.grid import build
from sandglass.data.loader import Batch, step_generator
from sandglass.objectives._base import collapse
from sandglass.objectives._parts import cosine, follow, still
from sandglass.objectives.byol import BYOL, PRESETS, TRAIN

SETTINGS = {"hidden": 16, "out": 8, "momentum": 0.9, "momentum_end": 1.0}


@pytest.fixture
def setup():
    torch.manual_seed(0)
    encoder = build("toy", 32, 0, [0.5] * 3, [0.25] * 3)
    objective = BYOL(encoder, SETTINGS, 0)
    views = [torch.rand(6, 3, 32, 32) for _ in range(2)]
    batch = Batch(views, torch.zeros(6, dtype=torch.long), torch.arange(6), step_generator(0, 0, 0, "loss"))
    return encoder, objective, batch


def test_loss_is_the_squared_distance_of_unit_vectors_summed_over_directions(setup):
    encoder, objective, batch = setup
    reference = copy.deepcopy((encoder, objective))
    loss = objective.loss(encoder, [encoder(v) for v in batch.views], batch)["loss"]
    encoder, objective = (module.double() for module in reference)
    views = [v.double() for v in batch.views]
    p = [objective.predictor(objective.projector(encoder(v).pooled)) for v in views]
    z = [objective.target_projector(objective.target(v).pooled) for v in views]
    p, z = ([x / x.norm(dim=1, keepdim=True) for x in xs] for xs in (p, z))
    expected = ((p[0] - z[1]) ** 2).sum(1).mean() + ((p[1] - z[0]) ** 2).sum(1).mean()
    assert abs(float(loss) - float(expected)) < 1e-5


def test_gradients_reach_online_and_never_the_target(setup):
    encoder, objective, batch = setup
    objective.loss(encoder, [encoder(v) for v in batch.views], batch)["loss"].backward()
    online = [*encoder.parameters(), *objective.projector.parameters(), *objective.predictor.parameters()]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in online)
    assert all(p.grad is None for p in [*objective.target.parameters(), *objective.target_projector.parameters()])


def test_target_moves_by_the_momentum_and_ends_at_one(setup):
    encoder, objective, _ = setup
    before = [p.clone() for p in objective.target.parameters()]
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(1.0)
    objective.after_step(encoder, progress=0.5)
    for old, new in zip(before, objective.target.parameters()):
        assert torch.allclose(new - old, torch.full_like(old, 1 - cosine(0.5, 0.9, 1.0)), atol=1e-6)
    frozen = [p.clone() for p in objective.target.parameters()]
    objective.after_step(encoder, progress=1.0)
    assert all(torch.equal(a, b) for a, b in zip(frozen, objective.target.parameters()))


def test_the_blog_took_lightlys_steps(setup):
    """SGD on lightly's mean of cosines, (c1 + c2) / 2 with c = -cos, by the rate and decay of its benchmark."""
    encoder, objective, batch = setup
    twins = copy.deepcopy((encoder, objective))
    ours = {"lr": TRAIN["blog"]["lr_per_256"], "weight_decay": TRAIN["blog"]["weight_decay"]}
    for (f, o), settings, share in (
        ((encoder, objective), ours, 1.0),
        (twins, {"lr": 0.06, "weight_decay": 5e-4}, 0.25),
    ):
        optimizer = torch.optim.SGD([*f.parameters(), *o.parameters()], momentum=0.9, **settings)
        for _ in range(3):
            optimizer.zero_grad()
            loss = o.loss(f, [f(view) for view in batch.views], batch)["loss"]
            (share * (loss - 4)).backward()
            optimizer.step()
            o.after_step(f, progress=0.5)
    for a, b in zip(encoder.parameters(), twins[0].parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    constant = BYOL(encoder, SETTINGS | {"momentum": 0.99} | PRESETS["blog"], 0)
    assert constant.momentum == constant.momentum_end == 0.99


def test_momentum_schedule_is_the_papers():
    import math

    for t in (0.0, 0.2, 0.7, 1.0):
        assert math.isclose(cosine(t, 0.99, 1.0), 1 - (1 - 0.99) * (math.cos(math.pi * t) + 1) / 2)


def test_target_has_no_noise_of_its_own():
    noisy = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
    target = still(copy.deepcopy(noisy))
    assert target[0].p == 0.0 and noisy[0].p == 0.5
    follow(target, noisy, 0.0)
    assert torch.equal(target[1].weight, noisy[1].weight) and not target[1].weight.requires_grad


def test_collapse_monitors_know_the_limits():
    same = collapse(torch.ones(64, 8))
    assert float(same["feature_std"]) == 0 and abs(float(same["mean_cosine"]) - 1) < 1e-5
    torch.manual_seed(0)
    free = collapse(torch.randn(4096, 8))
    assert abs(float(free["feature_std"]) - 1) < 0.05 and float(free["effective_rank"]) > 7.9
    line = collapse(torch.randn(256, 1) * torch.ones(1, 8))
    assert float(line["effective_rank"]) < 1.01


def test_loss_at_perfect_agreement_is_zero_also_when_collapsed(setup):
    # why the monitors exist: the loss alone cannot tell a constant from a perfect network
    encoder, objective, batch = setup
    for head in (objective.projector, objective.predictor, objective.target_projector):
        last = [m for m in head.modules() if isinstance(m, nn.Linear)][-1]
        nn.init.zeros_(last.weight)
        nn.init.ones_(last.bias)
    out = objective.loss(encoder, [encoder(v) for v in batch.views], batch)
    assert abs(float(out["loss"])) < 1e-5 and float(out["target_std"]) < 1e-5
