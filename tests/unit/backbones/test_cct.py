"""CCT: its count by formula, a block by hand with the norm on the stream, its tokenizer and its pooling."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from sandglass.backbones.cct import CompactBlock, SequencePool

NARROW = {"embed_dim": 24, "depth": 2, "num_heads": 2, "channels": (8,), "num_classes": 5}


def by_formula(d, depth, c, classes):
    embedding = 27 * c + 9 * c * d + 64 * d  # two convolutions without bias, positions of 8 x 8 cells
    return embedding + depth * (10 * d * d + 9 * d) + 2 * d + (d + 1) + (d + 1) * classes


@pytest.mark.parametrize(("d", "depth", "c", "classes"), [(312, 15, 64, 10), (312, 15, 64, 100), (24, 2, 8, 5)])
def test_parameters(d, depth, c, classes):
    with torch.device("meta"):
        model = timm.create_model("cct312", embed_dim=d, depth=depth, channels=[c], num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == by_formula(d, depth, c, classes)


def test_a_block_norms_its_stream_between_attention_and_mlp():
    torch.manual_seed(0)
    block, x = CompactBlock(8, 2).double(), 10 * torch.randn(2, 5, 8, dtype=torch.float64)
    q, k, v = block.attn.qkv(F.layer_norm(x, (8,), eps=1e-6)).split(8, -1)
    heads = [(q[..., c] @ k[..., c].transpose(1, 2) / 2).softmax(-1) @ v[..., c] for c in (slice(0, 4), slice(4, 8))]
    stream = F.layer_norm(x + block.attn.proj(torch.cat(heads, -1)), (8,), eps=1e-6)
    assert torch.allclose(block(x), stream + block.mlp.fc2(F.gelu(block.mlp.fc1(stream))))


def test_tokenizer_by_hand():
    torch.manual_seed(0)
    model, images = timm.create_model("cct312", **NARROW), torch.randn(2, 3, 32, 32)
    first, second = (model.patch_embed.proj[i].weight for i in (0, 3))
    x = F.max_pool2d(F.conv2d(images, first, padding=1).relu(), 3, 2, 1)
    x = F.max_pool2d(F.conv2d(x, second, padding=1).relu(), 3, 2, 1)
    assert x.shape == (2, 24, 8, 8)
    assert torch.allclose(model.patch_embed(images), x.flatten(2).transpose(1, 2), atol=1e-6)


def test_pooling_by_hand_and_as_a_mean():
    torch.manual_seed(0)
    pool, x = SequencePool(6), torch.randn(2, 4, 6)
    nn.init.normal_(pool.weigh.weight)
    for b in range(2):
        weights = torch.stack([(x[b, n] * pool.weigh.weight[0]).sum() for n in range(4)]).exp()
        expected = sum(weights[n] / weights.sum() * x[b, n] for n in range(4))
        assert torch.allclose(pool(x)[b], expected, atol=1e-6)
    nn.init.zeros_(pool.weigh.weight)
    assert torch.allclose(pool(x), x.mean(1), atol=1e-6)


def test_there_is_no_class_token_and_the_head_reads_pooled_normed_tokens():
    torch.manual_seed(0)
    model, images = timm.create_model("cct312", **NARROW).eval(), torch.randn(2, 3, 32, 32)
    tokens = model.forward_features(images)
    assert tokens.shape == (2, 64, 24) and torch.allclose(tokens.mean(2), torch.zeros(()), atol=1e-5)
    assert torch.allclose(model(images), model.head(model.attn_pool(tokens)), atol=1e-6)
