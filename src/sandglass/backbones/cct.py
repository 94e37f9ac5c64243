"""CCT: a small convolutional tokenizer before a ViT without class token, whose tokens are pooled by learned weights.

Hassani et al. 2021 (arXiv 2104.05704). Two convolutions of 3 x 3 (to 64 channels, to C; no bias), each followed by ReLU
and max-pooling of 3 x 3 with stride 2, give the grid; positions are learned. With A attention without bias of q, k, v,

    block:  y = LN(x + A(LN x));  x' = y + MLP(y)        pooling:  sum_n softmax_n(w' x_n + b) x_n,  after a final LN

The norm between attention and MLP is on the stream itself, as in the authors' code: this is no pre-norm block. Their
dropout in attention and drop path of 0.1 are arguments here, off; positions start at a deviation of 0.02, not 0.2.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

from timm.layers import PatchEmbed
from timm.models import VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block
from torch import Tensor, nn

PAPER = "arXiv 2104.05704"
ABOUT = {"cct312": "A compact convolutional transformer, 15M parameters: 32 px to 8 x 8 cells of 312 channels."}


class Tokenizer(PatchEmbed):
    """timm's patch embedding, whose convolution is replaced by several, each with ReLU and max-pooling."""

    def __init__(self, channels: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        layers: list[nn.Module] = []
        for before, width in pairwise((kwargs["in_chans"], *channels, kwargs["embed_dim"])):
            convolution = nn.Conv2d(before, width, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight)
            layers += [convolution, nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        self.add_module("proj", nn.Sequential(*layers))


class CompactBlock(Block):
    """timm's block with the second norm on the stream."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        x = self.norm2(x + self.drop_path1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.mlp(x))


class SequencePool(nn.Module):
    """(B, N, C) to (B, C): the mean weighed by a softmax over the tokens of a linear map of each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weigh = nn.Linear(width, 1)
        nn.init.trunc_normal_(self.weigh.weight, std=0.02)
        nn.init.zeros_(self.weigh.bias)

    def forward(self, x: Tensor) -> Tensor:
        return (self.weigh(x).softmax(1) * x).sum(1)


class CCT(VisionTransformer):
    """timm's ViT behind a tokenizer; `channels` are the widths of its convolutions but the last, which gives tokens."""

    def __init__(self, channels: tuple[int, ...] = (64,), **kwargs: Any) -> None:
        super().__init__(
            patch_size=2 ** (len(channels) + 1),
            embed_layer=partial(Tokenizer, channels=channels),
            block_fn=CompactBlock,
            qkv_bias=False,
            class_token=False,
            global_pool="map",
            **kwargs,
        )
        self.add_module("attn_pool", SequencePool(self.embed_dim))  # in the place of timm's pooling by attention


_cfg = {
    "num_classes": 1000,
    "input_size": (3, 32, 32),
    "fixed_input_size": True,
    "first_conv": "patch_embed.proj.0",
    "classifier": "head",
    "license": "apache-2.0",
}
default_cfgs = generate_default_cfgs({"cct312": _cfg})


@register_model
def cct312(pretrained: bool = False, **kwargs: Any) -> CCT:
    shape = {"img_size": 32, "embed_dim": 312, "depth": 15, "num_heads": 6, "mlp_ratio": 3.0, **kwargs}
    feature_cfg = {"feature_cls": "getter", "out_indices": shape["depth"]}
    return build_model_with_cfg(CCT, "cct312", pretrained, feature_cfg=feature_cfg, **shape)
