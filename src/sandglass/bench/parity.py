"""How far batched views are from torchvision's and Pillow's, operation by operation, on real photographs.

Both sides are given the same images and the same drawn parameters; what is told is the mean absolute difference of
their pixels, in 1/255. All are held to torchvision on float images, where both can be exact. How far they are from
Pillow's blur, which lightly calls, is told besides: it makes the bell of boxes, on 8-bit pixels, and is as far from
torchvision's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from sandglass.config import resolve
from sandglass.data.loader import Split, step_generator
from sandglass.views import RECIPES, ops
from sandglass.views.recipes import for_size

BOUNDS = {"crop and flip": 0.01, "crop to half the size": 0.01, "colour": 1.0, "blur": 0.5}  # of 255
JITTER: tuple[Callable[[Tensor, float], Tensor], ...] = (
    reference.adjust_brightness,
    reference.adjust_contrast,
    reference.adjust_saturation,
    reference.adjust_hue,
)


def differences(split: Split, images: int) -> dict[str, float]:
    """Mean absolute difference in 1/255 of each operation over the first `images` images."""
    pixels, sizes = split.take(torch.arange(images))
    generator = step_generator(0, 0, 0, "parity")
    return {name: float((ours - theirs).abs().mean() * 255) for name, ours, theirs in _pairs(pixels, sizes, generator)}


def _pairs(pixels: Tensor, sizes: Tensor, generator: torch.Generator) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, ours and theirs, float (B, 3, h, w) in [0, 1]."""
    images, n = pixels / 255, len(pixels)
    u = partial(torch.rand, generator=generator)
    for name, side in (("crop and flip", pixels.shape[2]), ("crop to half the size", pixels.shape[2] // 2)):
        boxes, flips = ops.draw_crop(u(n, 22), sizes, (0.08, 1.0)), u(n) < 0.5
        rows, columns = ops.crop_spans(boxes)
        cropped = [
            reference.resized_crop(image, *box, size=[side, side], antialias=True)
            for image, box in zip(images, boxes.long().tolist())
        ]
        flipped = [crop.flip(2) if flip else crop for crop, flip in zip(cropped, flips)]
        yield name, ops.resample(pixels, rows, ops.mirror(columns, flips), side) / 255, torch.stack(flipped)

    settings = for_size(resolve(RECIPES, "simclr", {}), pixels.shape[2])  # the strongest distortion
    strengths = [settings[key] for key in ("brightness", "contrast", "saturation", "hue")]
    order, factors = ops.draw_jitter(u(n, 9), 1.0, strengths)
    coloured, theirs = images.clone(), []
    ops.colour_jitter(coloured, order, factors)
    for image, turns, values in zip(images, order.long().tolist(), factors.tolist()):
        for kind in turns:
            image = JITTER[kind](image, values[kind])
        theirs.append(image)
    yield "colour", coloured, torch.stack(theirs)

    sigma = ops.draw_uniform(u(n), settings["blur_sigma_min"], settings["blur_sigma_max"])
    reach = math.ceil(3 * settings["blur_sigma_max"])
    ours = ops.gaussian_blur(images, sigma, reach)
    taps = [2 * reach + 1] * 2
    yield "blur", ours, torch.stack([reference.gaussian_blur(x, taps, [s, s]) for x, s in zip(images, sigma.tolist())])
    pictures = (Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).numpy())
    filtered = [picture.filter(ImageFilter.GaussianBlur(s)) for picture, s in zip(pictures, sigma.tolist())]
    yield "blur, against Pillow's", ours, torch.stack([reference.pil_to_tensor(x) / 255 for x in filtered])
