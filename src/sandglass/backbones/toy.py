"""Small models: `toy` and `resnet_toy` for tests, and `vit_tiny_flat`, an ordinary ViT to set beside hourglass_tiny.

The ViT (Dosovitskiy et al. 2021, arXiv 2010.11929) has that Hourglass's grid, width, heads and number of blocks. Other
such controls need no name: any timm ViT takes `embed_dim`, `depth`, `num_heads` and `patch_size` as arguments.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from timm.layers import ClassifierHead
from timm.models import (
    VisionTransformer,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
)
from timm.models._features import feature_take_indices
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from sandglass.backbones.resnet_small import SmallResNet, small_resnet

ABOUT = {
    "toy": "Three convolutions with batch norm, six thousand parameters: for tests.",
    "resnet_toy": "A ResNet of width 16 with one block a stage and a 3x3 stride-1 stem: for tests.",
    "vit_tiny_flat": "The flat control of hourglass_tiny: a ViT of the same grid, width, heads and number of blocks.",
}


class Toy(nn.Module):
    """Three stages of 3 x 3 convolution (stride 2), batch norm and ReLU: 8, 16 and 32 channels."""

    output_fmt = "NCHW"

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, global_pool: str = "avg", drop_rate: float = 0.0):
        super().__init__()
        widths = (in_chans, 8, 16, 32)
        self.num_classes, self.in_chans, self.global_pool = num_classes, in_chans, global_pool
        self.num_features = self.head_hidden_size = widths[-1]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(widths)
        )
        self.feature_info = [
            {"num_chs": width, "reduction": 2 ** (i + 1), "module": f"stages.{i}"} for i, width in enumerate(widths[1:])
        ]
        self.head = ClassifierHead(widths[-1], num_classes, global_pool, drop_rate)

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        take, last = feature_take_indices(len(self.stages), indices)
        maps = []
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def forward_features(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


_cfg = {"num_classes": 1000, "input_size": (3, 32, 32), "license": "apache-2.0"}
default_cfgs = generate_default_cfgs(
    {
        "toy": {**_cfg, "first_conv": "stages.0.0", "classifier": "head.fc"},
        "resnet_toy": {**_cfg, "first_conv": "conv1", "classifier": "fc"},
        "vit_tiny_flat": {
            **_cfg,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "fixed_input_size": True,
        },
    }
)


@register_model
def toy(pretrained: bool = False, **kwargs: Any) -> Toy:
    feature_cfg = {"feature_cls": "getter", "out_indices": 3}
    return build_model_with_cfg(Toy, "toy", pretrained, feature_cfg=feature_cfg, **kwargs)


@register_model
def resnet_toy(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    # timm takes the width of the stem from stem_width only when the stem is deep; SmallResNet replaces it anyway
    shape = {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128), "stem_type": "deep", "stem_width": 8}
    return small_resnet("resnet_toy", pretrained, **{"block": BasicBlock, **shape, **kwargs})


@register_model
def vit_tiny_flat(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    # no class token, and pooled after the final norm, like the Hourglass
    shape = {"embed_dim": 64, "num_heads": 4, "depth": 3, "class_token": False, "global_pool": "avg", "fc_norm": False}
    return build_model_with_cfg(
        VisionTransformer,
        "vit_tiny_flat",
        pretrained,
        feature_cfg={"feature_cls": "getter", "out_indices": 3},
        **{"img_size": 32, "patch_size": 4, **shape, **kwargs},
    )
