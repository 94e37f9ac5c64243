"""How the views of a batch are made: one pipeline, one row of settings per recipe.

Order: random resized crop, flips, quarter turn, colour jitter, grey, blur, solarize, then local rotation and region
confusion (after blur, which would hide their seams). Every view of every image has its own draws, from one CPU
generator: the same state gives the same bits. What a recipe's row does not name is off.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from sandglass.registry import default
from sandglass.views import RECIPES, ops
from sandglass.views.places import Places

ABOUT = {
    "plain": "The image as evaluation sees it: shorter side resized, centre cropped, nothing random.",
    "crop_flip": "Random resized crop and horizontal flip, for finetuning and augmented probes.",
    "baseline": "Crop, flip, moderate colour jitter, grey and blur: the shared policy of all objectives.",
    "simclr": "SimCLR's full-strength colour distortion (arXiv 2002.05709, appendix A, s = 1).",
}

SETTINGS = {
    "plain": {"count": (1, 1, 8)},
    "crop_flip": {
        "count": (1, 1, 8),
        "crop_scale_min": (0.08, 0.01, 1.0),  # fractions of the image's area
        "crop_scale_max": (1.0, 0.01, 1.0),
        "hflip": (0.5, 0.0, 1.0),  # probabilities
        "vflip": (0.0, 0.0, 1.0),
        "interpolation": ("bilinear", {"bilinear", "bicubic"}),
    },
    "baseline": {
        "count": (2, 1, 8),
        "crop_scale_min": (0.08, 0.01, 1.0),
        "crop_scale_max": (1.0, 0.01, 1.0),
        "hflip": (0.5, 0.0, 1.0),
        "vflip": (0.0, 0.0, 1.0),
        "quarter_turn": (0.0, 0.0, 1.0),
        "jitter": (0.8, 0.0, 1.0),
        "brightness": (0.4, 0.0, 1.0),  # half-widths around 1
        "contrast": (0.4, 0.0, 1.0),
        "saturation": (0.4, 0.0, 1.0),
        "hue": (0.1, 0.0, 0.5),  # in turns
        "grey": (0.2, 0.0, 1.0),
        "blur": (0.5, 0.0, 1.0),
        "blur_sigma_min": (0.1, 0.01, 10.0),  # pixels; see blur_sigmas
        "blur_sigma_max": (2.0, 0.01, 10.0),
        "solarize": (0.0, 0.0, 1.0),
        "interpolation": ("bilinear", {"bilinear", "bicubic"}),
    },
    "simclr": {
        "count": (2, 1, 8),
        "crop_scale_min": (0.08, 0.01, 1.0),
        "crop_scale_max": (1.0, 0.01, 1.0),
        "hflip": (0.5, 0.0, 1.0),
        "vflip": (0.0, 0.0, 1.0),
        "quarter_turn": (0.0, 0.0, 1.0),
        "jitter": (0.8, 0.0, 1.0),
        "brightness": (0.8, 0.0, 1.0),
        "contrast": (0.8, 0.0, 1.0),
        "saturation": (0.8, 0.0, 1.0),
        "hue": (0.2, 0.0, 0.5),
        "grey": (0.2, 0.0, 1.0),
        "blur": (0.5, 0.0, 1.0),
        "blur_sigma_min": (0.1, 0.01, 10.0),
        "blur_sigma_max": (2.0, 0.01, 10.0),
        "solarize": (0.0, 0.0, 1.0),
        "interpolation": ("bilinear", {"bilinear", "bicubic"}),
    },
}

OFF: dict[str, Any] = {
    "count": 1,
    "crop_scale_min": 0.0,
    "crop_scale_max": 0.0,  # 0: no random crop, the image as evaluation sees it
    "interpolation": "bilinear",
    **dict.fromkeys(("hflip", "vflip", "quarter_turn", "jitter", "brightness", "contrast", "saturation", "hue"), 0.0),
    **dict.fromkeys(("grey", "blur", "solarize", "local_rotation", "region_confusion"), 0.0),
    "blur_sigma_min": 0.1,
    "blur_sigma_max": 2.0,
    "small_count": 0,  # multi-crop: further views of their own size and crop
    "small_size": 0.5,  # fraction of the size
    "small_scale_min": 0.05,
    "small_scale_max": 0.14,
}

SLICE = 2**20  # pixel values worked on at once on a CPU: what its caches hold; the draws do not depend on it


def for_size(settings: dict[str, Any], size: int) -> dict[str, Any]:
    """Sigma is in pixels of 224: no blur below 64, sigma scaled below 128 (to 0.5 at least), from there as given."""
    if size < 64:
        return settings | {"blur": 0.0}
    if size < 128:
        return settings | {"blur_sigma_max": max(0.5, settings["blur_sigma_max"] * size / 224)}
    return settings


def confusion_cells(size: int) -> int:
    """Cells a side of region confusion: one per stride of 32, as in a backbone's grid, but 4 at least and 7 at most."""
    return min(max(size // 32, 4), 7)


def make_views(*arguments: Any) -> list[Tensor]:
    """The views alone of `located_views`, whose arguments it takes."""
    return located_views(*arguments)[0]


def located_views(
    name: str,
    settings: dict[str, Any],
    images: Tensor,
    sizes: Tensor,
    size: int,
    generator: Generator,
    own: slice = slice(None),
) -> tuple[list[Tensor], list[Places]]:
    """The views of a batch: `settings["count"]` tensors (B, 3, size, size) float32 in [0, 1] on the images' device, and
    where in the image each has its pixels from.

    images: uint8 (B, 3, H, W), each in the top left of its canvas; sizes: (B, 2) int64 true heights and widths, and
    generator: both on the CPU. Settings that are not given are the recipe's own. When processes share a batch, `sizes`
    are the whole batch's and `own` says which of them `images` holds: an image's draws do not depend on who makes it.
    """
    declared = {key: default(row) for key, row in RECIPES.declared(name).items()}
    chosen = for_size(OFF | declared | settings, size)
    views, places = _views(chosen, images, sizes, size, generator, own)
    if chosen["small_count"]:
        limits = {"crop_scale_min": chosen["small_scale_min"], "crop_scale_max": chosen["small_scale_max"]}
        small = chosen | limits | {"count": chosen["small_count"]}
        more = _views(small, images, sizes, round(size * chosen["small_size"]), generator, own)
        views, places = views + more[0], places + more[1]
    return views, places


def evaluation_view(images: Tensor, sizes: Tensor, size: int) -> Tensor:
    """uint8 (B, 3, H, W), sizes (B, 2) -> (B, 3, size, size) in [0, 1]: shorter side resized, then the centre."""
    if images.shape[2:] == (size, size) and bool((sizes == size).all()):
        return images.float().div_(255)
    with torch.autocast(images.device.type, enabled=False):
        return ops.resample(images, *ops.centre_spans(sizes, size), size).div_(255)


def _views(
    settings: dict[str, Any], images: Tensor, sizes: Tensor, size: int, generator: Generator, own: slice
) -> tuple[list[Tensor], list[Places]]:
    """All views in one pass: the batch is repeated, and every copy of an image draws for itself."""
    copies = settings["count"]
    draws = draw(settings, sizes.repeat(copies, 1), size, generator)
    kept = torch.arange(copies * len(sizes)).view(copies, -1)[:, own].flatten()
    draws = {key: value[kept] for key, value in draws.items()}
    source = torch.arange(len(images)).repeat(copies)
    views = torch.empty(len(source), 3, size, size, device=images.device)
    share = max(1, SLICE // (3 * size * size)) if images.device.type == "cpu" else len(source)
    with torch.autocast(images.device.type, enabled=False):  # float32 also where the caller trains in bfloat16
        for start in range(0, len(source), share):
            part = slice(start, start + share)
            pixels = images.index_select(0, source[part].to(images.device))
            _apply({key: value[part] for key, value in draws.items()}, settings, pixels, views[part])
    kinds = list(views.view(copies, len(images), 3, size, size).unbind(0))
    return kinds, [Places(draws["rows"][i], draws["columns"][i]) for i in torch.arange(len(source)).chunk(copies)]


def draw(settings: dict[str, Any], sizes: Tensor, size: int, generator: Generator) -> dict[str, Tensor]:
    """Everything random of n views, each entry with n rows, in the order of the pipeline."""
    n = len(sizes)

    def gate(key: str) -> Tensor:
        return ops.draw_gate(n, settings[key], generator)

    draws: dict[str, Tensor] = {}
    if settings["crop_scale_max"] > 0:
        scale = settings["crop_scale_min"], settings["crop_scale_max"]
        rows, columns = ops.crop_spans(ops.draw_crop(sizes, scale, generator))
    else:
        rows, columns = ops.centre_spans(sizes, size)
    draws["columns"], draws["rows"] = ops.mirror(columns, gate("hflip")), ops.mirror(rows, gate("vflip"))
    draws["quarter_turn"] = gate("quarter_turn")
    strengths = [settings[key] for key in ("brightness", "contrast", "saturation", "hue")]
    draws["order"], draws["factors"] = ops.draw_jitter(n, settings["jitter"], strengths, generator)
    draws["grey"] = gate("grey")
    draws["blur"] = gate("blur")
    draws["sigma"] = ops.draw_uniform(n, settings["blur_sigma_min"], settings["blur_sigma_max"], generator)
    draws["solarize"] = gate("solarize")
    if settings["local_rotation"]:
        draws["local_rotation"], draws["patch"] = gate("local_rotation"), ops.draw_patch(n, size, size, generator)
    if settings["region_confusion"]:
        draws["region_confusion"] = gate("region_confusion")
        draws["cells"] = ops.draw_confusion(n, confusion_cells(size), generator)
    return draws


def _apply(draws: dict[str, Tensor], settings: dict[str, Any], pixels: Tensor, views: Tensor) -> None:
    """Fill `views` from `pixels`, in the order that the top of this file gives."""
    crop = ops.resample(pixels, draws["rows"], draws["columns"], views.shape[-1], settings["interpolation"])
    torch.div(crop, 255, out=views).clamp_(0, 1)  # a cubic overshoots
    ops.only(views, draws["quarter_turn"], ops.quarter_turn)
    ops.colour_jitter(views, draws["order"], draws["factors"])
    ops.only(views, draws["grey"], ops.grey)
    blur = partial(ops.gaussian_blur, reach=math.ceil(3 * settings["blur_sigma_max"]))
    ops.only(views, draws["blur"], blur, draws["sigma"])
    ops.only(views, draws["solarize"], ops.solarize)
    if settings["local_rotation"]:
        ops.only(views, draws["local_rotation"], ops.local_rotation, draws["patch"])
    if settings["region_confusion"]:
        ops.only(views, draws["region_confusion"], ops.region_confusion, draws["cells"])
