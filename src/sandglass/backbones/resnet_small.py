"""ResNets for small images: the first convolution is 3 x 3 with stride 1 and the max-pooling is gone.

He et al. 2016, section 4.2 (arXiv 1512.03385) in the widths of the ImageNet models. On 32 px the stages are 32, 16, 8
and 4 cells wide, where the ImageNet stem would end in a single cell. Everything else is timm's ResNet.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

PAPER = "arXiv 1512.03385"
ABOUT = {
    "resnet18_small": "ResNet-18 with a 3x3 stride-1 stem and no max-pooling, for images of about 32 px.",
    "resnet50_small": "ResNet-50 with a 3x3 stride-1 stem and no max-pooling, for images of about 32 px.",
}


class SmallResNet(ResNet):
    """timm's ResNet whose stem keeps the resolution: reductions 1, 1, 2, 4, 8."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        width: Any = self.bn1.num_features
        conv = nn.Conv2d(self.in_chans, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.add_module("conv1", conv)
        self.add_module("maxpool", nn.Identity())
        for info, reduction in zip(self.feature_info, (1, 1, 2, 4, 8)):
            info["reduction"] = reduction


def small_resnet(name: str, pretrained: bool = False, **arguments: Any) -> SmallResNet:
    """A SmallResNet with timm's book-keeping."""
    return build_model_with_cfg(SmallResNet, name, pretrained, **arguments)


_cfg = {
    "num_classes": 1000,
    "input_size": (3, 32, 32),
    "pool_size": (4, 4),
    "first_conv": "conv1",
    "classifier": "fc",
    "license": "apache-2.0",
}
default_cfgs = generate_default_cfgs({"resnet18_small": _cfg, "resnet50_small": _cfg})


@register_model
def resnet18_small(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    return small_resnet("resnet18_small", pretrained, **{"block": BasicBlock, "layers": (2, 2, 2, 2), **kwargs})


@register_model
def resnet50_small(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    return small_resnet("resnet50_small", pretrained, **{"block": Bottleneck, "layers": (3, 4, 6, 3), **kwargs})
