"""nest312: NesT with the parameters of a small ViT and a grid of 8 x 8 cells and 312 channels on 32 px.

Zhang et al. 2022 (arXiv 2105.12723), timm's class: every pixel is a patch, attention stays in blocks of 8 x 8 cells,
between the levels convolution and max-pooling halve the map: 32, 16, 8. timm's own entries fix widths and depths,
and count reductions from a patch of 4 px; here they are arguments, and counted. Drop path is off, as in our others.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.nest import Nest

PAPER = "arXiv 2105.12723"
ABOUT = {"nest312": "NesT of three levels, 15.5M parameters: 32 px to 8 x 8 cells of 312 channels."}


class CountedNest(Nest):
    """timm's NesT with the reductions that its maps have."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for i, info in enumerate(self.feature_info):
            info["reduction"] = self.patch_size * 2**i


_cfg = {
    "num_classes": 1000,
    "input_size": (3, 32, 32),
    "fixed_input_size": True,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
    "license": "apache-2.0",
}
default_cfgs = generate_default_cfgs({"nest312": _cfg})


@register_model
def nest312(pretrained: bool = False, **kwargs: Any) -> CountedNest:
    shape = {"embed_dims": (78, 156, 312), "num_heads": (3, 6, 12), "depths": (2, 2, 12), **kwargs}
    shape = {"img_size": 32, "patch_size": 1, "drop_path_rate": 0.0, **shape}
    feature_cfg = {"feature_cls": "getter", "out_indices": len(shape["embed_dims"])}
    return build_model_with_cfg(CountedNest, "nest312", pretrained, feature_cfg=feature_cfg, **shape)
