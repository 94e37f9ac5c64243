"""DINO: the loss in loops, a teacher that only follows and is what is judged, and both ways to collapse."""

import copy
import math

import pytest
import torch
from torch import nn

from sandglass.backbones.grid import build
from sandglass.config import resolve
from sandglass.data.loader import Batch, Clock, step_generator
from sandglass.objectives import OBJECTIVES
from sandglass.objectives._base import information
from sandglass.objectives._parts import cosine
from sandglass.objectives.dino import DINO

LATE = Clock(90, 100, 10)


def make(backbone="toy", **settings):
    torch.manual_seed(0)
    encoder = build(backbone, 32, 0, [0.5] * 3, [0.25] * 3).double()
    chosen = resolve(OBJECTIVES, "dino", {"hidden": 16, "bottleneck": 8, "out": 12} | settings)
    return encoder, DINO(encoder, chosen, 0).double()


def batch(sides=(32, 32, 16, 16), n=6, clock=LATE):
    torch.manual_seed(1)
    views = [torch.rand(n, 3, side, side, dtype=torch.float64) for side in sides]
    return Batch(views, torch.zeros(n), torch.arange(n), step_generator(0, 0, 0, "loss"), clock=clock)


@pytest.mark.parametrize("sides", [(32, 32), (32, 32, 16, 16)])
def test_loss_equals_the_formula_in_loops(sides):
    encoder, objective = make(teacher_temperature=0.1, teacher_temperature_end=0.1)
    with torch.no_grad():
        objective.centre.copy_(torch.linspace(-0.1, 0.1, 12))
        objective.teacher_head.last.add_(0.01 * torch.randn(12, 8))
    seen, centre = batch(sides), objective.centre.clone()
    features = objective.features(encoder, seen)
    out = objective.loss(encoder, features, seen)
    s = objective.head(torch.cat([f.pooled for f in features])).detach().chunk(len(sides))
    t = objective.teacher_head(objective.teacher(torch.cat(seen.views[:2])).pooled)
    terms, entropies = [], []
    for i, scores in enumerate(t.chunk(2)):
        for n in range(6):
            wanted = [math.exp((scores[n, k] - centre[k]) / 0.1) for k in range(12)]
            wanted = [x / sum(wanted) for x in wanted]
            entropies.append(-sum(p * math.log(p) for p in wanted))
            for v in range(len(sides)):
                if v != i:
                    total = sum(math.exp(s[v][n, k] / 0.1) for k in range(12))
                    terms.append(-sum(wanted[k] * (s[v][n, k] / 0.1 - math.log(total)) for k in range(12)))
    assert float(out["loss"]) == pytest.approx(float(sum(terms)) / len(terms), rel=1e-9)
    assert float(out["teacher_entropy"]) == pytest.approx(sum(entropies) / 12, rel=1e-9)
    assert float(out["kl"]) == pytest.approx(float(out["loss"]) - sum(entropies) / 12, rel=1e-6)
    torch.testing.assert_close(objective.centre, 0.9 * centre + 0.1 * t.mean(0))  # after use, over both large views


def test_uninformative_outputs_cost_ln_k_and_both_collapses_tell_nothing():
    encoder, objective = make()
    for head in (objective.head, objective.teacher_head):
        nn.init.ones_(head.last)  # all scores the same
    seen = batch()
    out = objective.loss(encoder, objective.features(encoder, seen), seen)
    assert float(out["loss"]) == pytest.approx(math.log(12)) and float(out["teacher_entropy"]) == pytest.approx(
        2.4849, 1e-4
    )
    assert objective.spread() < objective.alarm
    encoder, objective = make(teacher_temperature=0.001, teacher_temperature_end=0.001)
    nn.init.zeros_(objective.teacher_head.layers.layers[-1].weight)
    nn.init.normal_(objective.teacher_head.layers.layers[-1].bias)  # the same, and sure of it
    out = objective.loss(encoder, objective.features(encoder, seen), seen)
    assert float(out["teacher_entropy"]) < 0.1 and objective.spread() < objective.alarm


