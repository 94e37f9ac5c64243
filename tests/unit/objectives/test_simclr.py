"""SimCLR: NT-Xent among all views, no image its own negative, both views in one forward."""

import math

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import nn

from sandglass.backbones.grid import build
from sandglass.data.loader import Batch, step_generator
from sandglass.objectives.simclr import SimCLR, nt_xent

SETTINGS = {"hidden": 16, "out": 8, "temperature": 0.2}


@pytest.fixture
def setup():
    torch.manual_seed(0)
    encoder = build("toy", 32, 0, [0.5] * 3, [0.25] * 3)
    objective = SimCLR(encoder, SETTINGS, 0)
    views = [torch.rand(6, 3, 32, 32) for _ in range(2)]
    batch = Batch(views, torch.zeros(6, dtype=torch.long), torch.arange(6), step_generator(0, 0, 0, "loss"))
    return encoder, objective, batch


def two_views(n, width, dtype=torch.float64):
    torch.manual_seed(1)
    first = torch.randn(n, width, dtype=dtype)
    return first, first + torch.randn(n, width, dtype=dtype)


def test_loss_is_the_formula():
    views = two_views(5, 4)
    z = torch.cat(views)
    z = z / z.norm(dim=1, keepdim=True)
    losses = []
    for i in range(10):
        j = (i + 5) % 10
        others = sum(math.exp(float(z[i] @ z[k]) / 0.3) for k in range(10) if k != i)
        losses.append(-math.log(math.exp(float(z[i] @ z[j]) / 0.3) / others))
    assert abs(float(nt_xent(*views, 0.3)) - sum(losses) / 10) < 1e-12


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_loss_and_gradient_are_those_of_lightly(temperature):
    views = [view.requires_grad_() for view in two_views(16, 8, torch.float32)]
    ours, theirs = nt_xent(*views, temperature), NTXentLoss(temperature)(*views)
    assert abs(float(ours) - float(theirs)) < 1e-6
    for mine, other in zip(torch.autograd.grad(ours, views), torch.autograd.grad(theirs, views)):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_uninformative_outputs_cost_the_log_of_all_others():
    rows = torch.ones(256, 8, dtype=torch.float64)
    assert abs(float(nt_xent(rows, rows, 0.2)) - math.log(511)) < 1e-9


def test_perfect_outputs_cost_what_the_temperature_leaves():
    rows = torch.eye(8, dtype=torch.float64)
    assert abs(float(nt_xent(rows, rows, 0.2)) - math.log(1 + 14 * math.exp(-1 / 0.2))) < 1e-9


def test_a_single_image_has_nothing_to_be_told_from():
    assert float(nt_xent(*two_views(1, 4), 0.2)) == 0


def test_gradient_reaches_encoder_and_projector_from_both_views(setup):
    encoder, objective, batch = setup
    batch = Batch([v.requires_grad_() for v in batch.views], batch.labels, batch.index, batch.generator)
    objective.loss(encoder, objective.features(encoder, batch), batch)["loss"].backward()
    for p in [*encoder.parameters(), *objective.projector.parameters(), *batch.views]:
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0


def test_batch_norm_sees_both_views_at_once(setup):
    encoder, objective, batch = setup
    objective.loss(encoder, objective.features(encoder, batch), batch)
    norms = [m for m in [*encoder.modules(), *objective.modules()] if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 5 and {int(norm.num_batches_tracked) for norm in norms} == {1}


def test_autocast_leaves_the_loss_in_float32():
    views = two_views(16, 8, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(*views, 0.2)
    assert loss.dtype == torch.float32 and torch.equal(loss, nt_xent(*views, 0.2))


def test_the_head_of_lightly_is_two_layers_with_batch_norm_after_each(setup):
    layers = list(setup[1].projector.layers)
    assert [type(m) for m in layers] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert all(m.bias is None for m in layers if isinstance(m, nn.Linear))
