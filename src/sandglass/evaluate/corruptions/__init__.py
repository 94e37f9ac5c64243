"""The nineteen common corruptions of images, at five levels, computed from their definitions.

Hendrycks and Dietterich 2019, arXiv 1903.12261. The parameters are those of CIFAR-10-C, for 32 px; lengths grow with
the side of the image. Everything is drawn from (corruption, level, row) alone: all models are shown the same images,
rounded to 8 bits as a file would. This is not the published set, whose numbers may not be set beside ours: frost is
synthesised (weather.py), drops have another outline, trails, zooms and stretches another interpolation.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sandglass.data.loader import step_generator
from sandglass.evaluate.corruptions import blur, digital, noise, weather
from sandglass.evaluate.corruptions._draws import Draws

LEVELS: dict[str, tuple[Any, ...]] = {  # what a corruption's function takes at levels 1 to 5; words are in its file
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": (1.05, 1.10, 1.15, 1.20, 1.25),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": (80, 65, 58, 50, 40),
    "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, "water"),
        (0.65, 0.1, 0.8, 0.7, 0.5, "water"),
        (0.65, 0.3, 1, 0.69, 0.5, "water"),
        (0.65, 0.1, 0.7, 0.69, 0.6, "mud"),
        (0.65, 0.1, 0.5, 0.68, 0.6, "mud"),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
}
HELD_OUT = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # the other fifteen are the benchmark

FUNCTIONS = {
    name: getattr(family, name)
    for name in LEVELS
    for family in (noise, blur, weather, digital)
    if hasattr(family, name)
}


def corrupt(name: str, level: int, images: Tensor, rows: range) -> Tensor:
    """Images (B,3,S,S) in [0,1], `rows` of their set, as they are at level 1 to 5: whole levels of 8 bits, in [0,1]."""
    draws = Draws([step_generator(0, level, row, name) for row in rows], images.device)
    return FUNCTIONS[name](images, LEVELS[name][level - 1], draws).clamp(0, 1).mul(255).round().div(255)
