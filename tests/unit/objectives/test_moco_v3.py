"""MoCo v3: each view's query among the keys of the other view, a predictor, and a patch embedding that stays random."""

import math

import pytest
import torch
from torch import nn

from sandglass.backbones.grid import build
from sandglass.config import resolve
from sandglass.data.loader import Batch, step_generator
from sandglass.engine.optim import parameter_groups
from sandglass.objectives import OBJECTIVES
from sandglass.objectives._parts import cosine
from sandglass.objectives.moco_v3 import MoCoV3, contrast, head

SMALL = {"hidden": 16, "out": 8}


def made(backbone="toy", **changes):
    torch.manual_seed(0)
    encoder = build(backbone, 32, 0, [0.5] * 3, [0.25] * 3).double()
    return encoder, MoCoV3(encoder, resolve(OBJECTIVES, "moco_v3", SMALL | changes), 0).double()


def a_batch():
    views = [torch.rand(6, 3, 32, 32, dtype=torch.float64) for _ in range(2)]
    return Batch(views, torch.zeros(6, dtype=torch.long), torch.arange(6), step_generator(0, 0, 0, "loss"))


def loss_of(encoder, objective, batch):
    return objective.loss(encoder, objective.features(encoder, batch), batch)["loss"]


def formula(queries, keys, temperature):
    total = 0.0
    for i, q in enumerate(queries):
        scores = [math.exp(float(q @ k) / float(q.norm() * k.norm()) / temperature) for k in keys]
        total -= math.log(scores[i] / sum(scores))
    return 2 * temperature * total / len(queries)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_loss_is_the_formula_with_keys_of_the_other_view_only(temperature):
    encoder, objective = made(temperature=temperature)
    with torch.no_grad():
        for p in [*objective.target.parameters(), *objective.target_projector.parameters()]:
            p.mul_(1.1)
    batch = a_batch()
    with torch.no_grad():
        q = [objective.predictor(objective.projector(encoder(v).pooled)) for v in batch.views]
        k = [objective.target_projector(objective.target(v).pooled) for v in batch.views]
    expected = formula(q[0], k[1], temperature) + formula(q[1], k[0], temperature)
    assert abs(float(loss_of(encoder, objective, batch)) - expected) < 1e-10


def test_limits_of_the_loss():
    same, apart = torch.ones(256, 8, dtype=torch.float64), torch.eye(8, dtype=torch.float64)
    assert abs(float(contrast(same, same, 0.2)) - 0.4 * math.log(256)) < 1e-9
    assert abs(float(contrast(apart, 3 * apart, 0.2)) - 0.4 * math.log(1 + 7 * math.exp(-5))) < 1e-9


def test_gradients_reach_online_and_never_the_target():
    encoder, objective = made()
    loss_of(encoder, objective, a_batch()).backward()
    online = [*encoder.parameters(), *objective.projector.parameters(), *objective.predictor.parameters()]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in online)
    assert all(p.grad is None for p in [*objective.target.parameters(), *objective.target_projector.parameters()])


def test_the_target_follows_by_the_cosine_and_stands_still_at_the_end():
    encoder, objective = made()
    with torch.no_grad():
        for p in [*encoder.parameters(), *objective.projector.parameters()]:
            p.add_(1.0)
    target = [*objective.target.parameters(), *objective.target_projector.parameters()]
    for progress in (0.5, 1.0):
        before = [p.clone() for p in target]
        distance = encoder.model.stages[0][0].weight - objective.target.model.stages[0][0].weight
        objective.after_step(encoder, progress)
        for old, new in zip(before, target, strict=True):
            step = (1 - cosine(progress, 0.99, 1.0)) * float(distance.mean())
            torch.testing.assert_close(new - old, torch.full_like(old, step), rtol=0, atol=1e-12)


def test_the_patch_embedding_keeps_its_random_weights():
    encoder, objective = made("vit_tiny_flat")
    frozen = list(encoder.model.patch_embed.parameters())
    trained = {id(p) for group in parameter_groups([encoder, objective], 0.1) for p in group["params"]}
    assert frozen and not any(id(p) in trained for p in frozen) and id(encoder.model.pos_embed) in trained
    loss_of(encoder, objective, a_batch()).backward()
    assert all(p.grad is None for p in frozen)
    assert all(p.grad is not None for name, p in encoder.named_parameters() if "patch_embed" not in name)
    copied = [p.clone() for p in objective.target.model.patch_embed.parameters()]
    objective.after_step(encoder, 0.1)
    for mine, theirs, before in zip(frozen, objective.target.model.patch_embed.parameters(), copied, strict=True):
        assert torch.equal(mine, theirs) and torch.equal(theirs, before)


def test_the_patch_embedding_learns_if_it_may():
    encoder, objective = made("vit_tiny_flat", freeze_patch_embed=False)
    loss_of(encoder, objective, a_batch()).backward()
    assert all(p.grad.abs().sum() > 0 for p in encoder.model.patch_embed.parameters())


def test_a_model_without_patch_embedding_learns_in_whole():
    encoder, _ = made("toy", freeze_patch_embed=True)
    assert all(p.requires_grad for p in encoder.parameters())


def test_heads_have_no_bias_and_end_in_a_batch_norm_without_scale():
    mlp = head([32, 16, 16, 8], last_norm=True)
    linear, norm = nn.Linear, nn.BatchNorm1d
    assert [type(m) for m in mlp.layers] == [linear, norm, nn.ReLU, linear, norm, nn.ReLU, linear, norm]
    assert all(m.bias is None for m in mlp.layers if isinstance(m, linear))
    assert [m.affine for m in mlp.layers if isinstance(m, norm)] == [True, True, False]
    y = mlp(torch.randn(64, 32))
    torch.testing.assert_close(y.mean(0), torch.zeros(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.var(0, unbiased=False), torch.ones(8), rtol=0, atol=1e-2)


def test_default_and_preset_are_the_forms_of_the_authors():
    def form(objective):
        heads = (objective.projector, objective.predictor)
        return [[type(m).__name__ for m in mlp.layers if not isinstance(m, nn.ReLU)] for mlp in heads]

    block = ["Linear", "BatchNorm1d"]
    assert form(made()[1]) == [3 * block, 2 * block]
    assert form(made(preset="resnet")[1]) == [2 * block, [*block, "Linear"]]


def test_autocast_leaves_the_loss_in_float32():
    torch.manual_seed(0)
    rows = torch.randn(6, 8), torch.randn(6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrast(*rows, 0.2)
    assert loss.dtype == torch.float32 and torch.equal(loss, contrast(*rows, 0.2))
