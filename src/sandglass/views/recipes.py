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
    "orthogonality": "SimCLR's distortion and vertical flips besides.",
    "lorot": "Crop and flip, then a square patch is turned in place: LoRot-I (arXiv 2207.10023).",
    "dcl": "Crop and flip, then the cells of a grid change places: region confusion (arXiv 2105.08788).",
    "byol": "BYOL's unequal pair (arXiv 2006.07733): one view always blurred, the other sometimes solarized.",
    "multi_crop": "Two large crops and six small ones by the shared policy, as SwAV has them (arXiv 2006.09882).",
    "located": "VICRegL's unequal pair of crops (arXiv 2210.01571), small ones on demand, cubic resampling.",
    "located_legacy": "One large and one small crop, flipped both ways: what lightly gave VICRegL in early 2023.",
    "masked": "One view for masked image modelling: large crop and flip alone, cubic (arXiv 2111.09886).",
}

# A row says how it differs from the one it is `like`. `X_odd` is X of every second view; `small_X` is X of the small
# views, for all of them alike. What is not said of odd and small views is as for the others.
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
        "blur_sigma_min": (0.1, 0.01, 10.0),  # pixels; see for_size
        "blur_sigma_max": (2.0, 0.01, 10.0),
        "solarize": (0.0, 0.0, 1.0),
        "interpolation": ("bilinear", {"bilinear", "bicubic"}),
    },
    "simclr": {
        "like": "baseline",
        "brightness": (0.8, 0.0, 1.0),
        "contrast": (0.8, 0.0, 1.0),
        "saturation": (0.8, 0.0, 1.0),
        "hue": (0.2, 0.0, 0.5),
    },
    "orthogonality": {"like": "simclr", "vflip": (0.5, 0.0, 1.0)},
    "lorot": {"like": "crop_flip", "count": (2, 1, 8), "local_rotation": (1.0, 0.0, 1.0)},
    "dcl": {
        "like": "crop_flip",
        "count": (2, 1, 8),
        "region_confusion": (1.0, 0.0, 1.0),
        "confusion_trim": (10, 0, 100),  # pixels of 448 cut off at each side
    },
    "byol": {
        "like": "baseline",
        "saturation": (0.2, 0.0, 1.0),
        "blur": (1.0, 0.0, 1.0),
        "blur_odd": (0.1, 0.0, 1.0),
        "solarize_odd": (0.2, 0.0, 1.0),
    },
    "multi_crop": {  # DINO: scales 0.4 .. 1 and 0.05 .. 0.4, saturation 0.2, blur 1, odd 0.1, solarize odd 0.2, bicubic
        "like": "baseline",
        "crop_scale_min": (0.14, 0.01, 1.0),
        "blur_odd": (0.5, 0.0, 1.0),
        "solarize_odd": (0.0, 0.0, 1.0),
        "small_count": (6, 0, 32),
        "small_size": (0.5, 0.1, 1.0),  # fraction of the size, at most; see small_side
        "small_crop_scale_min": (0.05, 0.01, 1.0),
        "small_crop_scale_max": (0.14, 0.01, 1.0),
        "small_blur": (0.5, 0.0, 1.0),
        "small_solarize": (0.0, 0.0, 1.0),
    },
    "located": {
        "like": "byol",
        "interpolation": ("bicubic", {"bilinear", "bicubic"}),
        "small_count": (0, 0, 32),
        "small_size": (0.5, 0.1, 1.0),
        "small_crop_scale_min": (0.08, 0.01, 1.0),
        "small_crop_scale_max": (0.4, 0.01, 1.0),
    },
    "located_legacy": {
        "like": "baseline",
        "count": (1, 1, 8),
        "crop_scale_min": (0.2, 0.01, 1.0),
        "vflip": (0.5, 0.0, 1.0),
        "jitter": (1.0, 0.0, 1.0),
        "saturation": (0.2, 0.0, 1.0),
        "small_count": (1, 0, 32),
        "small_size": (0.5, 0.1, 1.0),
        "small_crop_scale_min": (0.05, 0.01, 1.0),
        "small_crop_scale_max": (0.2, 0.01, 1.0),
        "small_blur": (0.1, 0.0, 1.0),
        "small_solarize": (0.2, 0.0, 1.0),
    },
    "masked": {
        "like": "crop_flip",
        "crop_scale_min": (0.67, 0.01, 1.0),
        "interpolation": ("bicubic", {"bilinear", "bicubic"}),
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
    "confusion_trim": 10,
    "small_count": 0,  # multi-crop: further views of their own size and crop
    "small_size": 0.5,
    "small_crop_scale_min": 0.05,
    "small_crop_scale_max": 0.14,
}

