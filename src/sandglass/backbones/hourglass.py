"""Hourglass: a vision transformer that shortens its grid of tokens, thinks on the short one, and lengthens it again.

Nawrot et al. 2021 (arXiv 2110.13711), here in two dimensions and without a causal mask: blocks at the fine grid, an
average over k x k windows that then attends to every fine token, blocks at the coarse grid, and the way back, which
adds the tokens kept before shortening. Positions are learned at the finest grid and rotary in every attention (axial,
arXiv 2403.13298, base 100) with coordinates in cells of the finest grid: cell i of a level whose factors multiply to K
sits at (i + 1/2) K - 1/2, so that fine and coarse tokens see each other at their true distance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from operator import mul
from typing import Any, Literal, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import ClassifierHead, DropPath, Mlp, PatchEmbed, calculate_drop_path_rates, resample_abs_pos_embed
from timm.models import build_model_with_cfg, checkpoint, feature_take_indices, generate_default_cfgs, register_model
from torch import Tensor, nn

from sandglass.backbones import resnet_small, toy  # noqa: F401  (their ResNets serve as stems)
from sandglass.errors import Exit, Problem

PAPER = "arXiv 2110.13711"
ABOUT = {
    "hourglass_tiny": "32 px in patches of 4, one level, trains in milliseconds: for the demo.",
    "hourglass_tiny_r": "The body of hourglass_tiny behind the first two layers of resnet_toy.",
    "hourglass_c8": "32 px in patches of 4, grids 8-4-8, 15M parameters, attention resampling.",
    "hourglass_c8_linear": "32 px in patches of 4, grids 8-4-8, 15M parameters, linear resampling.",
    "hourglass_c16": "32 px in patches of 2, grids 16-8-16, 15M parameters.",
    "hourglass_c16_nested": "32 px in patches of 2, grids 16-8-4-8-16.",
    "hourglass_c16_r18": "32 px behind ResNet-18 up to layer2 (small stem), grids 16-8-16.",
    "hourglass_s12": "96 px behind ResNet-50 up to layer2, grids 12-6-12.",
    "hourglass_s12_r18": "96 px behind ResNet-18 up to layer2, grids 12-6-12.",
    "hourglass_s12_nested": "96 px behind ResNet-50 up to layer2, grids 12-6-3-6-12.",
    "hourglass_s24": "96 px behind ResNet-50 up to layer1, grids 24-12-6-12-24.",
    "hourglass_i28": "224 px behind ResNet-50 up to layer2, grids 28-14-7-14-28.",
    "hourglass_i28_1level": "224 px behind ResNet-50 up to layer2, grids 28-14-28.",
    "hourglass_i56": "224 px behind ResNet-50 up to layer1, grids 56-28-14-7 and back, linear resampling.",
}


class Level(NamedTuple):
    """The grid of one level: its shape, and the cosines and sines that turn the tokens of its cells."""

    h: int
    w: int
    turn: tuple[Tensor, Tensor]  # two of (h w, head width / 2)


def level(h: int, w: int, factor: int, width: int, device: torch.device) -> Level:
    """The level of h x w cells, each `factor` cells of the finest grid wide, for heads of `width` channels."""
    place = [(torch.arange(n, device=device) + 0.5) * factor - 0.5 for n in (h, w)]
    rates = 100.0 ** (-torch.arange(width // 4, device=device) / (width // 4))
    y, x = (p[:, None] * rates for p in place)
    angles = torch.cat([y[:, None].expand(h, w, -1), x[None].expand(h, w, -1)], -1).flatten(0, 1)
    return Level(h, w, (angles.cos(), angles.sin()))


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turn channel pairs (c, c + width / 2) of (B, heads, N, width) by the angles of their cells."""
    cos, sin = turn
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention of (B, N, C) to a context (B, M, C), both turned by where their cells are."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, at: Level, context: Tensor, context_at: Level) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(rotate(q, at.turn), rotate(k, context_at.turn), v)
        return self.proj(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer block; with `cross` its tokens attend to another level's, normalised too."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, drop_path: float, cross: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim) if cross else None
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, at: Level, context: Tensor | None = None, context_at: Level | None = None) -> Tensor:
        query = self.norm1(x)
        if self.norm_context is None or context is None or context_at is None:
            context, context_at = query, at
        else:
            context = self.norm_context(context)
        x = x + self.drop_path(self.attn(query, at, context, context_at))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Shorten(nn.Module):
    """k x k cells into one: a linear map of the window (an average at first), which then may attend to all cells.

    Cells beyond the edge of a grid that k does not divide count for nothing: a window is weighed by the cells it has.
    """

    def __init__(self, dim: int, factor: int, attend: Block | None) -> None:
        super().__init__()
        self.pool = nn.Conv2d(dim, dim, factor, factor)
        self.attend = attend
        average_(self.pool.weight)

    def forward(self, x: Tensor, fine: Level, coarse: Level) -> Tensor:
        grid = x.transpose(1, 2).unflatten(2, (fine.h, fine.w))
        k = self.pool.stride[0]
        beyond = (0, -fine.w % k, 0, -fine.h % k)
        short = self.pool(F.pad(grid, beyond))
        if any(beyond):
            held = F.avg_pool2d(F.pad(torch.ones_like(grid[:1, :1]), beyond), k)
            bias = self.pool.bias[:, None, None]
            short = (short - bias) / held + bias
        short = short.flatten(2).transpose(1, 2)
        return short if self.attend is None else self.attend(short, coarse, x, fine)


class Lengthen(nn.Module):
    """One cell into k x k: a linear map (a copy at first), normalised and added to the tokens kept before shortening,
    which then may attend to all coarse cells."""

    def __init__(self, dim: int, factor: int, attend: Block | None) -> None:
        super().__init__()
        self.factor = factor
        self.spread = nn.Linear(dim, factor * factor * dim)
        self.norm = nn.LayerNorm(dim)
        self.attend = attend

    def forward(self, x: Tensor, kept: Tensor, coarse: Level, fine: Level) -> Tensor:
        k = self.factor
        cells = self.spread(x).unflatten(1, (coarse.h, coarse.w)).unflatten(-1, (k, k, -1))  # B h w k k C
        long = cells.transpose(2, 3).flatten(1, 2).flatten(2, 3)[:, : fine.h, : fine.w].flatten(1, 2)
        long = kept + self.norm(long)
        return long if self.attend is None else self.attend(long, fine, x, coarse)


def average_(weight: Tensor) -> Tensor:
    """Fill the weight (C, C, k, k) of a convolution so that it averages its window, channel by channel."""
    with torch.no_grad():
        share = torch.eye(weight.shape[0]) / weight[0, 0].numel()
        return weight.copy_(share[:, :, None, None].expand_as(weight))


def copy_(weight: Tensor) -> Tensor:
    """Fill the weight (k k C, C) of a linear map so that it copies its input k k times."""
    with torch.no_grad():
        return weight.copy_(torch.eye(weight.shape[1]).repeat(weight.shape[0] // weight.shape[1], 1))
