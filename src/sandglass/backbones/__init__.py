"""Backbones: every timm model by its own name, and ours, which are registered with timm when `grid` is imported."""

from sandglass.registry import Register

BACKBONES = Register(
    "backbone",
    {
        "hourglass_tiny": "sandglass.backbones.hourglass:hourglass_tiny",
        "hourglass_tiny_r": "sandglass.backbones.hourglass:hourglass_tiny_r",
        "hourglass_c8": "sandglass.backbones.hourglass:hourglass_c8",
        "hourglass_c8_linear": "sandglass.backbones.hourglass:hourglass_c8_linear",
        "hourglass_c16": "sandglass.backbones.hourglass:hourglass_c16",
        "hourglass_c16_nested": "sandglass.backbones.hourglass:hourglass_c16_nested",
        "hourglass_c16_r18": "sandglass.backbones.hourglass:hourglass_c16_r18",
        "hourglass_s12": "sandglass.backbones.hourglass:hourglass_s12",
        "hourglass_s12_r18": "sandglass.backbones.hourglass:hourglass_s12_r18",
        "hourglass_s12_nested": "sandglass.backbones.hourglass:hourglass_s12_nested",
        "hourglass_s24": "sandglass.backbones.hourglass:hourglass_s24",
        "hourglass_i28": "sandglass.backbones.hourglass:hourglass_i28",
        "hourglass_i28_1level": "sandglass.backbones.hourglass:hourglass_i28_1level",
        "hourglass_i56": "sandglass.backbones.hourglass:hourglass_i56",
        "flat_c8": "sandglass.backbones.hourglass:flat_c8",
        "vit_tiny_flat": "sandglass.backbones.toy:vit_tiny_flat",
        "resnet18_small": "sandglass.backbones.resnet_small:resnet18_small",
        "resnet50_small": "sandglass.backbones.resnet_small:resnet50_small",
        "resnet_toy": "sandglass.backbones.toy:resnet_toy",
        "toy": "sandglass.backbones.toy:toy",
        "resnet312": "sandglass.backbones.resnet312:resnet312",
        "vit312": "sandglass.backbones.vit312:vit312",
        "t2t312": "sandglass.backbones.t2t:t2t312",
        "cvt312": "sandglass.backbones.cvt:cvt312",
        "cct312": "sandglass.backbones.cct:cct312",
        "sl_vit312": "sandglass.backbones.sl_vit:sl_vit312",
        "dhvt312": "sandglass.backbones.dhvt:dhvt312",
        "nest312": "sandglass.backbones.nest312:nest312",
    },
)
