"""PGD: many small steps uphill, each put back into the ball, from several random starts; the first that fools counts.

x_0 uniform in the ball;  x_{t+1} = project(clip(x_t + (a eps / T) s(grad loss))),  T steps,
s the sign of the gradient in l-inf, the gradient over its length in l-2.  Madry et al. 2018, arXiv 1706.06083.
The loss is the cross-entropy, the margin, or each in turn: an image is robust only if it withstands every search.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from sandglass.data.loader import step_generator
from sandglass.evaluate.attacks._ball import Ball
from sandglass.evaluate.attacks._base import (
    Loss,
    Model,
    Outcome,
    Shown,
    ask,
    cross_entropy,
    input_gradient,
    margin,
    run,
)
from sandglass.evaluate.attacks._kept import Kept

PAPER = "arXiv 1706.06083"
ABOUT = {
    "pgd": "Projected gradient descent in l-inf: many small steps from random starts, kept inside the ball.",
    "pgd_l2": "Projected gradient descent in l-2: many small steps from random starts, kept inside the ball.",
}

SETTINGS = {
    "pgd": {
        "epsilons": ([0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0], 0.0, 255.0),  # in 1/255
        "space": ("pixel", {"pixel", "normalised"}),
        "clip": True,
        "steps": (20, 1, 10000),  # T
        "step_scale": (2.5, 0.01, 1000.0),  # a; a step is a * epsilon / T
        "loss": ("cross_entropy", {"cross_entropy", "margin", "both"}),
        "random_start": True,  # without it there is one start, and so no restarts
        "restarts": (5, 1, 1000),  # with each loss
    },
    "pgd_l2": {"like": "pgd", "epsilons": ([0.0, 25.5, 63.75, 127.5], 0.0, 1e5)},
}

PRESETS = {
    "thesis": {"epsilons": [0.0, 1.0], "clip": False},  # the point at which the thesis has FGSM
    "sound": {"loss": "both"},
    "long": {"loss": "both", "steps": 100},
}

LOSSES: dict[str, list[Loss]] = {
    "cross_entropy": [cross_entropy],
    "margin": [margin],
    "both": [cross_entropy, margin],
}


def search(
    model: Model, x: Tensor, y: Tensor, ball: Ball, start: Tensor, steps: int, scale: float, loss: Loss
) -> Tensor:
    """Where `steps` steps uphill from `start` end: (B,3,S,S)."""
    moved = start
    for _ in range(steps):
        slope = input_gradient(model, moved, y, loss)
        moved = ball.inside(moved + scale * ball.radius / steps * ball.steepest(slope), x)
    return moved


def descend(settings: dict[str, Any], seed: int, batch: Shown, ball: Ball) -> Tensor:
    """For each image the first end of a search that fools the model, else the last one.

    What was wrong before anything was done to it stays as it is where no search ends in an error. Starts are a function
    of (seed, search, row), and so do not depend on batches.
    """
    already = ask(batch.model, batch.x).argmax(dim=1) != batch.y
    found, left = batch.x.clone(), torch.arange(len(batch.x), device=batch.x.device)
    for attempt, loss in enumerate(
        LOSSES[settings["loss"]] * (settings["restarts"] if settings["random_start"] else 1)
    ):
        x, y = batch.x[left], batch.y[left]
        start = x
        if settings["random_start"]:
            rows = [batch.rows[k] for k in left.tolist()]
            start = ball.anywhere(x, [step_generator(seed, attempt, row, "pgd") for row in rows])
        moved = search(batch.model, x, y, ball, start, settings["steps"], settings["step_scale"], loss)
        found[left] = moved
        left = left[ask(batch.model, moved).argmax(dim=1) == y]
        if not len(left):
            break
    found[left] = torch.where(already[left, None, None, None], batch.x[left], found[left])
    return found


def linf(
    model: Model, images: Tensor, labels: Tensor, settings: dict[str, Any], seed: int, kept: Kept | None = None
) -> Outcome:
    """Rows for every epsilon, examples, predictions. Raises Problem, see `run`."""
    return run("pgd", partial(descend, settings, seed), model, images, labels, settings, kept)


def l2(
    model: Model, images: Tensor, labels: Tensor, settings: dict[str, Any], seed: int, kept: Kept | None = None
) -> Outcome:
    return run("pgd_l2", partial(descend, settings, seed), model, images, labels, settings, kept, norm="l2")
