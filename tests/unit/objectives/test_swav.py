"""SwAV: the loss and its codes in loops, prototypes that rest, a queue that forgets in order, a guard that fires."""

import math

import pytest
import torch
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn
from torch import nn

from sandglass.backbones.grid import Features, build
from sandglass.config import resolve
from sandglass.data.loader import Batch, Clock, step_generator
from sandglass.errors import Problem
from sandglass.objectives import OBJECTIVES
from sandglass.objectives.swav import SwAV, sinkhorn

LATE = Clock(90, 100, 10)


def make(classes=3, **settings):
    torch.manual_seed(0)
    encoder = build("toy", 32, 0, [0.5] * 3, [0.25] * 3).double()
    chosen = resolve(OBJECTIVES, "swav", {"hidden": 16, "out": 8, "prototypes": 12} | settings)
    return encoder, SwAV(encoder, chosen, classes).double()


def batch(sides=(32, 32, 16, 16), n=6, clock=LATE, seed=1):
    torch.manual_seed(seed)
    views = [torch.rand(n, 3, side, side, dtype=torch.float64) for side in sides]
    return Batch(views, torch.zeros(n), torch.arange(n), step_generator(0, 0, 0, "loss"), clock=clock)


def units(objective, features):
    """The projections of all views, which share batch norm, as unit rows."""
    z = objective.projector(torch.cat([f.pooled for f in features]))
    return [x / x.norm(dim=1, keepdim=True) for x in z.chunk(len(features))]


def codes_by_loops(scores, epsilon, iterations):
    q = [[math.exp(s / epsilon) for s in row] for row in scores.tolist()]
    for _ in range(iterations):
        for k in range(len(q[0])):
            total = sum(row[k] for row in q)
            for row in q:
                row[k] /= total * len(q[0])
        for row in q:
            total = sum(row)
            row[:] = [x / total for x in row]
    return q


@pytest.mark.parametrize("sides", [(32, 32), (32, 32, 16), (32, 32, 16, 16)])
def test_loss_equals_the_formula_in_loops(sides):
    encoder, objective = make(epsilon=0.2, later_epsilon=0.2)
    seen = batch(sides)
    features = objective.features(encoder, seen)
    loss = objective.loss(encoder, features, seen)["loss"]
    scores = [(z @ objective.prototypes.weight.T).detach() for z in units(objective, features)]
    terms = []
    for i in (0, 1):
        q = codes_by_loops(scores[i], float(objective.epsilon), 3)
        for v in range(len(sides)):
            if v != i:
                p = torch.exp(scores[v] / 0.1) / torch.exp(scores[v] / 0.1).sum(1, keepdim=True)
                terms.append(sum(-q[n][k] * math.log(p[n, k]) for n in range(6) for k in range(12)) / 6)
    assert float(loss) == pytest.approx(sum(terms) / (2 * (len(sides) - 1)), rel=1e-7)


def test_codes_are_lightlys_and_no_epsilon_overflows():
    torch.manual_seed(0)
    scores = nn.functional.normalize(torch.randn(40, 8), dim=1) @ nn.functional.normalize(torch.randn(8, 30), dim=0)
    expected = lightly_sinkhorn(scores.double(), iterations=3, epsilon=0.05)
    torch.testing.assert_close(sinkhorn(scores.double(), 0.05, 3), expected, rtol=1e-9, atol=1e-12)
    sharp = sinkhorn(scores, 0.005, 3)  # exp(1 / 0.005) is no float32
    assert sharp.isfinite().all() and torch.allclose(sharp.sum(1), torch.ones(40))
    many = sinkhorn(scores, 0.05, 200)
    torch.testing.assert_close(many.sum(0), torch.full((30,), 40 / 30), rtol=1e-3, atol=0)  # shared equally


def test_swav_guard():
    """The same features for all: uniform codes, L = ln K whatever the network, and the guard fires."""
    encoder, objective = make(out=8, prototypes=8)
    with torch.no_grad():
        objective.prototypes.weight.copy_(torch.eye(8))
        objective.projector.layers[-1].weight.zero_()
        objective.projector.layers[-1].bias.fill_(1.0)
    seen = batch((32, 32))
    out = objective.loss(encoder, objective.features(encoder, seen), seen)
    z = torch.full((6, 8), 8**-0.5, dtype=torch.float64)
    torch.testing.assert_close(objective.codes(z, LATE), torch.full((6, 8), 1 / 8, dtype=torch.float64))
    assert float(out["loss"]) == pytest.approx(math.log(8)) and float(out["code_entropy"]) == pytest.approx(1)
    assert objective.spread() < objective.alarm
    assert "epsilon: 0.02" in objective.remedy and "prototypes: 4" in objective.remedy


