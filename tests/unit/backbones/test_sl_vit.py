"""SL-ViT: its count by formula, patches that reach half a patch further, and attention to others alone."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from sandglass.backbones.sl_vit import LocalAttention, ShiftedPatches

NARROW = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}


def by_formula(d, depth, heads, classes):
    patch = 5 * 3 * 4 * 4
    embedding = 2 * patch + patch * d + d + d + 65 * d  # LN, linear, class token, positions
    return embedding + depth * (12 * d * d + 10 * d + heads) + 2 * d + (d + 1) * classes


@pytest.mark.parametrize(("d", "depth", "heads", "classes"), [(312, 13, 6, 10), (312, 13, 6, 100), (24, 2, 3, 5)])
def test_parameters(d, depth, heads, classes):
    with torch.device("meta"):
        model = timm.create_model("sl_vit312", embed_dim=d, depth=depth, num_heads=heads, num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == by_formula(d, depth, heads, classes)


def test_a_token_is_a_linear_map_of_its_patch_and_of_four_patches_half_a_patch_away():
    torch.manual_seed(0)
    embed, images = ShiftedPatches(3, 4, 6).double(), torch.randn(2, 3, 8, 12, dtype=torch.float64)
    nn.init.normal_(embed.norm.weight), nn.init.normal_(embed.norm.bias)
    grid = embed(images)
    assert grid.shape == (2, 6, 2, 3)
    for i in range(2):
        for j in range(3):
            values = torch.zeros(2, 5, 3, 4, 4, dtype=torch.float64)
            for n, (a, b) in enumerate(((0, 0), (-2, -2), (-2, 2), (2, -2), (2, 2))):
                for y in range(4):
                    for x in range(4):
                        row, column = 4 * i + a + y, 4 * j + b + x
                        if 0 <= row < 8 and 0 <= column < 12:
                            values[:, n, :, y, x] = images[:, :, row, column]
            expected = embed.linear(F.layer_norm(values.flatten(1), (240,), embed.norm.weight, embed.norm.bias, 1e-6))
            assert torch.allclose(grid[:, :, i, j], expected)


def test_attention_by_hand():
    torch.manual_seed(0)
    attention, x = LocalAttention(4, num_heads=2).double(), torch.randn(2, 5, 4, dtype=torch.float64)
    assert attention.scale.tolist() == pytest.approx([2**-0.5] * 2)
    nn.init.uniform_(attention.scale)
    q, k, v = attention.qkv(x).split(4, -1)
    expected = torch.zeros(2, 5, 4, dtype=torch.float64)
    for b in range(2):
        for head in range(2):
            c = slice(2 * head, 2 * head + 2)
            for n in range(5):
                others = [m for m in range(5) if m != n]
                weights = [math.exp(attention.scale[head] * (q[b, n, c] @ k[b, m, c])) for m in others]
                expected[b, n, c] = sum(w / sum(weights) * v[b, m, c] for w, m in zip(weights, others))
    assert torch.allclose(attention(x), attention.proj(expected))


def test_scales_are_learned_by_each_head_and_not_decayed():
    from sandglass.engine.optim import parameter_groups

    torch.manual_seed(0)
    model = timm.create_model("sl_vit312", **NARROW)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    scales = {name: p for name, p in model.named_parameters() if name.endswith("attn.scale")}
    assert len(scales) == 2 and all(p.shape == (2,) and p.grad.abs().min() > 0 for p in scales.values())
    decayed = {id(p) for group in parameter_groups([model], 0.1) if group["weight_decay"] for p in group["params"]}
    assert not decayed & {id(p) for p in (*scales.values(), model.cls_token, model.pos_embed)}
