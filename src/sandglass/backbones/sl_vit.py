"""SL-ViT: a ViT for small data sets. Patches see half of their neighbours, and tokens do not attend to themselves.

Lee et al. 2021 (arXiv 2112.13492), two changes of a ViT (timm's), with class token and learned positions:

    shifted patches:   token = linear(LN(patch of [x, x shifted by half a patch along each of the four diagonals]))
    local attention:   softmax(s q k' with -inf on the diagonal) v,   s learned for each head, at first 1 / sqrt(width)

Shifts bring in zeros; q, k, v have no bias. As in the authors' code the class token does not attend to itself either.
Positions and class token start at 0.02 (theirs at 1).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, LayerNorm, PatchEmbed
from timm.models import VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

PAPER = "arXiv 2112.13492"
ABOUT = {
    "sl_vit312": "A ViT with shifted patches and local attention, 15M parameters: 32 px to 8 x 8 cells of 312 channels."
}


class ShiftedPatches(nn.Module):
    """Images (B, 3, H, W) to a grid (B, C, H / patch, W / patch)."""

    def __init__(self, in_chans: int, patch: int, embed_dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.norm = LayerNorm(5 * in_chans * patch * patch)
        self.linear = nn.Linear(5 * in_chans * patch * patch, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        h, w, half = *x.shape[-2:], self.patch // 2
        wide = F.pad(x, (half,) * 4)
        shifted = [wide[..., i : i + h, j : j + w] for i in (0, 2 * half) for j in (0, 2 * half)]
        cells = F.pixel_unshuffle(torch.cat([x, *shifted], 1), self.patch).permute(0, 2, 3, 1)
        return self.linear(self.norm(cells)).permute(0, 3, 1, 2)


class ShiftedPatchEmbed(PatchEmbed):
    """timm's patch embedding, whose convolution is replaced."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_module("proj", ShiftedPatches(kwargs["in_chans"], kwargs["patch_size"], kwargs["embed_dim"]))


class LocalAttention(Attention):
    """timm's attention with a learned scale for each head, and without what a token would say to itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scale = nn.Parameter(torch.full((self.num_heads,), self.scale))

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        others = ~torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        dropout = self.attn_drop.p if self.training else 0.0
        q = q * self.scale[:, None, None]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=others, dropout_p=dropout, scale=1.0)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class SLViT(VisionTransformer):
    """timm's ViT with shifted patches and local attention."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(embed_layer=ShiftedPatchEmbed, attn_layer=LocalAttention, qkv_bias=False, **kwargs)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)


_cfg = {
    "num_classes": 1000,
    "input_size": (3, 32, 32),
    "fixed_input_size": True,
    "first_conv": None,  # a norm and a linear map of shifted pixels
    "classifier": "head",
    "license": "apache-2.0",
}
default_cfgs = generate_default_cfgs({"sl_vit312": _cfg})


@register_model
def sl_vit312(pretrained: bool = False, **kwargs: Any) -> SLViT:
    shape = {"img_size": 32, "patch_size": 4, "embed_dim": 312, "depth": 13, "num_heads": 6, **kwargs}
    feature_cfg = {"feature_cls": "getter", "out_indices": shape["depth"]}
    return build_model_with_cfg(SLViT, "sl_vit312", pretrained, feature_cfg=feature_cfg, **shape)
