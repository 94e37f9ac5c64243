"""Weight decay touches weights only; the schedule is what its formula says."""

import math

import pytest
import torch
from lightly.utils.lars import LARS as Reference
from torch import nn

from sandglass.backbones.grid import build
from sandglass.engine.optim import LARS, parameter_groups, set_rates
from sandglass.engine.optim import build as build_optimizer
from sandglass.engine.schedule import learning_rate_factor

MEAN, STD = [0.5] * 3, [0.25] * 3


def decayed(encoder):
    groups = parameter_groups([encoder], 0.05)
    ids = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    every = {id(p) for g in groups for p in g["params"]}
    assert every == {id(p) for p in encoder.parameters() if p.requires_grad}, "each trainable parameter once"
    return {name for name, p in encoder.model.named_parameters() if id(p) in ids}


def test_no_decay_on_norms_biases_positions_and_tokens():
    encoder = build("vit_tiny_patch16_224", 32, 10, MEAN, STD, {"patch_size": 8, "depth": 1, "embed_dim": 24})
    names = decayed(encoder)
    assert {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "head.weight"} <= names
    assert not any(word in name for name in names for word in ("pos_embed", "cls_token", "norm", "bias"))


def test_swin_bias_tables_are_not_decayed():
    arguments = {"patch_size": 2, "window_size": 4, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2)}
    names = decayed(build("swin_tiny_patch4_window7_224", 32, 0, MEAN, STD, arguments))
    assert names and not any("relative_position_bias_table" in name for name in names)


def test_frozen_parameters_are_in_no_group_and_prefixes_scale():
    net = nn.ModuleDict(
        {"stem": nn.Linear(2, 2), "body": nn.Linear(2, 2), "off": nn.Linear(2, 2).requires_grad_(False)}
    )
    groups = parameter_groups([net], 0.1, {"stem": 0.1})
    found = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    assert len(found) == 4
    assert found[id(net["stem"].weight)] == 0.1 and found[id(net["body"].weight)] == 1.0


def test_adamw_leaves_undecayed_group_alone_at_zero_gradient():
    net = nn.Linear(3, 3)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = build_optimizer(parameter_groups([net], 0.5), "adamw", lr=0.1, momentum=0.9)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(net.bias, before["bias"])
    assert torch.allclose(net.weight, before["weight"] * (1 - 0.1 * 0.5))


def test_lars_is_that_of_lightly():
    torch.manual_seed(0)
    shapes = [(4, 3), (5,), (2, 2), (3, 3)]
    both = [[nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in shapes] for _ in range(2)]
    optimizers = []
    for own, kind in zip(both, (Reference, LARS)):
        with torch.no_grad():
            for p, same in zip(own, both[0]):
                p.copy_(same)
            own[2].zero_()  # a weight of size 0 is not scaled
        groups = [{"params": own[:3], "weight_decay": 0.1}, {"params": own[3:], "weight_decay": 0.0}]
        optimizers.append(kind(groups, lr=1.0, momentum=0.9))
    for step in range(5):
        gradients = [torch.randn(s, dtype=torch.float64) * (step != 2 or len(s) > 1) for s in shapes]  # nor a gradient
        for own, optimizer in zip(both, optimizers):
            for p, gradient in zip(own, gradients):
                p.grad = gradient.clone()
            own[3].grad = None if step == 0 else own[3].grad
            for group in optimizer.param_groups:
                group["lr"] = 2.0 / (step + 1)
            optimizer.step()
        for p, wanted in zip(both[1], both[0]):
            torch.testing.assert_close(p, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_fused_steps_are_torchs_own_in_a_loop_whatever_the_layout(name):
    torch.manual_seed(0)
    shapes = [(4, 3, 3, 3), (5, 2), (7,)]
    one, other = ([nn.Parameter(torch.zeros(s, dtype=torch.float64)) for s in shapes] for _ in range(2))
    one[0].data = one[0].data.contiguous(memory_format=torch.channels_last)
    fused = build_optimizer(parameter_groups([nn.ParameterList(one)], 0.1), name, lr=1.0, momentum=0.9)
    kind, more = {
        "adamw": (torch.optim.AdamW, {}),
        "adam": (torch.optim.Adam, {}),
        "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    }[name]
    groups = [{"params": group, "weight_decay": decay} for group, decay in ((other[:2], 0.1), (other[2:], 0.0))]
    looped = kind(groups, lr=1.0, foreach=False, **more)
    for step in range(4):
        set_rates(fused, 2.0**-4, 2.0**-step)  # exact in float32, in which rates are kept
        for group in looped.param_groups:
            group["lr"] = 2.0 ** -(4 + step)
        for a, b in zip(one, other):
            b.grad = torch.randn_like(b)
            a.grad = torch.empty_like(a).copy_(b.grad)
        fused.step()
        looped.step()
        for a, b in zip(one, other):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_every_group_has_its_own_rate():
    net = nn.ModuleDict({"stem": nn.Linear(2, 2), "head": nn.Linear(2, 2), "body": nn.Linear(2, 2)})
    groups = parameter_groups([net], 0.0, {"stem": 0.1}, constant=("head",))
    optimizer = build_optimizer(groups, "sgd", lr=1.0, momentum=0.0)
    set_rates(optimizer, peak=2.0, factor=0.5)
    found = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    rates = {name: found[id(layer.weight)] for name, layer in net.items()}
    assert rates == {"stem": pytest.approx(0.1), "head": 2.0, "body": 1.0}


def test_every_optimizer_descends():
    for name, lr in (("adamw", 0.1), ("adam", 0.1), ("sgd", 0.1), ("lars", 0.1)):
        torch.manual_seed(0)
        net = nn.Linear(4, 1)
        x, y = torch.randn(64, 4), torch.randn(64, 1)
        optimizer = build_optimizer(parameter_groups([net], 1e-4), name, lr=lr, momentum=0.9)
        first = None
        for _ in range(20):
            loss = (net(x) - y).square().mean()
            first = first if first is not None else float(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert float((net(x) - y).square().mean()) < first, name


def test_schedule_by_hand():
    factors = [learning_rate_factor(step, 10, 2, "cosine") for step in range(10)]
    assert math.isclose(factors[0], 1 / 3) and math.isclose(factors[1], 2 / 3) and factors[2] == 1.0
    assert math.isclose(factors[6], 0.5)
    assert factors[2:] == sorted(factors[2:], reverse=True) and factors[-1] > 0
    assert {learning_rate_factor(step, 10, 0, "constant") for step in range(10)} == {1.0}


@pytest.mark.parametrize(
    ("name", "own", "more"),
    [
        ("adamw", torch.optim.AdamW, {"fused": True}),
        ("adam", torch.optim.Adam, {"fused": True}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "fused": True}),
        ("lars", LARS, {"momentum": 0.9}),
    ],
)
def test_what_is_left_out_for_a_compiler_changes_no_bit(name, own, more):
    nets = [nn.Linear(3, 3), nn.Linear(3, 3)]
    nets[1].load_state_dict(nets[0].state_dict())
    groups = [parameter_groups([net], 0.1) for net in nets]
    optimizers = build_optimizer(groups[0], name, lr=0.1, momentum=0.9), own(groups[1], lr=0.1, **more)
    for step in range(3):
        images = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            net(images).square().sum().backward()
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    assert not any(p.grad_fn for p in nets[0].parameters()), "a step leaves no graph"
