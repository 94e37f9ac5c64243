"""CvT: a pyramid of transformer stages in which convolutions cut the patches and give queries, keys and values.

Wu et al. 2021 (arXiv 2103.15808). A stage is a 3 x 3 convolution with layer norm, then pre-norm blocks; in the last one
a class token goes along, which the head reads. No positions: the convolutions' edges tell them. With n = LN x,

    q, k, v = linear(BN(depthwise3x3(n))), k and v with stride 2: 8 x 8 cells attend to 4 x 4; the token skips the conv
    x' = x + linear(softmax(s q k') v);  x'' = x' + MLP(LN x')

The authors scale by s = 1 / sqrt(width of the tokens), not of a head, which flattens attention by sqrt(heads):
`attn_scale` is "dim", as theirs, or "head". For 32 px the first convolution is 3 x 3 with stride 1 instead of 7 x 7
with stride 4; the other two keep their stride of 2. The MLP has the exact GELU, not their approximation. The final norm
is on all tokens, so that the grid is normalised as the class token is.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, calculate_drop_path_rates
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models.vision_transformer import global_pool_nlc
from torch import Tensor, nn

from sandglass.backbones._pyramid import Pyramid

PAPER = "arXiv 2103.15808"
ABOUT = {"cvt312": "CvT of three stages, 15M parameters: 32 px to 8 x 8 cells of 312 channels."}


class ConvAttention(nn.Module):
    """Attention of (B, prefix + h w, C), whose queries, keys and values are convolved first."""

    def __init__(self, dim: int, heads: int, scale: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.conv_q, self.conv_k, self.conv_v = (
            nn.Sequential(nn.Conv2d(dim, dim, 3, stride, 1, groups=dim, bias=False), nn.BatchNorm2d(dim))
            for stride in (1, 2, 2)
        )
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        prefix, cells = x.tensor_split((x.shape[1] - h * w,), 1)
        grid = cells.transpose(1, 2).unflatten(2, (h, w))

        def heads_of(conv: nn.Module, linear: nn.Module) -> Tensor:
            # not flatten and transpose: on a CPU batch norm then misreads the strides of a single image's gradient
            tokens = torch.cat([prefix, conv(grid).permute(0, 2, 3, 1).flatten(1, 2)], 1)
            return linear(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = heads_of(self.conv_q, self.q), heads_of(self.conv_k, self.k), heads_of(self.conv_v, self.v)
        return self.proj(F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer block on a grid."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, scale: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ConvAttention(dim, heads, scale)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), h, w))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """A map (B, C', H, W) to tokens (B, prefix + h w, C): a convolution with layer norm, then blocks."""

    def __init__(self, before: int, dim: int, stride: int, token: bool, blocks: list[Block]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, dim, 3, stride, 1)
        self.norm = nn.LayerNorm(dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if token else None
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, checkpointing: bool) -> tuple[Tensor, int, int]:
        """The tokens, and h and w."""
        x = self.conv(x)
        h, w = x.shape[-2:]
        x = self.norm(x.flatten(2).transpose(1, 2))
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        for block in self.blocks:
            x = checkpoint(block, x, h, w) if checkpointing else block(x, h, w)
        return x, h, w


class CvT(Pyramid):
    """Images (B, 3, S, S) to tokens (B, 1 + h w, C) after the final norm; any size, odd maps are rounded up.

    `embed_dims`, `num_heads`, `depths` and `strides` have one value per stage. The head reads the class token, or the
    mean of the cells (`global_pool="avg"`).
    """

    num_prefix_tokens = 1

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dims: tuple[int, ...] = (64, 192, 312),
        num_heads: tuple[int, ...] = (1, 3, 6),
        depths: tuple[int, ...] = (1, 3, 11),
        strides: tuple[int, ...] = (1, 2, 2),
        mlp_ratio: float = 4.0,
        attn_scale: Literal["dim", "head"] = "dim",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.global_pool = num_classes, in_chans, global_pool
        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.stages = nn.ModuleList()
        self.feature_info = []
        reduction = 1
        rates: Iterator[Any] = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))
        for i, (before, dim) in enumerate(pairwise((in_chans, *embed_dims))):
            scale = (dim if attn_scale == "dim" else dim // num_heads[i]) ** -0.5
            blocks = [Block(dim, num_heads[i], mlp_ratio, scale, next(rates)) for _ in range(depths[i])]
            self.stages.append(Stage(before, dim, strides[i], i == len(embed_dims) - 1, blocks))
            reduction *= strides[i]
            self.feature_info.append({"num_chs": dim, "reduction": reduction, "module": f"stages.{i}"})
        self.norm = nn.LayerNorm(embed_dims[-1])
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dims[-1], num_classes) if num_classes else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Linear maps and the class token with a deviation of 0.02, no bias; convolutions as torch leaves them."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Stage) and module.cls_token is not None:
                nn.init.trunc_normal_(module.cls_token, std=0.02)

    def no_weight_decay(self) -> set[str]:
        return {f"stages.{len(self.stages) - 1}.cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        if coarse:
            return {"stem": r"^stages\.0\.(?:conv|norm)", "blocks": r"^stages\.(\d+)", "norm": [(r"^norm", (99999,))]}
        entry = (r"^stages\.(\d+)\.(?:conv|norm|cls_token)", (-1,))  # before the first block of its stage
        return {"blocks": [(r"^stages\.(\d+)\.blocks\.(\d+)", None), entry, (r"^norm", (99999,))]}

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        device = self.stages[0].conv.weight.device
        self.head = nn.Linear(self.num_features, num_classes, device=device) if num_classes else nn.Identity()

    def run(self, x: Tensor, last: int | None) -> tuple[Tensor, list[Tensor]]:
        maps, tokens = [], x
        for stage in self.stages[: None if last is None else last + 1]:
            tokens, h, w = stage(x, self.grad_checkpointing and self.training)
            x = tokens[:, -h * w :].transpose(1, 2).unflatten(2, (h, w))
            maps.append(x)
        return tokens, maps

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.head_drop(global_pool_nlc(x, self.global_pool, self.num_prefix_tokens))
        return x if pre_logits else self.head(x)


_cfg = {
    "num_classes": 1000,
    "input_size": (3, 32, 32),
    "first_conv": "stages.0.conv",
    "classifier": "head",
    "license": "apache-2.0",
}
default_cfgs = generate_default_cfgs({"cvt312": _cfg})


@register_model
def cvt312(pretrained: bool = False, **kwargs: Any) -> CvT:
    feature_cfg = {"feature_cls": "getter", "out_indices": len(kwargs.get("depths", "123"))}
    return build_model_with_cfg(CvT, "cvt312", pretrained, feature_cfg=feature_cfg, **kwargs)
