"""DHVT: its count by formula, head tokens and convolutional MLP by hand, and its patches."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from sandglass.backbones.dhvt import ConvMlp, HeadInteraction

NARROW = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}


def by_formula(d, depth, heads, classes):
    half, quarter, width = d // 2, d // 4, d // heads
    patches = 6 + 27 * half + 2 * half + 9 * half * d + 2 * d + 2 * d  # affine, two convolutions with BN, affine
    attention = 4 * d * d + 4 * d + width * d + d + 2 * width + heads * d  # q k v, projection; head tokens
    hidden = 4 * d
    mlp = d * hidden + hidden + 10 * hidden + hidden * d + d + 4 * hidden + 2 * d  # three convolutions, three BN
    mlp += d * quarter + quarter + quarter * d + d
    return patches + d + depth * (attention + mlp + 4 * d) + 2 * d + (d + 1) * classes


@pytest.mark.parametrize(("d", "depth", "heads", "classes"), [(312, 12, 6, 10), (312, 12, 6, 100), (24, 2, 3, 5)])
def test_parameters(d, depth, heads, classes):
    with torch.device("meta"):
        model = timm.create_model("dhvt312", embed_dim=d, depth=depth, num_heads=heads, num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == by_formula(d, depth, heads, classes)


def test_head_tokens_by_hand():
    torch.manual_seed(0)
    module, x = HeadInteraction(6, 2, qkv_bias=True).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    for p in module.parameters():
        nn.init.normal_(p, std=0.5)
    tokens = [x]
    for head, c in enumerate((slice(0, 3), slice(3, 6))):
        mean = x[..., c].mean(1)  # of the class token too
        token = module.head_proj(mean).unflatten(-1, (2, 3))
        token = F.gelu(F.layer_norm(token, (3,), module.head_norm.weight, module.head_norm.bias)).flatten(1)
        tokens.append((token + module.head_embed[0, head])[:, None])
    q, k, v = module.qkv(torch.cat(tokens, 1)).split(6, -1)
    heads = [
        (q[..., c] @ k[..., c].transpose(1, 2) / 3**0.5).softmax(-1) @ v[..., c] for c in (slice(0, 3), slice(3, 6))
    ]
    out = module.proj(torch.cat(heads, -1))
    expected = torch.cat([out[:, :1] + (out[:, 5:6] + out[:, 6:7]) / 2, out[:, 1:5]], 1)
    assert torch.allclose(module(x), expected)


def test_mlp_by_hand():
    torch.manual_seed(0)
    mlp, x = ConvMlp(8, 12).double().train(), torch.randn(3, 17, 8, dtype=torch.float64)

    def convolved(y, conv, norm, padding=0):
        y = F.conv2d(y, conv.weight, conv.bias, padding=padding, groups=conv.groups)
        mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), correction=0, keepdim=True)
        return (y - mean) / (var + norm.eps).sqrt()

    y = F.gelu(convolved(x[:, 1:].transpose(1, 2).reshape(3, 8, 4, 4), mlp.widen[0], mlp.widen[1]))
    y = y + F.gelu(convolved(y, mlp.mix[0], mlp.mix[1], padding=1))
    y = convolved(y, mlp.narrow[0], mlp.narrow[1])
    weight = mlp.excite[2](F.gelu(mlp.excite[0](y.mean((2, 3)))))
    out = mlp(x)
    assert mlp.mix[0].weight.shape == (12, 1, 3, 3)
    assert torch.allclose(out[:, 1:], y.flatten(2).transpose(1, 2))
    assert torch.allclose(out[:, 0], x[:, 0] * weight)


def test_patches_overlap_and_begin_and_end_affinely():
    torch.manual_seed(0)
    patches = timm.create_model("dhvt312", **NARROW).eval().patch_embed
    nn.init.normal_(patches.proj[0].weight), nn.init.normal_(patches.proj[-1].bias)
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    state = patches.proj.state_dict()
    x = images * state["0.weight"][:, None, None] + state["0.bias"][:, None, None]
    x = F.gelu(F.conv2d(x, state["1.weight"], stride=2, padding=1) / (1 + 1e-5) ** 0.5)  # fresh running statistics
    x = F.conv2d(x, state["4.weight"], stride=2, padding=1) / (1 + 1e-5) ** 0.5
    x = x * state["6.weight"][:, None, None] + state["6.bias"][:, None, None]
    assert torch.allclose(patches(images), x.flatten(2).transpose(1, 2), atol=1e-6)
    (gradient,) = torch.autograd.grad(patches(images)[0, 8 * 3 + 4].sum(), images)
    rows, columns = gradient[0].abs().sum(0).nonzero().unbind(1)
    # 3 x 3 cells of stride 2, of 3 x 3 pixels of stride 2: 7 pixels, 4 a step
    assert set(rows.tolist()) == set(range(9, 16)) and set(columns.tolist()) == set(range(13, 20))


def test_there_are_no_positions_but_those_of_the_heads_which_are_not_decayed():
    from sandglass.engine.optim import parameter_groups

    model = timm.create_model("dhvt312", **NARROW)
    assert model.pos_embed is None
    embeds = [p for name, p in model.named_parameters() if name.endswith("head_embed")]
    decayed = {id(p) for group in parameter_groups([model], 0.1) if group["weight_decay"] for p in group["params"]}
    assert len(embeds) == 2 and not decayed & {id(p) for p in (*embeds, model.cls_token)}


def test_patches_are_a_power_of_two_and_images_square():
    with pytest.raises(ValueError, match="no power of two"):
        timm.create_model("dhvt312", **NARROW, img_size=36, patch_size=6)
    assert timm.create_model("dhvt312", **NARROW, patch_size=8).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    with pytest.raises(RuntimeError):
        timm.create_model("dhvt312", **NARROW, img_size=(32, 64))(torch.zeros(2, 3, 32, 64))
