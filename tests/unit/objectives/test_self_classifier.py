"""Self-Classifier: the loss in loops, its values at the limits, gradients through both sides, neighbours."""

import math

import pytest
import torch
from torch import nn

from sandglass.backbones.grid import build
from sandglass.config import resolve
from sandglass.data.loader import Batch, Clock, step_generator
from sandglass.errors import Problem
from sandglass.objectives import OBJECTIVES
from sandglass.objectives.self_classifier import SelfClassifier


def make(classes=3, **settings):
    torch.manual_seed(0)
    encoder = build("toy", 32, 0, [0.5] * 3, [0.25] * 3).double()
    chosen = resolve(OBJECTIVES, "self_classifier", {"hidden": 16, "out": 8, "heads": [1, 2]} | settings)
    return encoder, SelfClassifier(encoder, chosen, classes).double()


def batch(sides=(32, 32, 16, 16), n=6, clock=None, seed=1, index=None):
    torch.manual_seed(seed)
    views = [torch.rand(n, 3, side, side, dtype=torch.float64) for side in sides]
    index = torch.arange(n) if index is None else index
    return Batch(views, torch.zeros(n), index, step_generator(0, 0, 0, "loss"), clock=clock or Clock())


def units(objective, features):
    z = objective.projector(torch.cat([f.pooled for f in features]))
    return [x / x.norm(dim=1, keepdim=True) for x in z.chunk(len(features))]


def by_loops(a, b, row=0.1, column=0.05):
    """The loss of one pair, as it is printed: a is the target's logits, b those of the prediction."""
    n, classes = range(len(a)), range(len(a[0]))
    u = [[math.exp(a[i][c] / column) / sum(math.exp(a[j][c] / column) for j in n) for c in classes] for i in n]
    t = [[u[i][c] / sum(u[i]) for c in classes] for i in n]
    r = [[math.exp(b[i][c] / row) / sum(math.exp(x / row) for x in b[i]) for c in classes] for i in n]
    q = [[len(a) / len(a[0]) * r[i][c] / sum(r[j][c] for j in n) for c in classes] for i in n]
    return -sum(t[i][c] * math.log(q[i][c] + 1e-12) for i in n for c in classes) / len(a)


@pytest.mark.parametrize("sides", [(32, 32), (32, 32, 16, 16)])
def test_loss_equals_the_formula_in_loops_without_pairs_of_small_crops(sides):
    encoder, objective = make()
    seen = batch(sides)
    features = objective.features(encoder, seen)
    loss = objective.loss(encoder, features, seen)["loss"]
    z, of_heads = units(objective, features), []
    for head in objective.heads:
        s = [(x @ (head / head.norm(dim=1, keepdim=True)).T).tolist() for x in z]
        views = range(len(sides))
        pairs = [(a, b) for a in views for b in views if a != b and not (a >= 2 and b >= 2)]
        assert len(pairs) == {2: 2, 4: 10}[len(sides)]
        of_heads.append(sum(by_loops(s[a], s[b]) for a, b in pairs) / len(pairs))
    assert float(loss) == pytest.approx(sum(of_heads) / 2, rel=1e-8)


def test_values_at_the_limits():
    _, objective = make()
    nothing = torch.zeros(256, 2, 10, dtype=torch.float64)
    balanced = nn.functional.one_hot(torch.arange(256) % 10, 10).double()[:, None].expand(-1, 2, -1)
    one_class = torch.eye(10, dtype=torch.float64)[0].expand(256, 2, 10)
    for s in (nothing, one_class):  # collapse is no minimum
        torch.testing.assert_close(objective.pairwise(s), torch.full((2, 2), math.log(10), dtype=torch.float64))
    assert objective.pairwise(balanced).max() == pytest.approx(6e-4, rel=0.1)
    wrong = objective.pairwise(torch.stack((balanced[:, 0], balanced[:, 0].roll(1, 1)), 1))
    assert wrong[0, 1] > math.log(10)


