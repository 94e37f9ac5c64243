"""Barlow Twins: the loss of the paper, its values where they are known, and a scale that is only a scale."""

import pytest
import torch
from lightly.loss import BarlowTwinsLoss
from lightly.models.modules.heads import BarlowTwinsProjectionHead
from torch import nn

from sandglass.backbones.grid import build
from sandglass.data.loader import Batch, step_generator
from sandglass.objectives.barlow_twins import BarlowTwins, departures

SETTINGS = {"hidden": 16, "out": 12, "redundancy": 0.005, "scale_loss": 0.024}


def setup(**settings):
    torch.manual_seed(0)
    encoder = build("toy", 32, 0, [0.5] * 3, [0.25] * 3).double()
    objective = BarlowTwins(encoder, SETTINGS | settings, 0).double()
    views = [torch.rand(6, 3, 32, 32, dtype=torch.float64) for _ in range(2)]
    batch = Batch(views, torch.zeros(6, dtype=torch.long), torch.arange(6), step_generator(0, 0, 0, "loss"))
    return encoder, objective, batch


def test_loss_is_the_papers():
    encoder, objective, batch = setup()
    found = objective.loss(encoder, objective.features(encoder, batch), batch)["loss"]
    a, b = (objective.projector(encoder(view).pooled) for view in batch.views)
    d = a.shape[1]
    total = 0.0
    for i in range(d):
        for j in range(d):
            x, y = a[:, i] - a[:, i].mean(), b[:, j] - b[:, j].mean()
            correlation = (x * y).mean() / ((x.square().mean() + 1e-5) * (y.square().mean() + 1e-5)).sqrt()
            total += (1 - correlation) ** 2 if i == j else 0.005 * correlation**2
    torch.testing.assert_close(found, 0.024 * total)
    torch.testing.assert_close(found, 0.024 * BarlowTwinsLoss(0.005)(a, b))


def total(a, b):
    same, other = departures(a, b)
    return float(same + 0.005 * other)


def test_values_that_are_known():
    torch.manual_seed(0)
    n, d = 256, 2048
    a, b = torch.randn(2, n, d)
    assert total(a, b) == pytest.approx(d + d / n + 0.005 * d**2 / n, rel=0.01)  # unrelated: about 2137
    assert total(a, a) == pytest.approx(0.005 * d * (d - 1) / n, rel=0.01)  # perfect: about 82 is noise
    constant = torch.randn(1, d, dtype=torch.float64).expand(n, -1)
    assert total(constant, constant) == pytest.approx(d, rel=1e-6)  # collapsed
    assert total(a[:, :1].expand(-1, d), a[:, :1].expand(-1, d)) == pytest.approx(0.005 * d * (d - 1), rel=1e-3)


def test_shift_and_scale_of_an_output_change_nothing():
    torch.manual_seed(0)
    a, b = torch.randn(2, 32, 8, dtype=torch.float64) * 100
    moved = a * torch.rand(8) * 5 + torch.randn(8) * 1000
    assert total(moved, b) == pytest.approx(total(a, b), rel=1e-5)


def test_gradients_reach_both_views_and_scale_with_the_loss():
    found = []
    for scale in (0.5, 1.0):
        encoder, objective, batch = setup(scale_loss=scale)
        views = [view.requires_grad_() for view in batch.views]
        objective.loss(encoder, objective.features(encoder, batch), batch)["loss"].backward()
        assert all(view.grad.abs().sum() > 0 for view in views)
        assert all(p.grad is not None for p in objective.parameters())
        found.append(torch.cat([p.grad.flatten() for p in encoder.parameters()]))
    assert found[0].norm() > 0
    torch.testing.assert_close(2 * found[0], found[1])


def test_lightlys_head_is_the_papers():
    kinds = [type(layer) for layer in BarlowTwinsProjectionHead(4, 5, 6).layers]
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*hidden, *hidden, nn.Linear]


def test_a_constant_output_is_seen_as_collapse():
    encoder, objective, batch = setup()
    objective.loss(encoder, objective.features(encoder, batch), batch)
    assert objective.spread() > objective.alarm
    nn.init.zeros_(objective.projector.layers[-1].weight)
    objective.loss(encoder, objective.features(encoder, batch), batch)
    assert objective.spread() < objective.alarm
