"""resnet312: a ResNet that ends in a grid of 8 x 8 cells and 312 channels on 32 px, with the parameters of a small ViT.

A 3 x 3 stem without pooling and three stages of basic blocks (He et al. 2016, section 4.2, arXiv 1512.03385; the blocks
are timm's), 78, 156 and 312 wide, the last two behind a stride of 2:

    stem 3 -> c1;  stage i: blocks  x -> ReLU(shortcut(x) + BN conv BN-ReLU conv x);  mean of the grid;  linear

timm's own ResNet always has four stages. The shortcut is a 1 x 1 convolution with batch norm where the shape changes,
and the last norm of a block starts at zero, so that a block starts as its shortcut.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, downsample_conv
from torch import Tensor, nn

from sandglass.backbones._pyramid import Pyramid

PAPER = "arXiv 1512.03385"
ABOUT = {"resnet312": "Three stages of basic blocks, 15M parameters: 32 px to 8 x 8 cells of 312 channels."}


class ResNet312(Pyramid):
    """Images (B, 3, S, S) to a grid (B, C, S / 4, S / 4) after the last ReLU; any size, odd maps are rounded up.

    `channels`, `layers` (number of blocks) and `strides` have one value per stage. With `zero_init_last` the last norm
    of each block starts at zero.
    """

    output_fmt = "NCHW"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        channels: tuple[int, ...] = (78, 156, 312),
        layers: tuple[int, ...] = (2, 3, 8),
        strides: tuple[int, ...] = (1, 2, 2),
        zero_init_last: bool = True,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.global_pool = num_classes, in_chans, global_pool
        self.num_features = self.head_hidden_size = channels[-1]
        first = channels[0]
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU()
        )
        self.stages = nn.ModuleList()
        self.feature_info = []
        reduction = 1
        for i, ((before, width), depth, stride) in enumerate(
            zip(pairwise((first, *channels)), layers, strides, strict=True)
        ):
            same = before == width and stride == 1
            shortcut = None if same else downsample_conv(before, width, 1, stride)
            rest = (BasicBlock(width, width) for _ in range(depth - 1))
            self.stages.append(nn.Sequential(BasicBlock(before, width, stride, shortcut), *rest))
            reduction *= stride
            self.feature_info.append({"num_chs": width, "reduction": reduction, "module": f"stages.{i}"})
        self.norm = nn.Identity()
        self.head = ClassifierHead(channels[-1], num_classes, global_pool, drop_rate)
        self.init_weights(zero_init_last)

    def init_weights(self, zero_init_last: bool = True) -> None:
        """Convolutions keep the variance of the gradient behind a ReLU (kaiming, fan out)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock) and zero_init_last:
                module.zero_init_last()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.head.reset(num_classes, global_pool)

    def run(self, x: Tensor, last: int | None) -> tuple[Tensor, list[Tensor]]:
        x, maps = self.stem(x), []
        for stage in self.stages[: None if last is None else last + 1]:
            x = checkpoint_seq(stage, x) if self.grad_checkpointing and self.training else stage(x)
            maps.append(x)
        return x, maps

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)


_cfg = {
    "num_classes": 1000,
    "input_size": (3, 32, 32),
    "first_conv": "stem.0",
    "classifier": "head.fc",
    "license": "apache-2.0",
}
default_cfgs = generate_default_cfgs({"resnet312": _cfg})


@register_model
def resnet312(pretrained: bool = False, **kwargs: Any) -> ResNet312:
    feature_cfg = {"feature_cls": "getter", "out_indices": len(kwargs.get("layers", "123"))}
    return build_model_with_cfg(ResNet312, "resnet312", pretrained, feature_cfg=feature_cfg, **kwargs)
