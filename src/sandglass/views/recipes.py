"""How the views of a batch are made: one pipeline, one row of settings per recipe.

Order: random resized crop, flips, quarter turn, colour jitter, grey, blur, solarize, then local rotation and region
confusion (after blur, which would hide their seams). Every view of every image has its own draws. Each random number
has an address, (image, view, parameter), in a sequence that a generator of (seed, epoch) starts: what an image gets
does not depend on the batch it is in, on the order or on who asks. What a recipe's row does not name is off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
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

SLICE = 2**20  # pixel values worked on at once on a CPU: what its caches hold
DRAWN_AT_ONCE = 2**13  # views whose parameters are drawn at once, to hold the memory down

GATES = ("quarter_turn", "grey", "blur", "solarize", "local_rotation", "region_confusion")
NUMBERS = {"crop": 22, "jitter": 9, "patch": 4, "cells": 48} | dict.fromkeys(("hflip", "vflip", "sigma", *GATES), 1)
FIRST = dict(zip(NUMBERS, accumulate(NUMBERS.values(), initial=0)))  # a view has addresses also for what is off
LARGE_VIEWS, VIEWS = 8, 40  # that an image has addresses for, the small views after the large ones


@dataclass(frozen=True)
class Drawn:
    """The parameters of all views of one side of n images: tensors (n, count, ...)."""

    side: int
    settings: dict[str, Any]
    largest: float  # the longest side in px that a crop can have
    values: dict[str, Tensor]


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


def make_views(name: str, settings: dict[str, Any], images: Tensor, *drawing: Any) -> list[Tensor]:
    """The views alone of images that are seen once; `drawing` is what `draw_views` takes after the settings."""
    return located_views(draw_views(name, settings, *drawing), images)[0]


def draw_views(
    name: str, settings: dict[str, Any], sizes: Tensor, size: int, generator: Generator, rows: Tensor | None = None
) -> list[Drawn]:
    """All that is random in the views of n images, on the device of `sizes`, (n, 2) int64 true heights and widths.

    rows (n,) int64: which images of the generator's sequence they are, 0 .. n-1 if not given. Settings that are not
    given are the recipe's own. A view takes about 60 bytes: 48 MB for 100,000 images with eight.
    """
    start = int(torch.randint(2**63 - 1, (), generator=generator))
    declared = {key: default(row) for key, row in RECIPES.declared(name).items()}
    rows = torch.arange(len(sizes)) if rows is None else rows
    drawn = []
    for place, (side, kind) in enumerate(large_and_small(declared | settings, size)):
        share = max(1, DRAWN_AT_ONCE // kind["count"])
        slices = zip(sizes.split(share), rows.to(sizes.device).split(share))
        parts = [draw(kind, *part, side, start, place * LARGE_VIEWS) for part in slices]
        values = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        largest = ops.largest_crop(sizes, kind["crop_scale_max"]) if kind["crop_scale_max"] > 0 else math.inf
        drawn.append(Drawn(side, kind, largest, values))
    return drawn


def draw(
    settings: dict[str, Any], sizes: Tensor, rows: Tensor, size: int, start: int = 0, first: int = 0
) -> dict[str, Tensor]:
    """The parameters of `count` views, from the `first` on, of images of `sizes` (n, 2) that are `rows` (n,) of the
    sequence that starts at `start`: (n, count, ...) each, of what is on."""
    count, sizes = settings["count"], sizes.unsqueeze(1)
    views = rows.unsqueeze(1) * VIEWS + torch.arange(first, first + count, device=rows.device)

    def u(key: str) -> Tensor:
        return ops.numbers(start, views * sum(NUMBERS.values()) + FIRST[key], NUMBERS[key])

    def gate(key: str) -> Tensor:
        chances = [settings[key], settings.get(f"{key}_odd", settings[key])] * count
        return u(key).squeeze(2) < torch.tensor(chances[:count], device=rows.device)

    if settings["crop_scale_max"] > 0:
        scale = settings["crop_scale_min"], settings["crop_scale_max"]
        down, across = ops.crop_spans(ops.draw_crop(u("crop"), sizes, scale))
    else:
        down, across = ops.centre_spans(sizes.expand(-1, count, -1), size)
    draws = {"rows": ops.mirror(down, gate("vflip")), "columns": ops.mirror(across, gate("hflip"))}
    draws |= {key: gate(key) for key in GATES if settings[key] or settings.get(f"{key}_odd")}
    if settings["jitter"]:
        strengths = [settings[key] for key in ("brightness", "contrast", "saturation", "hue")]
        draws["order"], draws["factors"] = ops.draw_jitter(u("jitter"), settings["jitter"], strengths)
    if "blur" in draws:
        draws["sigma"] = ops.draw_uniform(u("sigma").squeeze(2), settings["blur_sigma_min"], settings["blur_sigma_max"])
    if "local_rotation" in draws:
        draws["patch"] = ops.draw_patch(u("patch"), size, size)
    if "region_confusion" in draws:
        draws["cells"] = ops.draw_confusion(u("cells"), confusion_cells(size))
    return draws


def located_views(drawn: list[Drawn], images: Tensor, which: Tensor | None = None) -> tuple[list[Tensor], list[Places]]:
    """The views of a batch, float32 in [0, 1]: `settings["count"]` tensors (B, 3, size, size), then the small ones, as
    `sizes_of` says; and where in the image each has its pixels from.

    images: uint8 (B, 3, H, W), each in the top left of its canvas, on the device of the parameters; which: (B,) int64,
    whose of the parameters they get, each its own in order if not given.
    """
    views: list[Tensor] = []
    places: list[Places] = []
    for kind in drawn:
        values = {key: value if which is None else value.index_select(0, which) for key, value in kind.values.items()}
        views += _views(kind, {key: value.transpose(0, 1).flatten(0, 1) for key, value in values.items()}, images)
        for i in range(kind.settings["count"]):
            mine = {key: value[:, i] for key, value in values.items()}
            places.append(Places(mine["rows"], mine["columns"], kind.side, mine, kind.settings["confusion_trim"]))
    return views, places


def _views(drawn: Drawn, values: dict[str, Tensor], images: Tensor) -> list[Tensor]:
    """All views in one pass: the batch is repeated, and every copy of an image has parameters of its own."""
    copies, size, on_cpu = drawn.settings["count"], drawn.side, images.device.type == "cpu"
    source = torch.arange(len(images), device=images.device).repeat(copies)
    views = torch.empty(len(source), 3, size, size, device=images.device)
    share = max(1, SLICE // (3 * size * size)) if on_cpu else len(source)
    with torch.autocast(images.device.type, enabled=False):  # float32 also where the caller trains in bfloat16
        for start in range(0, len(source), share):
            part = slice(start, start + share)
            some = {key: value[part] for key, value in values.items()}
            _apply(drawn, some, images.index_select(0, source[part]), views[part])
    return list(views.chunk(copies))


def _apply(drawn: Drawn, values: dict[str, Tensor], pixels: Tensor, views: Tensor) -> None:
    """Fill `views` from `pixels`, in the order that the top of this file gives."""
    settings, rows, columns = drawn.settings, values["rows"], values["columns"]
    if drawn.largest < 0.7 * min(pixels.shape[2:]):  # most of the image will not be seen
        pixels, rows, columns = ops.window(pixels, rows, columns, math.ceil(drawn.largest))
    if drawn.largest <= drawn.side and settings["interpolation"] == "bilinear":
        crop = ops.enlarge(pixels, rows, columns, drawn.side)
    else:
        crop = ops.resample(pixels, rows, columns, drawn.side, settings["interpolation"])
    torch.div(crop, 255, out=views).clamp_(0, 1)  # a cubic overshoots

    def some(key: str, operation: Callable[..., Tensor], *parameters: str) -> None:
        if key in values:
            ops.only(views, values[key], operation, *(values[name] for name in parameters))

    some("quarter_turn", ops.quarter_turn)
    if "order" in values:
        ops.colour_jitter(views, values["order"], values["factors"])
    some("grey", ops.grey)
    some("blur", partial(ops.gaussian_blur, reach=math.ceil(3 * settings["blur_sigma_max"])), "sigma")
    some("solarize", ops.solarize)
    some("local_rotation", ops.local_rotation, "patch")
    some("region_confusion", partial(ops.region_confusion, trim=settings["confusion_trim"]), "cells")


def evaluation_view(images: Tensor, sizes: Tensor, size: int) -> Tensor:
    """uint8 (B, 3, H, W), sizes (B, 2) -> (B, 3, size, size) in [0, 1]: shorter side resized, then the centre."""
    if images.shape[2:] == (size, size) and bool((sizes == size).all()):
        return images.float().div_(255)
    with torch.autocast(images.device.type, enabled=False):
        return ops.resample(images, *ops.centre_spans(sizes, size), size).div_(255)
