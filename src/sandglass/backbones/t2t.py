"""T2T-ViT: patches that overlap. Windows are unfolded into tokens, which attend to each other and are unfolded again.

Yuan et al. 2021 (arXiv 2101.11986). With u_i the i-th unfolding into 3 x 3 windows and T a small transformer,

    tokens = linear(u3(T2(u2(T1(u1(image))))));    T(x):  q, k, v = linear(LN x)  (width t = 64, one head)
                                                          y = v + linear(softmax(q k' / sqrt(width of x)) v)
                                                          T(x) = y + MLP(LN y)

where the skip starts at v because x is wider. Behind it stands a ViT (timm's) with fixed sinusoidal positions over the
class token and the cells in reading order. For 32 px the first window is 3 x 3 with stride 1 instead of 7 x 7 with
stride 4, and the other two keep their stride of 2: the grid is 8 x 8. T attends exactly; the authors' performer is for
larger images.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, Mlp, PatchEmbed
from timm.models import VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

PAPER = "arXiv 2101.11986"
ABOUT = {"t2t312": "T2T-ViT with exact attention, 15M parameters: 32 px to 8 x 8 cells of 312 channels."}


class TokenTransformer(nn.Module):
    """One block that narrows its tokens: (B, N, width) to (B, N, out)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * out, bias=False)
        self.proj = nn.Linear(out, out)
        self.norm2 = LayerNorm(out)
        self.mlp = Mlp(out, out)

    def forward(self, x: Tensor) -> Tensor:
        # an axis for the one head: without it attention to a thousand tokens is not fused
        q, k, v = self.qkv(self.norm1(x)).unsqueeze(1).chunk(3, -1)
        attended = F.scaled_dot_product_attention(q, k, v, scale=x.shape[-1] ** -0.5)
        x = (v + self.proj(attended)).squeeze(1)
        return x + self.mlp(self.norm2(x))


class SoftSplits(nn.Module):
    """Images (B, 3, H, W) to a grid (B, C, h, w): unfoldings of 3 x 3, all but the last followed by a transformer."""

    def __init__(self, in_chans: int, token_dim: int, embed_dim: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.strides = strides
        widths = [9 * in_chans] + [9 * token_dim] * (len(strides) - 1)
        self.transformers = nn.ModuleList(TokenTransformer(width, token_dim) for width in widths[:-1])
        self.project = nn.Linear(widths[-1], embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        for narrow, stride in zip((*self.transformers, self.project), self.strides):
            h, w = (-(-n // stride) for n in x.shape[-2:])
            tokens = F.unfold(x, 3, padding=1, stride=stride).transpose(1, 2)
            x = narrow(tokens).transpose(1, 2).unflatten(2, (h, w))
        return x


class Tokens(PatchEmbed):
    """timm's patch embedding, whose convolution is replaced by soft splits."""

    def __init__(self, strides: tuple[int, ...], token_dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_module("proj", SoftSplits(kwargs["in_chans"], token_dim, kwargs["embed_dim"], strides))


def sinusoids(count: int, width: int) -> Tensor:
    """(count, width): sin and cos, in turns, of place / 10000 ** (2 i / width)."""
    angles = torch.arange(count)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


class T2T(VisionTransformer):
    """timm's ViT behind soft splits. `strides` are those of the unfoldings, `token_dim` the width between them."""

    def __init__(self, strides: tuple[int, ...] = (1, 2, 2), token_dim: int = 64, **kwargs: Any) -> None:
        embed = partial(Tokens, strides=strides, token_dim=token_dim)
        super().__init__(patch_size=prod(strides), embed_layer=embed, pos_embed="none", qkv_bias=False, **kwargs)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        del self.pos_embed
        table = sinusoids(self.patch_embed.num_patches + self.num_prefix_tokens, self.embed_dim)
        self.register_buffer("pos_embed", table[None], persistent=False)


_cfg = {
    "num_classes": 1000,
    "input_size": (3, 32, 32),
    "fixed_input_size": True,
    "first_conv": None,  # a linear map of unfolded pixels
    "classifier": "head",
    "license": "apache-2.0",
}
default_cfgs = generate_default_cfgs({"t2t312": _cfg})


@register_model
def t2t312(pretrained: bool = False, **kwargs: Any) -> T2T:
    shape = {"img_size": 32, "embed_dim": 312, "depth": 15, "num_heads": 6, "mlp_ratio": 3.0, **kwargs}
    feature_cfg = {"feature_cls": "getter", "out_indices": shape["depth"]}
    return build_model_with_cfg(T2T, "t2t312", pretrained, feature_cfg=feature_cfg, **shape)