def test_each_of_the_guards_three_limits_is_enough():
    _, objective = make(prototypes=200)
    nearest = torch.arange(400)
    healthy = {
        "loss": torch.tensor(1.0),
        "z": nn.functional.normalize(torch.randn(400, 8), dim=1),
        "scores": nn.functional.one_hot(nearest % 200).float(),
    }
    sick = {
        "loss": torch.tensor(0.995 * math.log(200)),
        "z": torch.ones(400, 8) + 0.01 * healthy["z"],
        "scores": nn.functional.one_hot(nearest % 3, 200).float(),  # fewer than a fiftieth of the prototypes
    }
    objective.guard(**healthy)
    assert objective.spread() > objective.alarm
    for which in sick:
        objective.guard(**healthy | {which: sick[which]})
        assert objective.spread() < objective.alarm


@pytest.mark.parametrize(
    ("clock", "rests"),
    [
        (Clock(0, 10_000, 20), True),
        (Clock(499, 10_000, 20), True),
        (Clock(500, 10_000, 20), False),
        (Clock(700, 10_000, 800), True),  # an epoch at least
        (Clock(99, 1000, 20), True),
        (Clock(100, 1000, 20), False),  # a tenth of the run at most
    ],
)
def test_prototypes_rest_at_first_and_gradients_reach_the_rest(clock, rests):
    encoder, objective = make(bias=True)
    seen = batch(clock=clock)
    objective.loss(encoder, objective.features(encoder, seen), seen)["loss"].backward()
    assert all((p.grad is None) == rests for p in objective.prototypes.parameters())
    assert all(p.grad.abs().sum() > 0 for name, p in objective.projector.named_parameters() if name[-4:] != "bias")
    assert all(p.grad is not None for p in encoder.model.stages.parameters())


def test_codes_are_constants():
    _, objective = make()
    z = nn.functional.normalize(torch.randn(6, 8, dtype=torch.float64), dim=1).requires_grad_()
    assert objective.scores(z).requires_grad and not objective.codes(z, LATE).requires_grad


def test_queue_keeps_the_latest_and_is_scored_by_the_prototypes_of_now():
    encoder, objective = make(queue=10, queue_from=0.5)
    passed = []
    for step in range(4):  # batches of 6: the queue is full after two, and wraps in the middle of one
        seen = batch((32, 32), clock=Clock(step, 6, 1), seed=step)
        features = objective.features(encoder, seen)
        passed.append(units(objective, features)[0].detach())
        used = objective.queue.clone()
        before = units(objective, features)[1].detach()
        whole = torch.cat([before, used]) if step >= 3 else before
        codes = objective.codes(before, seen.clock)
        expected = sinkhorn(whole @ objective.prototypes.weight.detach().T, objective.epsilon, 3)[:6]
        torch.testing.assert_close(codes, expected)
        objective.loss(encoder, features, seen)
        nn.init.normal_(objective.prototypes.weight)
        objective.after_step(encoder, 0.5)
    latest = torch.cat(passed)[-10:]
    assert all((latest - row).abs().sum(1).min() < 1e-12 for row in objective.queue)
    assert "queue" in objective.state_dict()


def test_a_batch_larger_than_the_queue_fills_it_with_its_last_rows():
    encoder, objective = make(queue=4, queue_from=0.0)
    seen = batch((32, 32), clock=Clock(5, 10, 1))
    features = objective.features(encoder, seen)
    objective.loss(encoder, features, seen)
    latest = units(objective, features)[0][-4:]
    assert all((latest - row).abs().sum(1).min() < 1e-12 for row in objective.queue)


def test_epsilon_grows_once_late_and_only_if_codes_are_sure():
    for share, sure, expected in ((0.2, True, 0.03), (0.4, True, 0.05), (0.4, False, 0.03)):
        encoder, objective = make(out=12)
        with torch.no_grad():
            objective.prototypes.weight.copy_(torch.eye(12))
            if not sure:
                objective.projector.layers[-1].weight.zero_()
        seen = batch((32, 32), clock=Clock(int(share * 100), 100, 10))
        out = objective.loss(encoder, objective.features(encoder, seen), seen)
        assert (float(out["code_entropy"]) < 0.8) == sure
        assert float(objective.epsilon) == pytest.approx(expected)


def test_prototypes_stay_on_the_sphere_and_their_number_follows_the_classes():
    for classes, count in ((0, 100), (2, 100), (10, 300), (200, 500)):
        assert len(make(classes, prototypes=0)[1].prototypes.weight) == count
    encoder, objective = make()
    with torch.no_grad():
        objective.prototypes.weight.mul_(3.0)
    objective.after_step(encoder, 0.1)
    torch.testing.assert_close(objective.prototypes.weight.norm(dim=1), torch.ones(12, dtype=torch.float64))
    assert objective.prototypes.bias is None


def test_assign_is_by_the_nearest_prototype():
    encoder, objective = make()
    pooled = torch.randn(5, encoder.width, dtype=torch.float64)
    objective.eval()
    z = units(objective, [Features(pooled, pooled, pooled)])[0]
    assert torch.equal(objective.assign(pooled).argmax(1), (z @ objective.prototypes.weight.T).argmax(1))


@pytest.mark.parametrize("sides", [(32,), (16, 32, 32), (32, 16)])
def test_views_without_two_large_ones_first_are_refused(sides):
    encoder, objective = make()
    seen = batch(sides)
    with pytest.raises(Problem, match="two large views"):
        objective.loss(encoder, objective.features(encoder, seen), seen)
