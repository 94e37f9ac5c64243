"""vit312: an ordinary ViT of 15M parameters with a grid of 8 x 8 cells and 312 channels on 32 px.

Dosovitskiy et al. 2021 (arXiv 2010.11929), timm's own class: 4 px patches, a class token that the head reads, learned
positions, 13 pre-norm blocks of 6 heads. The obvious depth of 12 would have 14.1M, outside of 15M +- 5 %.
"""

from __future__ import annotations

from typing import Any

from timm.models import VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model

PAPER = "arXiv 2010.11929"
ABOUT = {"vit312": "A plain ViT with class token, 15M parameters: 32 px to 8 x 8 cells of 312 channels."}

_cfg = {
    "num_classes": 1000,
    "input_size": (3, 32, 32),
    "fixed_input_size": True,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
    "license": "apache-2.0",
}
default_cfgs = generate_default_cfgs({"vit312": _cfg})


@register_model
def vit312(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    shape = {"img_size": 32, "patch_size": 4, "embed_dim": 312, "depth": 13, "num_heads": 6, **kwargs}
    feature_cfg = {"feature_cls": "getter", "out_indices": shape["depth"]}
    return build_model_with_cfg(VisionTransformer, "vit312", pretrained, feature_cfg=feature_cfg, **shape)