def test_information_is_what_rows_tell_of_images():
    assert float(information(torch.eye(8))) == pytest.approx(math.log(8))
    assert float(information(torch.eye(8)[[0, 0, 1, 1]])) == pytest.approx(math.log(2))
    for same in (torch.full((5, 8), 1 / 8), torch.eye(8)[[3] * 5]):
        assert float(information(same)) == pytest.approx(0, abs=1e-6)


def test_gradients_reach_the_student_and_never_the_teacher():
    encoder, objective = make()
    seen = batch()
    objective.loss(encoder, objective.features(encoder, seen), seen)["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.model.stages.parameters())
    assert all(p.grad is not None for p in objective.head.parameters())
    assert all(p.grad is None for p in [*objective.teacher.parameters(), *objective.teacher_head.parameters()])


@pytest.mark.parametrize(
    ("clock", "rests"),
    [(Clock(0, 1000, 20), True), (Clock(19, 1000, 20), True), (Clock(20, 1000, 20), False), (Clock(2, 20, 10), False)],
)
def test_the_last_layer_rests_for_an_epoch_or_a_tenth_of_a_short_run(clock, rests):
    encoder, objective = make()
    seen = batch(clock=clock)
    objective.loss(encoder, objective.features(encoder, seen), seen)["loss"].backward()
    assert (objective.head.last.grad is None) == rests
    assert all(p.grad is not None for p in objective.head.layers.parameters())


def test_the_teacher_starts_as_a_copy_with_statistics_of_its_own_and_is_judged():
    encoder, objective = make()
    assert objective.judged(encoder) is objective.teacher
    for a, b in ((encoder, objective.teacher), (objective.head, objective.teacher_head)):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    seen = batch()
    alone = copy.deepcopy(encoder)
    alone(torch.cat(seen.views[:2]))  # what the teacher sees, and the student does not see alone
    objective.loss(encoder, objective.features(encoder, seen), seen)
    theirs = dict(objective.teacher.named_buffers())
    assert all(torch.equal(theirs[name], value) for name, value in alone.named_buffers())
    assert any(not torch.equal(theirs[name], value) for name, value in encoder.named_buffers())


@pytest.mark.parametrize(("steps", "start"), [(100, 0.98), (2000, 0.99), (7400, 1 - 1 / 370), (10**6, 0.998)])
def test_momentum_starts_by_the_length_of_the_run_and_ends_at_one(steps, start):
    encoder, objective = make()
    seen = batch((32, 32), clock=Clock(0, steps, 10))
    objective.loss(encoder, objective.features(encoder, seen), seen)
    before = [p.clone() for p in objective.teacher.parameters()]
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(1.0)
    objective.after_step(encoder, 0.5)
    for old, new in zip(before, objective.teacher.parameters(), strict=True):
        torch.testing.assert_close(new - old, torch.full_like(old, 1 - cosine(0.5, start, 1.0)))
    before = [p.clone() for p in objective.teacher_head.parameters()]
    nn.init.normal_(objective.head.last)
    objective.after_step(encoder, 1.0)
    assert all(map(torch.equal, before, objective.teacher_head.parameters()))


def test_the_teachers_temperature_warms_up_linearly():
    _, objective = make(teacher_temperature=0.04, teacher_temperature_end=0.07, warm_share=0.2)
    found = [objective.teacher_temperature(t) for t in (0.0, 0.1, 0.2, 0.9)]
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert make(warm_share=0.0)[1].teacher_temperature(0.0) == 0.04


@pytest.mark.parametrize(("backbone", "norm"), [("toy", True), ("vit_tiny_flat", False)])
def test_the_head_has_batch_norm_where_the_backbone_has(backbone, norm):
    objective = make(backbone)[1]
    kinds = [type(module) for module in objective.head.modules()]
    assert kinds.count(nn.BatchNorm1d) == (2 if norm else 0) and kinds.count(nn.GELU) == 2
    biases = [module.bias is not None for module in objective.head.modules() if isinstance(module, nn.Linear)]
    assert biases == [not norm, not norm, True]


def test_assign_is_the_teachers_centred_score():
    encoder, objective = make()
    objective.eval()
    pooled = torch.randn(40, encoder.width, dtype=torch.float64)
    scores = objective.assign(pooled)
    assert scores.shape == (40, 12)
    objective.centre[scores[0].argmax()] += 10
    assert objective.assign(pooled).argmax(1)[0] != scores.argmax(1)[0]
