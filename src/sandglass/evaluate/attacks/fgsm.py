"""FGSM: one step of length epsilon to where the loss of the true label rises most, as far as one gradient can tell.

l-inf  x + eps sign(g),  g = grad_x CE(f(x), y).  Goodfellow et al. 2015, arXiv 1412.6572.
l-2    x + eps g / |g|.
`thesis` is the formula as the thesis prints it: one 8-bit level, true labels, no clipping. It does not say whether its
epsilon is of pixels or of the standardised image, where 1/255 is about a quarter of a level: `space` has both readings.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sandglass.evaluate.attacks._ball import Ball
from sandglass.evaluate.attacks._base import Model, Outcome, Shown, run
from sandglass.evaluate.attacks._kept import Kept

PAPER = "arXiv 1412.6572"
ABOUT = {
    "fgsm": "Fast gradient sign method: one step of size epsilon along the sign of the gradient.",
    "fgsm_l2": "Fast gradient method: one step of Euclidean length epsilon along the gradient.",
}

SETTINGS = {
    "fgsm": {
        "epsilons": ([0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0], 0.0, 255.0),  # in 1/255
        "space": ("pixel", {"pixel", "normalised"}),  # normalised: epsilon is of what the network sees, pixels / std
        "clip": True,  # to [0, 1], as an image file would
    },
    "fgsm_l2": {"like": "fgsm", "epsilons": ([0.0, 25.5, 63.75, 127.5], 0.0, 1e5)},  # 0.1, 0.25, 0.5 of the pixel range
}

PRESETS = {
    "thesis": {"epsilons": [0.0, 1.0], "clip": False},
    "sound": {"space": "pixel", "clip": True},
}


def step(batch: Shown, ball: Ball) -> Tensor:
    return ball.clipped(batch.x + ball.radius * ball.steepest(batch.slope))


def linf(
    model: Model, images: Tensor, labels: Tensor, settings: dict[str, Any], seed: int, kept: Kept | None = None
) -> Outcome:
    """Rows for every epsilon, examples, predictions; `seed` changes nothing. Raises Problem, see `run`."""
    return run("fgsm", step, model, images, labels, settings, kept)


def l2(
    model: Model, images: Tensor, labels: Tensor, settings: dict[str, Any], seed: int, kept: Kept | None = None
) -> Outcome:
    return run("fgsm_l2", step, model, images, labels, settings, kept, norm="l2")
