"""VICReg: the loss as its authors' code has it, its values where they are known, and what it is blind to."""

import pytest
import torch
from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from torch import nn
from torch.nn.functional import mse_loss

from sandglass.backbones.grid import build
from sandglass.data.loader import Batch, step_generator
from sandglass.objectives.vicreg import VICReg, moments


def setup(images=6, out=12):
    torch.manual_seed(0)
    encoder = build("toy", 32, 0, [0.5] * 3, [0.25] * 3).double()
    objective = VICReg(encoder, {"hidden": 16, "out": out}, 0).double()
    views = [torch.rand(images, 3, 32, 32, dtype=torch.float64) for _ in range(2)]
    index = torch.arange(images)
    return encoder, objective, Batch(views, torch.zeros_like(index), index, step_generator(0, 0, 0, "loss"))


def by_hand(a, b):
    n, d = a.shape
    total = 25 * sum((a[i, j] - b[i, j]) ** 2 for i in range(n) for j in range(d)) / (n * d)
    for x in (a, b):
        x = x - x.sum(0) / n
        for i in range(d):
            for j in range(d):
                between = (x[:, i] * x[:, j]).sum() / (n - 1)
                total += 25 / 2 * max(0, 1 - (between + 1e-4) ** 0.5) / d if i == j else between**2 / d
    return total


@pytest.mark.parametrize("out", [4, 12])  # fewer outputs than images, and more
def test_loss_is_the_authors(out):
    encoder, objective, batch = setup(out=out)
    found = objective.loss(encoder, objective.features(encoder, batch), batch)
    a, b = (objective.projector(encoder(view).pooled) for view in batch.views)
    torch.testing.assert_close(found["loss"], by_hand(a, b))
    torch.testing.assert_close(found["loss"], VICRegLoss()(a, b))
    torch.testing.assert_close(found["invariance"] + found["variance"] + found["covariance"], found["loss"].detach())


def vicreg(a, b):
    (v, c), (w, k) = moments(a), moments(b)
    return float(25 * mse_loss(a, b) + 25 * (v + w) / 2 + c + k)


def test_values_that_are_known():
    torch.manual_seed(0)
    a, b = torch.randn(2, 256, 2048)
    assert vicreg(a, b) == pytest.approx(66.6, abs=0.3)
    constant = torch.randn(1, 2048).expand(256, -1)
    assert vicreg(constant, constant) == pytest.approx(24.75, abs=1e-4)


def test_a_shift_shared_by_all_images_changes_nothing_and_sizes_do():
    torch.manual_seed(0)
    a, b = torch.randn(2, 32, 8, dtype=torch.float64)
    assert vicreg(a + 7, b + 7) == pytest.approx(vicreg(a, b))
    assert vicreg(2 * a, 2 * b) > 2 * vicreg(a, b) > 2 * vicreg(a, a) > 0


def test_what_is_between_batch_and_outputs_has_statistics_of_its_own():
    torch.manual_seed(0)
    x = torch.randn(5, 3, 8, dtype=torch.float64) + 10 * torch.randn(3, 8, dtype=torch.float64)
    apart = torch.tensor([moments(part) for part in x.unbind(1)], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(moments(x)), apart.mean(0))


def test_gradients_reach_both_views():
    encoder, objective, batch = setup()
    views = [view.requires_grad_() for view in batch.views]
    objective.loss(encoder, objective.features(encoder, batch), batch)["loss"].backward()
    assert all(view.grad.abs().sum() > 0 for view in views)
    assert all(p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_lightlys_head_is_the_papers():
    kinds = [type(layer) for layer in VICRegProjectionHead(4, 5, 6).layers]
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*hidden, *hidden, nn.Linear]


def test_a_constant_output_is_seen_as_collapse():
    encoder, objective, batch = setup()
    objective.loss(encoder, objective.features(encoder, batch), batch)
    assert objective.spread() > objective.alarm
    nn.init.zeros_(objective.projector.layers[-1].weight)
    objective.loss(encoder, objective.features(encoder, batch), batch)
    assert objective.spread() < objective.alarm
