"""SimSiam: the stop-gradient, the predictor with a rate of its own, and a guard that sees what the loss hides."""

import math

import pytest
import torch
from torch import nn

from sandglass.backbones.grid import build
from sandglass.config import resolve
from sandglass.data.loader import Batch, step_generator
from sandglass.engine.optim import parameter_groups
from sandglass.objectives import OBJECTIVES
from sandglass.objectives._base import deviation
from sandglass.objectives.simsiam import SimSiam

SMALL = {"hidden": 16, "out": 8, "bottleneck": 4}


def made(**changes):
    torch.manual_seed(0)
    encoder = build("toy", 32, 0, [0.5] * 3, [0.25] * 3).double()
    return encoder, SimSiam(encoder, resolve(OBJECTIVES, "simsiam", SMALL | changes), 0).double()


@pytest.fixture
def setup():
    encoder, objective = made()
    views = [torch.rand(32, 3, 32, 32, dtype=torch.float64) for _ in range(2)]
    batch = Batch(views, torch.zeros(32, dtype=torch.long), torch.arange(32), step_generator(0, 0, 0, "loss"))
    return encoder, objective, batch


def loss_of(encoder, objective, batch):
    return objective.loss(encoder, objective.features(encoder, batch), batch)["loss"]


def formula(p, z):
    cosines = [[(a @ b) / (a.norm() * b.norm()) for a, b in zip(*pair)] for pair in ((p[0], z[1]), (p[1], z[0]))]
    return -(sum(cosines[0]) / len(p[0]) + sum(cosines[1]) / len(p[1])) / 2


def test_loss_and_gradient_are_those_of_the_formula_with_constant_targets(setup):
    encoder, objective, batch = setup
    parameters = [*encoder.parameters(), *objective.parameters()]
    loss = loss_of(encoder, objective, batch)
    gradient = torch.autograd.grad(loss, parameters)
    z = [objective.projector(encoder(view).pooled) for view in batch.views]
    p = [objective.predictor(row) for row in z]
    expected = formula(p, [row.detach() for row in z])
    assert abs(float(loss) - float(expected)) < 1e-12
    for mine, theirs in zip(gradient, torch.autograd.grad(expected, parameters, retain_graph=True), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)
    through = torch.autograd.grad(formula(p, z), parameters)
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(gradient, through)), "a gradient through z would be noticed"


def test_gradients_reach_everything(setup):
    encoder, objective, batch = setup
    loss_of(encoder, objective, batch).backward()
    every = [*encoder.parameters(), *objective.parameters()]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in every)


@pytest.mark.parametrize("fixed", [True, False])
def test_only_the_predictors_rate_stays_at_its_peak_if_at_all(fixed):
    encoder, objective = made(fixed_predictor_rate=fixed)
    groups = parameter_groups([encoder, objective], 1e-4, {}, objective.undecayed_rate)
    constant = {id(p) for group in groups if group["constant"] for p in group["params"]}
    assert constant == ({id(p) for p in objective.predictor.parameters()} if fixed else set())


def test_the_heads_of_lightly_end_as_the_authors_do():
    _, objective = made()
    linear, norm, relu = nn.Linear, nn.BatchNorm1d, nn.ReLU
    assert [type(m) for m in objective.projector.layers] == [linear, norm, relu, linear, norm, relu, linear, norm]
    assert [m.affine for m in objective.projector.layers if isinstance(m, norm)] == [True, True, False]
    assert [type(m) for m in objective.predictor.layers] == [linear, norm, relu, linear]
    assert objective.predictor.layers[0].out_features == 4


def test_the_guard_sees_a_point_and_a_line(setup):
    encoder, objective, batch = setup
    assert objective.spread() == math.inf
    loss_of(encoder, objective, batch)
    assert objective.spread() > objective.alarm
    last = objective.projector.layers[6]
    with torch.no_grad():  # all dimensions the same: every image on one line
        last.weight.copy_(last.weight[:1].clone().expand_as(last.weight))
    loss_of(encoder, objective, batch)
    assert objective.spread() < objective.alarm and float(deviation(objective._watched)) > 0.9
    nn.init.zeros_(last.weight)  # every image at one point
    loss_of(encoder, objective, batch)
    assert objective.spread() < objective.alarm