SLICE = 2**20  # pixel values worked on at once on a CPU: what its caches hold; the draws do not depend on it


def for_size(settings: dict[str, Any], size: int) -> dict[str, Any]:
    """Sigma is in pixels of 224: no blur below 64, sigma scaled below 128 (to 0.5 at least), from there as given."""
    if size < 64:
        return settings | {"blur": 0.0, "blur_odd": 0.0}
    if size < 128:
        return settings | {"blur_sigma_max": max(0.5, settings["blur_sigma_max"] * size / 224)}
    return settings


def confusion_cells(size: int) -> int:
    """Cells a side of region confusion: one per stride of 32, as in a backbone's grid, but 4 at least and 7 at most."""
    return min(max(size // 32, 4), 7)


def small_side(size: int, fraction: float) -> int:
    """Of small views: `fraction` of `size`, down to a multiple of 32 or else of 8: 224 -> 96, 64 -> 32, 32 -> 16."""
    side = round(size * fraction)
    step = 32 if side >= 32 else 8
    return max(side // step, 1) * step


def large_and_small(settings: dict[str, Any], size: int) -> list[tuple[int, dict[str, Any]]]:
    """The side and the settings of the large views and, if there are any, of the small ones."""
    given = OFF | settings
    of_small = {key.removeprefix("small_"): value for key, value in given.items() if key.startswith("small_")}
    large = {key: value for key, value in given.items() if not key.startswith("small_")}
    small = {key: value for key, value in large.items() if key.removesuffix("_odd") not in of_small} | of_small
    both = (size, large), (small_side(size, of_small["size"]), small)
    return [(side, for_size(kind, size)) for side, kind in both if kind["count"]]


def sizes_of(settings: dict[str, Any], size: int) -> list[int]:
    """The side in px of each view that a recipe with these settings makes, in their order."""
    return [side for side, kind in large_and_small(settings, size) for _ in range(kind["count"])]


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
    """The views of a batch, float32 in [0, 1] on the images' device: `settings["count"]` tensors (B, 3, size, size),
    then the small ones, as `sizes_of` says; and where in the image each has its pixels from.

    images: uint8 (B, 3, H, W), each in the top left of its canvas; sizes: (B, 2) int64 true heights and widths, and
    generator: both on the CPU. Settings that are not given are the recipe's own. When processes share a batch, `sizes`
    are the whole batch's and `own` says which of them `images` holds: an image's draws do not depend on who makes it.
    """
    declared = {key: default(row) for key, row in RECIPES.declared(name).items()}
    views: list[Tensor] = []
    places: list[Places] = []
    for side, kind in large_and_small(declared | settings, size):
        more = _views(kind, images, sizes, side, generator, own)
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
    places = [
        Places(drawn["rows"], drawn["columns"], size, drawn, settings["confusion_trim"])
        for drawn in ({key: value.chunk(copies)[i] for key, value in draws.items()} for i in range(copies))
    ]
    return list(views.chunk(copies)), places


def draw(settings: dict[str, Any], sizes: Tensor, size: int, generator: Generator) -> dict[str, Tensor]:
    """Everything random of n views, each entry with n rows, in the order of the pipeline.

    sizes (n, 2): true heights and widths of the batch's images, once for each of the `count` views of it.
    """
    n, count = len(sizes), settings["count"]

    def gate(key: str) -> Tensor:
        even = settings[key]
        odd = settings.get(f"{key}_odd", even)
        chance = torch.tensor([(even, odd)[view % 2] for view in range(count)], dtype=torch.float64)
        return ops.draw_gate(n, chance.repeat_interleave(n // count), generator)

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
        confuse = partial(ops.region_confusion, trim=settings["confusion_trim"])
        ops.only(views, draws["region_confusion"], confuse, draws["cells"])
