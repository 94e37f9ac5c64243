"""DHVT: a ViT for small data sets. Convolutions give the patches and run inside the MLPs; heads become tokens too.

Lu et al. 2022 (arXiv 2210.05958), with a class token and no positions but what the convolutions' edges tell:

    patches (SOPE):    a x + b per channel;  3 x 3 convolutions of stride 2 with BN, GELU between;  a x + b per channel
    attention (HI):    one token more per head, from the mean over all tokens of its own channels, m_h:
                       t_h = GELU(LN(linear m_h), each head's channels by themselves) + position of h
                       attend with them, then add the mean of their outputs to the class token and drop them
    MLP (DAFF):        u = GELU(BN conv1x1 x);  u = u + GELU(BN depthwise3x3 u);  y = BN conv1x1 u  on the cells;
                       class token * linear(GELU(linear(mean of y)))

Batch norm is the ordinary one (a run on several devices synchronises it). The positions of the heads are not decayed.
Maps become tokens by permute and flatten, not by flatten and transpose: the gradient of a single image would come back
with strides that torch's batch norm misreads on a CPU.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, PatchEmbed
from timm.models import VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

PAPER = "arXiv 2210.05958"
ABOUT = {
    "dhvt312": "A ViT with convolutions inside and head tokens, 15M parameters: 32 px to 8 x 8 cells of 312 channels."
}


class Affine(nn.Module):
    """A scale and a shift for each channel of (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class OverlappingPatches(PatchEmbed):
    """timm's patch embedding, whose convolution is replaced by log2(patch size) small ones of doubling width."""

    def __init__(self, output_fmt: str | None = None, **kwargs: Any) -> None:
        super().__init__(output_fmt="NHWC", **kwargs)
        self.as_tokens = output_fmt is None
        width, steps = kwargs["embed_dim"], int(math.log2(kwargs["patch_size"]))
        if 2**steps != kwargs["patch_size"] or steps == 0:
            raise ValueError(f"patches of {kwargs['patch_size']} px are no power of two")
        widths = [kwargs["in_chans"], *(width // 2 ** (steps - 1 - i) for i in range(steps))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.GELU()]
        self.add_module("proj", nn.Sequential(Affine(widths[0]), *layers[:-1], Affine(width)))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x.flatten(1, 2) if self.as_tokens else x


class HeadInteraction(Attention):
    """timm's attention of (B, 1 + N, C) in the company of one token for each head."""

    def __init__(self, dim: int, num_heads: int, **kwargs: Any) -> None:
        super().__init__(dim, num_heads=num_heads, **kwargs)
        self.head_proj = nn.Linear(self.head_dim, dim)
        self.head_norm = nn.LayerNorm(self.head_dim)
        self.head_embed = nn.Parameter(torch.empty(1, num_heads, dim))
        nn.init.trunc_normal_(self.head_embed, std=0.02)

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        means = x.mean(1).unflatten(-1, (self.num_heads, -1))  # B heads width
        heads = self.head_norm(self.head_proj(means).unflatten(-1, (self.num_heads, -1)))
        heads = F.gelu(heads).flatten(2) + self.head_embed
        x = super().forward(torch.cat([x, heads], 1))
        token, cells, heads = x.tensor_split((1, -self.num_heads), 1)
        return torch.cat([token + heads.mean(1, keepdim=True), cells], 1)


class ConvMlp(nn.Module):
    """(B, 1 + N, C): convolutions over the N cells of a square grid, whose mean then weighs the class token."""

    def __init__(self, in_features: int, hidden_features: int, drop: float = 0.0, **_: Any) -> None:
        super().__init__()
        width, hidden = in_features, hidden_features
        self.widen = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.BatchNorm2d(hidden), nn.GELU())
        depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.mix = nn.Sequential(depthwise, nn.BatchNorm2d(hidden), nn.GELU())
        self.narrow = nn.Sequential(nn.Conv2d(hidden, width, 1), nn.BatchNorm2d(width))
        self.excite = nn.Sequential(nn.Linear(width, width // 4), nn.GELU(), nn.Linear(width // 4, width))
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        token, cells = x[:, :1], x[:, 1:]
        side = math.isqrt(cells.shape[1])
        wide = self.widen(cells.transpose(1, 2).unflatten(2, (side, side)))
        cells = self.narrow(wide + self.mix(wide)).permute(0, 2, 3, 1).flatten(1, 2)
        token = token * self.excite(cells.mean(1, keepdim=True))
        return self.drop(torch.cat([token, cells], 1))


class DHVT(VisionTransformer):
    """timm's ViT with overlapping patches, head tokens and convolutional MLPs; images are square."""

    cls_token: nn.Parameter

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            embed_layer=OverlappingPatches,
            attn_layer=HeadInteraction,
            mlp_layer=ConvMlp,
            pos_embed="none",
            **kwargs,
        )
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {f"blocks.{i}.attn.head_embed" for i in range(len(self.blocks))}


_cfg = {
    "num_classes": 1000,
    "input_size": (3, 32, 32),
    "fixed_input_size": True,
    "first_conv": "patch_embed.proj.1",
    "classifier": "head",
    "license": "apache-2.0",
}
default_cfgs = generate_default_cfgs({"dhvt312": _cfg})


@register_model
def dhvt312(pretrained: bool = False, **kwargs: Any) -> DHVT:
    shape = {"img_size": 32, "patch_size": 4, "embed_dim": 312, "depth": 12, "num_heads": 6, **kwargs}
    feature_cfg = {"feature_cls": "getter", "out_indices": shape["depth"]}
    return build_model_with_cfg(DHVT, "dhvt312", pretrained, feature_cfg=feature_cfg, **shape)
