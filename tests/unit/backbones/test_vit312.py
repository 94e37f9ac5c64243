"""vit312: its count by formula, the norm before the head, and the token that the head reads."""

import pytest
import timm
import torch
from torch import nn

from sandglass.backbones import vit312  # noqa: F401


@pytest.mark.parametrize(("d", "depth", "classes"), [(312, 13, 10), (312, 13, 100), (24, 2, 5)])
def test_parameters(d, depth, classes):
    with torch.device("meta"):
        model = timm.create_model("vit312", embed_dim=d, depth=depth, num_classes=classes)
    embedding, block = 48 * d + d + d + 65 * d, 12 * d * d + 13 * d  # patches of 4 x 4 x 3, class token, 65 positions
    assert sum(p.numel() for p in model.parameters()) == embedding + depth * block + 2 * d + (d + 1) * classes


def test_the_obvious_depth_is_too_small():
    with torch.device("meta"):
        model = timm.create_model("vit312", depth=12, num_classes=10)
    assert sum(p.numel() for p in model.parameters()) < 0.95 * 15e6


def test_the_final_norm_is_on_all_tokens_and_the_head_reads_the_first():
    torch.manual_seed(0)
    model = timm.create_model("vit312", embed_dim=24, depth=2, num_classes=5).eval()
    nn.init.normal_(model.head.bias)
    tokens = model.forward_features(torch.randn(2, 3, 32, 32))
    assert torch.allclose(tokens.mean(2), torch.zeros(()), atol=1e-5)
    assert torch.allclose(model.forward_head(tokens), tokens[:, 0] @ model.head.weight.T + model.head.bias, atol=1e-6)
