"""T2T-ViT: its count by formula, a token transformer by hand, windows that overlap, and fixed positions."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from sandglass.backbones.t2t import SoftSplits, TokenTransformer, sinusoids

NARROW = {"embed_dim": 24, "depth": 2, "num_heads": 2, "token_dim": 8, "num_classes": 5}


def by_formula(d, depth, t, classes):
    def narrowing(i):  # LN, q k v without bias, projection, LN, an MLP of the same width
        return 2 * i + 3 * i * t + t * t + t + 2 * t + 2 * (t * t + t)

    splits = narrowing(27) + narrowing(9 * t) + 9 * t * d + d
    return splits + d + depth * (10 * d * d + 9 * d) + 2 * d + (d + 1) * classes


@pytest.mark.parametrize(("d", "depth", "t", "classes"), [(312, 15, 64, 10), (312, 15, 64, 100), (24, 2, 8, 5)])
@pytest.mark.parametrize("strides", [(1, 2, 2), (2, 2, 1)])
def test_parameters(d, depth, t, classes, strides):
    with torch.device("meta"):
        model = timm.create_model(
            "t2t312", embed_dim=d, depth=depth, token_dim=t, num_classes=classes, strides=list(strides)
        )
    assert sum(p.numel() for p in model.parameters()) == by_formula(d, depth, t, classes)
    assert model.patch_embed.grid_size == (8, 8)


@torch.no_grad()
def test_token_transformer_by_hand():
    torch.manual_seed(0)
    module, x = TokenTransformer(6, 4).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    for p in module.parameters():
        nn.init.normal_(p)
    q, k, v = (F.layer_norm(x, (6,), module.norm1.weight, module.norm1.bias, 1e-6) @ module.qkv.weight.T).split(4, -1)
    expected = torch.empty(2, 5, 4, dtype=torch.float64)
    for b in range(2):
        for n in range(5):
            scores = [float(q[b, n] @ k[b, m]) / math.sqrt(6) for m in range(5)]  # the width of x, not of q
            total = sum(map(math.exp, scores))
            attended = sum(math.exp(s) / total * v[b, m] for m, s in enumerate(scores))
            y = v[b, n] + module.proj(attended)  # the skip is v
            normed = F.layer_norm(y, (4,), module.norm2.weight, module.norm2.bias, 1e-6)
            expected[b, n] = y + module.mlp.fc2(F.gelu(module.mlp.fc1(normed)))
    assert torch.allclose(module(x), expected)


def test_windows_overlap():
    torch.manual_seed(0)
    splits = SoftSplits(3, 8, 16, (1, 2, 2)).double()
    for transformer in splits.transformers:  # without attention a token knows its own window alone
        nn.init.zeros_(transformer.proj.weight)
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    grid = splits(images)
    assert grid.shape == (1, 16, 8, 8)
    (gradient,) = torch.autograd.grad(grid[0, :, 3, 4].sum(), images)
    rows, columns = gradient[0].abs().sum(0).nonzero().unbind(1)
    # 3 x 3 cells of stride 2, of 3 x 3 cells of stride 2, of 3 x 3 pixels: 9 pixels about the cell's corner, 4 a step
    assert set(rows.tolist()) == set(range(8, 17)) and set(columns.tolist()) == set(range(12, 21))


def test_the_first_split_is_a_linear_map_of_windows_of_pixels():
    torch.manual_seed(0)
    splits, images = SoftSplits(3, 8, 16, (2,)), torch.randn(2, 3, 8, 8)
    kernel = splits.project.weight.view(16, 3, 3, 3)
    assert torch.allclose(splits(images), F.conv2d(images, kernel, splits.project.bias, 2, 1), atol=1e-6)


def test_positions_are_fixed_sinusoids_over_class_token_and_cells():
    model = timm.create_model("t2t312", **NARROW)
    assert model.pos_embed.shape == (1, 65, 24) and not any("pos_embed" in name for name, _ in model.named_parameters())
    for place, channel in ((0, 1), (3, 4), (64, 23)):
        angle = place / 10000 ** (2 * (channel // 2) / 24)
        expected = math.cos(angle) if channel % 2 else math.sin(angle)
        assert float(model.pos_embed[0, place, channel]) == pytest.approx(expected, abs=1e-5)
    assert torch.equal(sinusoids(65, 24), model.pos_embed[0])


def test_positions_reach_the_tokens():
    torch.manual_seed(0)
    model = timm.create_model("t2t312", **NARROW).eval()
    tokens = model.forward_features(torch.zeros(1, 3, 32, 32))[0, 1:]
    inside = tokens.view(8, 8, 24)[2:6, 2:6].flatten(0, 1)  # away from the padding all windows are alike
    assert torch.pdist(inside).min() > 1e-2
