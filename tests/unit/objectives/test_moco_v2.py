"""MoCo v2: keys of a target, a queue that is first in, first out, and no image its own negative."""

import copy
import math

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import nn

from sandglass.backbones.grid import build
from sandglass.data.loader import Batch, Clock, step_generator
from sandglass.objectives.moco_v2 import MoCoV2, contrast

SETTINGS = {"hidden": 16, "out": 8, "queue": 30, "momentum": 0.9, "temperature": 0.2}
IMAGES = 6


def made(**changes):
    torch.manual_seed(0)
    encoder = build("toy", 32, 0, [0.5] * 3, [0.25] * 3).double()
    objective = MoCoV2(encoder, SETTINGS | changes, 0).double()
    with torch.no_grad():  # as after some steps: a target of its own
        for p in [*objective.target.parameters(), *objective.target_projector.parameters()]:
            p.add_(0.02 * torch.randn_like(p))
    return encoder, objective


def a_batch(seed, steps_per_epoch=1000):
    torch.manual_seed(seed)
    views = [torch.rand(IMAGES, 3, 32, 32, dtype=torch.float64) for _ in range(2)]
    clock = Clock(0, 10 * steps_per_epoch, steps_per_epoch)
    generator = step_generator(0, 0, 0, "loss")
    return Batch(views, torch.zeros(IMAGES, dtype=torch.long), torch.arange(IMAGES), generator, clock=clock)


def loss_of(encoder, objective, batch):
    return objective.loss(encoder, objective.features(encoder, batch), batch)


@torch.no_grad()
def projected(encoder, projector, batch):
    rows = [projector(encoder(view).pooled) for view in batch.views]
    return [row / row.norm(dim=1, keepdim=True) for row in rows]


def formula(queries, keys, negatives, temperature):
    losses = []
    for q, k in zip(queries, keys, strict=True):
        others = sum(math.exp(float(q @ n) / temperature) for n in negatives)
        same = math.exp(float(q @ k) / temperature)
        losses.append(-math.log(same / (same + others)))
    return sum(losses) / len(losses)


def test_loss_is_the_formula_with_the_queue_as_it_was_for_both_terms():
    encoder, objective = made()
    batch, before = a_batch(1), objective.queue.clone()
    q = projected(encoder, objective.projector, batch)
    k = projected(objective.target, objective.target_projector, batch)
    expected = (formula(q[0], k[1], before, 0.2) + formula(q[1], k[0], before, 0.2)) / 2
    out = loss_of(encoder, objective, batch)
    assert abs(float(out["loss"]) - expected) < 1e-12 and float(out["negatives"]) == 30
    late = (formula(q[0], k[1], before, 0.2) + formula(q[1], k[0], [*k[1], *before[:24]], 0.2)) / 2
    assert abs(late - expected) > 0.01, "the other order would be noticed"


def test_an_image_never_meets_its_own_key_among_the_negatives():
    torch.manual_seed(0)
    encoder = build("toy", 32, 0, [0.5] * 3, [0.25] * 3).double()
    objective = MoCoV2(encoder, SETTINGS | {"temperature": 0.01}, 0).double()
    batch = a_batch(1)
    batch.views[1] = batch.views[0]  # and the target is still a copy: every query is its own key
    out = loss_of(encoder, objective, batch)
    assert float(out["loss"]) < 0.01 and float(out["negatives"]) == 30
    rows = torch.eye(8)[:IMAGES].requires_grad_()
    theirs = NTXentLoss(0.01, memory_bank_size=(30, 8))
    twice = (theirs(rows, rows.detach()) + theirs(rows, rows.detach())) / 2
    assert float(twice.detach()) > math.log(2) / 2 - 1e-6, "lightly's second term meets the keys of its first"


def test_uninformative_outputs_cost_the_log_of_all_keys():
    rows = torch.ones(4, 1, dtype=torch.float64)
    assert abs(float(contrast(rows, rows, rows.new_ones(4096, 1), 0.1)) - math.log(4097)) < 1e-9


@pytest.mark.parametrize("length", [5, 12, 30])
def test_the_queue_holds_the_newest_keys_of_both_views_whatever_its_length(length):
    encoder, objective = made(queue=length)
    expected = objective.queue.clone()
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(length, dtype=torch.float64))
    for seed in range(3):
        batch = a_batch(seed)
        keys = projected(objective.target, objective.target_projector, batch)
        expected = torch.cat((*keys, expected))[:length]
        loss_of(encoder, objective, batch)
        torch.testing.assert_close(objective.queue, expected, rtol=0, atol=0)
    assert torch.equal(objective.state_dict()["queue"], expected) and not objective.queue.requires_grad


def test_a_resumed_run_goes_on_with_the_same_queue():
    encoder, objective = made()
    loss_of(encoder, objective, a_batch(0))
    other_encoder, other = made()
    other.load_state_dict(objective.state_dict())
    other_encoder.load_state_dict(encoder.state_dict())
    for seed in (1, 2):
        losses = [loss_of(e, o, a_batch(seed))["loss"] for e, o in ((encoder, objective), (other_encoder, other))]
        assert torch.equal(*losses)


def test_no_more_keys_are_used_than_half_the_images_of_an_epoch():
    encoder, objective = made()
    batch, before = a_batch(1, steps_per_epoch=4), objective.queue.clone()
    q = projected(encoder, objective.projector, batch)
    k = projected(objective.target, objective.target_projector, batch)
    out = loss_of(encoder, objective, batch)
    expected = (formula(q[0], k[1], before[:12], 0.2) + formula(q[1], k[0], before[:12], 0.2)) / 2
    assert float(out["negatives"]) == 12 and abs(float(out["loss"]) - expected) < 1e-12


def test_gradients_reach_online_and_never_the_target():
    encoder, objective = made()
    loss_of(encoder, objective, a_batch(1))["loss"].backward()
    online = [*encoder.parameters(), *objective.projector.parameters()]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in online)
    assert all(p.grad is None for p in [*objective.target.parameters(), *objective.target_projector.parameters()])


@pytest.mark.parametrize("progress", [0.1, 1.0])
def test_the_target_follows_by_a_constant_momentum(progress):
    encoder, objective = made()
    online = [*encoder.parameters(), *objective.projector.parameters()]
    target = [*objective.target.parameters(), *objective.target_projector.parameters()]
    expected = [0.9 * old + 0.1 * new for old, new in zip(copy.deepcopy(target), online, strict=True)]
    objective.after_step(encoder, progress)
    for p, value in zip(target, expected, strict=True):
        torch.testing.assert_close(p.detach(), value.detach())


def test_autocast_leaves_the_loss_in_float32():
    torch.manual_seed(0)
    rows = [nn.functional.normalize(torch.randn(n, 8), dim=1) for n in (6, 6, 30)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrast(*rows, 0.2)
    assert loss.dtype == torch.float32 and torch.equal(loss, contrast(*rows, 0.2))


def test_the_head_of_lightly_is_two_layers_without_batch_norm():
    _, objective = made()
    assert [type(m) for m in objective.projector.layers] == [nn.Linear, nn.ReLU, nn.Linear]
