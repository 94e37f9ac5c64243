"""Hourglass: a vision transformer that shortens its grid of tokens, thinks on the short one, and lengthens it again.

Nawrot et al. 2021 (arXiv 2110.13711), here in two dimensions and without a causal mask: blocks at the fine grid, an
average over k x k windows that then attends to every fine token, blocks at the coarse grid, and the way back, which
adds the tokens kept before shortening. Positions are learned at the finest grid and rotary in every attention (axial,
arXiv 2403.13298, base 100) with coordinates in cells of the finest grid: cell i of a level whose factors multiply to K
sits at (i + 1/2) K - 1/2, so that fine and coarse tokens see each other at their true distance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from operator import mul
from typing import Any, Literal, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import (
    ClassifierHead,
    DropPath,
    Mlp,
    calculate_drop_path_rates,
    lecun_normal_,
    resample_abs_pos_embed,
    to_2tuple,
)
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from sandglass.backbones import resnet_small, toy  # noqa: F401  (ResNets that serve as stems)
from sandglass.errors import Exit, Problem

PAPER = "arXiv 2110.13711"
ABOUT = {
    "hourglass_tiny": "32 px in patches of 4, one level, trains in milliseconds: for the demo.",
    "hourglass_tiny_r": "The body of hourglass_tiny behind the first two layers of resnet_toy.",
    "hourglass_c8": "32 px in patches of 4, grids 8-4-8, 15M parameters, attention resampling.",
    "flat_c8": "The flat control of hourglass_c8: a single level of as many blocks (12, the resampling ones included).",
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
    """Turn channel pairs (c, c + width / 2) of (B, N, heads, width) by the angles of their cells."""
    cos, sin = (t[:, None] for t in turn)
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
        q = self.q(x).unflatten(-1, (self.heads, -1))
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).unbind(2)
        q, k, v = (t.transpose(1, 2) for t in (rotate(q, at.turn), rotate(k, context_at.turn), v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


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

    def forward(self, x: Tensor, fine: Level, coarse: Level) -> Tensor:
        grid = x.transpose(1, 2).unflatten(2, (fine.h, fine.w))
        k = self.pool.stride[0]
        beyond = (0, -fine.w % k, 0, -fine.h % k)
        short = self.pool(F.pad(grid, beyond))
        if any(beyond):
            held = F.avg_pool2d(F.pad(torch.ones_like(grid[:1, :1]), beyond), k)
            bias: Any = self.pool.bias
            short = (short - bias[:, None, None]) / held + bias[:, None, None]
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


def average_(weight: Tensor, noise: float = 0.0) -> None:
    """Fill the weight (C, C, k, k) of a convolution: it averages its window, channel by channel, plus normal noise."""
    with torch.no_grad():
        share = torch.eye(len(weight), device=weight.device) / weight[0, 0].numel()
        weight.normal_(std=noise).add_(share[:, :, None, None])


def copy_(weight: Tensor, noise: float = 0.0) -> None:
    """Fill the weight (k k C, C) of a linear map: it copies its input k k times, plus normal noise."""
    with torch.no_grad():
        share = torch.eye(weight.shape[1], device=weight.device)
        weight.normal_(std=noise).add_(share.repeat(len(weight) // weight.shape[1], 1))


class Hourglass(nn.Module):
    """Images (B, 3, S, S) to a grid (B, C, h, w) at the finest level, after the final norm.

    `depths` are the blocks on each side of every level, outermost first; the last is the valley and has one side.
    `factors` are the steps between them. `resampling` is "attn" or "linear". Without `up` it stops in the valley.
    The stem cuts the image into patches, or is the first `stem_layers` layers of the ResNet named `stem`; then
    `patch_size` counts cells of its map. Positions are resampled for images of another size.
    Its stages (`forward_intermediates`, `feature_info`) are those of the way down, a pyramid as timm's are; what comes
    out at the end, on the finest grid, is `forward_features`. A single level, `depths=(12,), factors=()`, is the flat
    control of its size.
    """

    output_fmt = "NCHW"
    num_prefix_tokens = 0

    def __init__(
        self,
        img_size: int | tuple[int, int] = 32,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        stem: str = "patch",
        stem_layers: int = 2,
        patch_size: int = 1,
        embed_dim: int = 312,
        num_heads: int = 6,
        depths: tuple[int, ...] = (2, 6),
        factors: tuple[int, ...] = (2,),
        mlp_ratio: float = 4.0,
        resampling: Literal["attn", "linear"] = "attn",
        up: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if len(depths) != len(factors) + 1 or embed_dim % (4 * num_heads):
            raise ValueError("depths must be one longer than factors, and the width of a head divisible by 4")
        self.num_classes, self.in_chans, self.global_pool = num_classes, in_chans, global_pool
        self.num_features = self.head_hidden_size = embed_dim
        self.head_width = embed_dim // num_heads
        self.factors = tuple(accumulate(factors, mul, initial=1))  # of each level, in cells of the finest grid
        self.stem_name = None if stem == "patch" else stem
        self.grad_checkpointing = False

        if stem == "patch":  # a word, because timm drops arguments that are None
            self.stem = nn.Sequential(nn.Conv2d(in_chans, embed_dim, patch_size, patch_size), nn.GELU())
            self.proj, self.reduction = nn.Conv2d(embed_dim, embed_dim, 1), patch_size
        else:
            self.stem, width, reduction = cut_resnet(stem, stem_layers, in_chans)
            self.proj, self.reduction = nn.Conv2d(width, embed_dim, patch_size, patch_size), reduction * patch_size
        self.patched = patch_size > 1  # then the image has to be a multiple of the reduction; a convolution rounds up
        self.grid_size = tuple(-(-n // self.reduction) for n in to_2tuple(img_size))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid_size[0] * self.grid_size[1], embed_dim))

        cross = resampling == "attn"
        sides = len(factors) if up else 0
        total = sum(depths) + cross * len(factors) + sum(depths[:sides]) + cross * sides
        rates: Iterator[Any] = iter(calculate_drop_path_rates(drop_path_rate, total))

        def block(crossing: bool = False) -> Block:
            return Block(embed_dim, num_heads, mlp_ratio, next(rates), crossing)

        # in the order of the forward pass, so that drop path grows with depth and layer decay follows the names
        self.before, self.shorten = nn.ModuleList(), nn.ModuleList()
        for i, depth in enumerate(depths):
            if i:
                self.shorten.append(Shorten(embed_dim, factors[i - 1], block(True) if cross else None))
            self.before.append(nn.ModuleList(block() for _ in range(depth)))
        self.lengthen, self.after = nn.ModuleList(), nn.ModuleList()
        for depth, factor in reversed(list(zip(depths[:sides], factors))):
            self.lengthen.append(Lengthen(embed_dim, factor, block(True) if cross else None))
            self.after.append(nn.ModuleList(block() for _ in range(depth)))
        self.norm: nn.Module = nn.LayerNorm(embed_dim)
        self.head = ClassifierHead(embed_dim, num_classes, global_pool, drop_rate)
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": self.reduction * factor, "module": f"before.{i}"}
            for i, factor in enumerate(self.factors)
        ]
        self.init_weights()

    def init_weights(self) -> None:
        """Linear maps as in ViT (deviation 0.02, no bias), resampling as average and copy with a little noise.

        The convolutions before the body keep the variance of their input: the copies that the way up adds are
        normalised, and would drown what the patches say if that were small.
        """
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for name, module in self.named_modules():
            if self.stem_name and name.startswith("stem."):
                continue
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Conv2d):
                lecun_normal_(module.weight)
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Shorten):
                average_(module.pool.weight, noise=0.002)
            elif isinstance(module, Lengthen):
                copy_(module.spread.weight, noise=0.002)

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        tail = "" if coarse else r"\.(\d+)"
        return {
            "stem": r"^stem|^proj|^pos_embed",
            "down": [(rf"^before\.(\d+){tail}", None), (r"^shorten\.(\d+)", (1000,))],
            "up": [(r"^lengthen\.(\d+)", None), (rf"^after\.(\d+){tail}", None)],
            "norm": [(r"^norm", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.head.reset(num_classes, global_pool)

    def _blocks(self, blocks: Any, x: Tensor, at: Level) -> Tensor:
        for block in blocks:
            x = checkpoint(block, x, at) if self.grad_checkpointing and self.training else block(x, at)
        return x

    def _embed(self, images: Tensor) -> tuple[Tensor, list[Level]]:
        """Tokens (B, N, C) of the finest grid, and all levels."""
        if self.patched and any(n % self.reduction for n in images.shape[-2:]):
            raise ValueError(f"images of {tuple(images.shape[-2:])} do not divide into patches of {self.reduction}")
        grid = self.proj(self.stem(images))
        h, w = grid.shape[-2:]
        position = self.pos_embed
        if (h, w) != self.grid_size:
            position = resample_abs_pos_embed(position, [h, w], list(self.grid_size), num_prefix_tokens=0)
        levels = [level(-(-h // f), -(-w // f), f, self.head_width, grid.device) for f in self.factors]
        return grid.flatten(2).transpose(1, 2).contiguous() + position, levels

    def _down(self, x: Tensor, levels: list[Level], last: int | None = None) -> list[Tensor]:
        """The tokens of every level on the way down, to level `last`."""
        ends = []
        for i, blocks in enumerate(self.before[: None if last is None else last + 1]):
            if i:
                x = self.shorten[i - 1](x, levels[i - 1], levels[i])
            x = self._blocks(blocks, x, levels[i])
            ends.append(x)
        return ends

    def _up(self, ends: list[Tensor], levels: list[Level]) -> Tensor:
        """From the valley to the finest level, normalised, as a grid (B, C, h, w)."""
        x, coarse = ends[-1], levels[-1]
        for lengthen, blocks, kept, fine in zip(self.lengthen, self.after, ends[-2::-1], levels[-2::-1]):
            x = self._blocks(blocks, lengthen(x, kept, coarse, fine), fine)
            coarse = fine
        return self.norm(x).transpose(1, 2).unflatten(2, (coarse.h, coarse.w))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The levels of the way down, each (B, C, h, w), and before them what `forward_features` gives."""
        if output_fmt != "NCHW":
            raise ValueError("the only output format is NCHW")
        take, last = feature_take_indices(len(self.before), indices)
        x, levels = self._embed(x)
        ends = self._down(x, levels, last if stop_early or intermediates_only else None)
        maps = [(self.norm(ends[i]) if norm else ends[i]).transpose(1, 2).unflatten(2, levels[i][:2]) for i in take]
        if intermediates_only:
            return maps
        return self._up(ends, levels) if len(ends) == len(levels) else maps[-1], maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what comes after the last level asked for, the whole way up included."""
        take, last = feature_take_indices(len(self.before), indices)
        self.before, self.shorten = self.before[: last + 1], self.shorten[:last]
        self.lengthen, self.after, self.factors = nn.ModuleList(), nn.ModuleList(), self.factors[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        x, levels = self._embed(x)
        return self._up(self._down(x, levels), levels)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def cut_resnet(name: str, layers: int, in_chans: int = 3) -> tuple[nn.Sequential, int, int]:
    """The first `layers` layers of a timm ResNet under their own names, the width of their map and its reduction."""
    resnet: Any = timm.create_model(name, num_classes=0, in_chans=in_chans)
    stem = nn.Sequential()
    for child, module in resnet.named_children():
        stem.add_module(child, module)
        if child == f"layer{layers}":
            break
    info = resnet.feature_info[layers]
    return stem, info["num_chs"], info["reduction"]


def load_stem(model: Hourglass, resnet: Mapping[str, Tensor]) -> list[str]:
    """Put the first layers of a trained ResNet (`model.stem_name`) into the stem; the names of what was loaded."""
    if getattr(model, "stem_name", None) is None:
        raise Problem(
            "B-310",
            Exit.CONFIG,
            f"{type(model).__name__} has no ResNet stem to load",
            fix="choose an Hourglass behind a ResNet, such as hourglass_c16_r18 or hourglass_s12",
        )
    mine = model.stem.state_dict()
    layers = {name for name, _ in model.stem.named_children()}
    wrong = [f"{name} is missing" for name in mine if name not in resnet]
    wrong += [f"{name} has no place" for name in resnet if name.split(".")[0] in layers and name not in mine]
    wrong += [
        f"{name} is {tuple(resnet[name].shape)}, not {tuple(value.shape)}"
        for name, value in mine.items()
        if name in resnet and resnet[name].shape != value.shape
    ]
    if wrong:
        raise Problem(
            "B-311",
            Exit.CONFIG,
            f"the checkpoint does not fit the stem, which is cut from {model.stem_name}",
            why="\n".join(wrong[:3] + [f"and {len(wrong) - 3} more"] * (len(wrong) > 3)),
            fix=f"pretrain {model.stem_name}, or choose a backbone with the stem that was pretrained",
            kept="the stem is as it was",
        )
    model.stem.load_state_dict({name: resnet[name] for name in mine})
    return list(mine)


_c8 = {"img_size": 32, "patch_size": 4, "embed_dim": 312}
_c16 = {"img_size": 32, "patch_size": 2, "embed_dim": 312}
_s12 = {"img_size": 96, "stem": "resnet50", "embed_dim": 384}
_i28 = {"img_size": 224, "stem": "resnet50", "embed_dim": 384}
_tiny = {"img_size": 32, "embed_dim": 64, "num_heads": 4, "depths": (0, 3), "resampling": "linear"}
CONFIGS: dict[str, dict[str, Any]] = {
    "hourglass_tiny": {**_tiny, "patch_size": 4},
    "hourglass_tiny_r": {**_tiny, "stem": "resnet_toy", "patch_size": 2},
    "hourglass_c8": _c8,
    "flat_c8": {**_c8, "depths": (12,), "factors": ()},
    "hourglass_c8_linear": {**_c8, "depths": (3, 6), "resampling": "linear"},
    "hourglass_c16": _c16,
    "hourglass_c16_nested": {**_c16, "depths": (1, 1, 4), "factors": (2, 2)},
    "hourglass_c16_r18": {**_c16, "stem": "resnet18_small", "patch_size": 1},
    "hourglass_s12": _s12,
    "hourglass_s12_r18": {**_s12, "stem": "resnet18"},
    "hourglass_s12_nested": {**_s12, "depths": (2, 2, 4), "factors": (2, 2)},
    "hourglass_s24": {**_s12, "stem_layers": 1, "depths": (2, 2, 4), "factors": (2, 2)},
    "hourglass_i28": {**_i28, "depths": (2, 2, 4), "factors": (2, 2)},
    "hourglass_i28_1level": {**_i28, "depths": (2, 8)},
    "hourglass_i56": {
        **_i28,
        "stem_layers": 1,
        "depths": (1, 1, 2, 4),
        "factors": (2, 2, 2),
        "resampling": "linear",
    },
}
default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 1000,
            "input_size": (3, config["img_size"], config["img_size"]),
            "first_conv": "stem.conv1" if "stem" in config else "stem.0",
            "classifier": "head.fc",
            "license": "apache-2.0",
        }
        for name, config in CONFIGS.items()
    }
)


def _entry(name: str) -> Callable[..., Hourglass]:
    def entry(pretrained: bool = False, **kwargs: Any) -> Hourglass:
        arguments = {**CONFIGS[name], **kwargs}
        feature_cfg = {"feature_cls": "getter", "out_indices": len(arguments.get("depths", "12"))}
        return build_model_with_cfg(Hourglass, name, pretrained, feature_cfg=feature_cfg, **arguments)

    entry.__name__ = entry.__qualname__ = name
    return register_model(entry)


globals().update({name: _entry(name) for name in CONFIGS})