def test_gradients_flow_through_the_target_too():
    _, objective = make()
    s = torch.randn(5, 2, 4, dtype=torch.float64, requires_grad=True)
    loss = objective.pairwise(s)[0, 1]
    target, prediction = torch.autograd.grad(loss, s)[0].unbind(1)
    assert target.abs().max() > 1e-3 and prediction.abs().max() > 1e-3
    small = 0.1 * torch.randn(5, 2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(objective.pairwise, small.requires_grad_())


def test_gradients_reach_encoder_projector_and_every_head():
    encoder, objective = make()
    seen = batch()
    objective.loss(encoder, objective.features(encoder, seen), seen)["loss"].backward()
    for p in [*encoder.model.stages.parameters(), *objective.parameters()]:
        assert p.grad is not None and p.grad.isfinite().all()
    assert all(head.grad.abs().sum() > 0 for head in objective.heads)


def test_the_scale_of_a_class_is_fixed():
    encoder, objective = make()
    seen = batch()
    features = objective.features(encoder, seen)
    before = objective.loss(encoder, features, seen)["loss"]
    with torch.no_grad():
        for head in objective.heads:
            head.mul_(torch.rand(len(head), 1, dtype=torch.float64) + 0.5)
    torch.testing.assert_close(objective.loss(encoder, features, seen)["loss"], before)


def test_heads_are_multiples_of_the_classes_and_these_must_be_known():
    encoder, _ = make()
    settings = resolve(OBJECTIVES, "self_classifier", {"hidden": 16, "out": 8})
    assert [len(head) for head in SelfClassifier(encoder, settings, 10).heads] == [10, 20, 40, 80]
    assert [len(head) for head in SelfClassifier(encoder, settings | {"classes": 5}, 0).heads] == [5, 10, 20, 40]
    with pytest.raises(Problem, match="0 classes") as problem:
        SelfClassifier(encoder, settings, 0)
    assert "objectives.self_classifier.classes" in problem.value.fix


def test_the_first_view_becomes_its_nearest_other_neighbour_once_the_queue_is_full():
    _, objective = make(queue=8, queue_from_epoch=2)
    torch.manual_seed(3)
    rows = nn.functional.normalize(torch.randn(5, 4, 8, dtype=torch.float64), dim=2)
    asked = [torch.tensor([4 * (step % 3) + i for i in range(4)]) for step in range(5)]
    passed = []
    for step in range(5):  # 2 steps an epoch: full after two steps, used from the fifth
        seen = batch((32, 32), n=4, clock=Clock(step, 10, 2), index=asked[step])
        found = objective.neighbours(rows[step], seen)
        if step < 4:
            assert torch.equal(found, rows[step])
        else:
            for row, index, nearest in zip(rows[step], asked[step], found, strict=True):
                others = [(float(row @ other), other) for other, owner in passed[-8:] if owner != index]
                torch.testing.assert_close(nearest, max(others, key=lambda pair: pair[0])[1])
        passed += zip(rows[step], asked[step].tolist(), strict=True)
    assert {"queue", "owners"} <= objective.state_dict().keys()


def test_an_image_is_not_its_own_neighbour():
    _, objective = make(queue=4, queue_from_epoch=0)
    z = nn.functional.normalize(torch.randn(4, 8, dtype=torch.float64), dim=1)
    objective.neighbours(z, batch((32, 32), n=4, clock=Clock(0, 10, 2)))
    found = objective.neighbours(z, batch((32, 32), n=4, clock=Clock(1, 10, 2)))
    assert all((found[i] - z[i]).abs().max() > 1e-3 and (found[i] - z).abs().sum(1).min() == 0 for i in range(4))


def test_what_tells_of_collapse():
    encoder, objective = make(classes=4)
    seen = batch((32, 32), n=8)
    out = objective.loss(encoder, objective.features(encoder, seen), seen)
    assert objective.spread() > objective.alarm and float(out["classes_used_of_4"]) > 1
    nn.init.zeros_(objective.projector.layers[-1].weight)
    nn.init.normal_(objective.projector.layers[-1].bias)
    out = objective.loss(encoder, objective.features(encoder, seen), seen)
    assert objective.spread() < objective.alarm and float(out["classes_used_of_4"]) == 1


def test_assign_is_by_the_first_head():
    encoder, objective = make()
    objective.eval()
    scores = objective.assign(torch.randn(5, encoder.width, dtype=torch.float64))
    assert scores.shape == (5, 3) and scores.abs().max() <= 1
