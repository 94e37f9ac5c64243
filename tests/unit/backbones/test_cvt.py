"""CvT: its count by formula, a block by hand, where the class token is, and where the norms are."""

import math
from itertools import pairwise

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models._manipulate import group_parameters
from torch import nn

from sandglass.backbones.cvt import Block, ConvAttention

NARROW = {"embed_dims": (6, 8, 12), "num_heads": (1, 2, 3), "depths": (1, 1, 2), "num_classes": 5}


def by_formula(dims, depths, classes):
    count = dims[-1]  # class token
    for (before, d), depth in zip(pairwise((3, *dims)), depths):
        count += 9 * before * d + d + 2 * d  # convolution with bias, LN
        count += depth * (12 * d * d + 46 * d)
    return count + 2 * dims[-1] + (dims[-1] + 1) * classes


@pytest.mark.parametrize(
    ("dims", "depths", "classes"),
    [((64, 192, 312), (1, 3, 11), 10), ((64, 192, 312), (1, 2, 11), 100), ((6, 8, 12), (1, 1, 2), 5)],
)
def test_parameters(dims, depths, classes):
    with torch.device("meta"):
        model = timm.create_model("cvt312", embed_dims=dims, depths=depths, num_classes=classes, num_heads=(1, 2, 3))
    assert sum(p.numel() for p in model.parameters()) == by_formula(dims, depths, classes)


@pytest.mark.parametrize("prefix", [0, 1])
def test_attention_by_hand(prefix):
    torch.manual_seed(0)
    attention = ConvAttention(4, 2, 0.3).double().eval()
    for name, values in attention.named_parameters():
        nn.init.normal_(values, mean=float("weight" in name and ".1." in name), std=0.5)
    h, w = 4, 6
    x = torch.randn(2, prefix + h * w, 4, dtype=torch.float64)

    def convolved(conv, stride):
        """The class token as it is, and 3 x 3 windows, channel by channel."""
        rows = [x[:, n] for n in range(prefix)]
        for i in range(0, h, stride):
            for j in range(0, w, stride):
                total = torch.zeros(2, 4, dtype=torch.float64)
                for a in (-1, 0, 1):
                    for b in (-1, 0, 1):
                        if 0 <= i + a < h and 0 <= j + b < w:
                            total += conv[0].weight[:, 0, a + 1, b + 1] * x[:, prefix + (i + a) * w + j + b]
                rows.append(total / math.sqrt(1 + 1e-5) * conv[1].weight + conv[1].bias)  # fresh running statistics
        return torch.stack(rows, 1)

    q = attention.q(convolved(attention.conv_q, 1))
    k, v = attention.k(convolved(attention.conv_k, 2)), attention.v(convolved(attention.conv_v, 2))
    assert q.shape[1] == prefix + 24 and k.shape[1] == v.shape[1] == prefix + 6
    heads = []
    for c in (slice(0, 2), slice(2, 4)):
        heads.append((0.3 * q[..., c] @ k[..., c].transpose(1, 2)).softmax(-1) @ v[..., c])
    assert torch.allclose(attention(x, h, w), attention.proj(torch.cat(heads, -1)))


def test_a_block_norms_its_branches_and_not_its_stream():
    torch.manual_seed(0)
    block, x = Block(4, 2, 2.0, 0.5, 0.0).eval(), 10 * torch.randn(2, 16, 4)
    y = x + block.attn(F.layer_norm(x, (4,)), 4, 4)
    expected = y + block.mlp(F.layer_norm(y, (4,)))
    assert torch.allclose(block(x, 4, 4), expected, atol=1e-5)
    for linear in (block.attn.proj, block.mlp.fc2):
        nn.init.zeros_(linear.weight), nn.init.zeros_(linear.bias)
    assert torch.equal(block(x, 4, 4), x)


def test_attention_is_scaled_by_the_width_of_tokens_or_of_heads():
    for said, scales in (("dim", (6, 8, 12)), ("head", (6, 4, 4))):
        model = timm.create_model("cvt312", **NARROW, attn_scale=said)
        assert [stage.blocks[0].attn.scale for stage in model.stages] == [width**-0.5 for width in scales]


def test_convolutions_overlap_and_are_normed():
    torch.manual_seed(0)
    model = timm.create_model("cvt312", **{**NARROW, "depths": (0, 0, 0)}).eval()
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    _, maps = model.forward_intermediates(images)
    assert [tuple(m.shape[1:]) for m in maps] == [(6, 32, 32), (8, 16, 16), (12, 8, 8)]
    assert all(torch.allclose(m.mean(1), torch.zeros(()), atol=1e-5) for m in maps)
    (gradient,) = torch.autograd.grad((maps[-1][0, :, 3, 4] * torch.randn(12)).sum(), images)
    rows, columns = gradient[0].abs().sum(0).nonzero().unbind(1)
    assert set(rows.tolist()) == set(range(8, 17)) and set(columns.tolist()) == set(range(12, 21))


def test_the_class_token_lives_in_the_last_stage_and_the_head_reads_it():
    torch.manual_seed(0)
    model = timm.create_model("cvt312", **NARROW).eval()
    assert [stage.cls_token is not None for stage in model.stages] == [False, False, True]
    assert model.no_weight_decay() == {"stages.2.cls_token"} <= dict(model.named_parameters()).keys()
    images = torch.randn(2, 3, 20, 28)
    tokens = model.forward_features(images)
    assert tokens.shape == (2, 1 + 5 * 7, 12) and torch.allclose(tokens.mean(2), torch.zeros(()), atol=1e-5)
    assert torch.allclose(model(images), model.head(tokens[:, 0]), atol=1e-6)
    (last,) = model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
    assert torch.allclose(last, tokens[:, 1:].transpose(1, 2).unflatten(2, (5, 7)), atol=1e-6)
    model.reset_classifier(3, "avg")
    assert torch.allclose(model(images), model.head(tokens[:, 1:].mean(1)), atol=1e-6)


def test_pruned_stages_are_gone_and_the_rest_is_as_it_was():
    model, x = timm.create_model("cvt312", **NARROW).eval(), torch.randn(1, 3, 16, 16)
    middle = model.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([1]) == [1] and len(model.stages) == 2
    assert torch.equal(model.forward_features(x).transpose(1, 2).unflatten(2, (8, 8)), middle)


@pytest.mark.parametrize("coarse", [False, True])
def test_layer_decay_groups_run_from_stem_to_head(coarse):
    model = timm.create_model("cvt312", **NARROW)
    groups = list(group_parameters(model, model.group_matcher(coarse)).values())
    assert sum(map(len, groups)) == len(list(model.parameters()))
    places = {name: i for i, names in enumerate(groups) for name in names}
    order = ["stages.0.conv.weight", "stages.0.blocks.0.norm1.weight", "stages.1.conv.weight", "stages.1.norm.weight"]
    order += ["stages.2.cls_token", "stages.2.blocks.0.attn.q.weight", "stages.2.blocks.1.attn.q.weight", "head.weight"]
    assert [places[name] for name in order] == sorted(places[name] for name in order)
    assert places["norm.weight"] < places["head.weight"] and places["stages.0.conv.weight"] == 0


def test_checkpointing_changes_no_gradient():
    torch.manual_seed(0)
    model, x, grads = timm.create_model("cvt312", **NARROW), torch.randn(2, 3, 16, 16), []
    calls = []
    model.stages[2].blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))
    assert len(calls) == 3  # once, then twice: it is computed again on the way back
