"""AutoAttack: four attacks in turn on what the ones before left, without anything to tune, and so comparable.

APGD on the cross-entropy, APGD on the targeted DLR loss, targeted FAB, and Square without gradients, by the package
`pyautoattack` (extra `robust`).  Croce and Hein 2020, arXiv 2003.01690.  The published version is the defaults here:
100 iterations and 5,000 queries. Deviation: fewer than nine target classes where there are fewer than ten classes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from sandglass.errors import Exit, Problem
from sandglass.evaluate.attacks._ball import Ball
from sandglass.evaluate.attacks._base import Model, Outcome, Shown, ask, run
from sandglass.evaluate.attacks._kept import Kept

PAPER = "arXiv 2003.01690"
ABOUT = {
    "autoattack": "AutoAttack in l-inf, the standard version: APGD-CE, APGD-T, FAB-T and Square, by pyautoattack.",
    "autoattack_l2": "AutoAttack in l-2, the standard version: APGD-CE, APGD-T, FAB-T and Square, by pyautoattack.",
}

SETTINGS = {
    "autoattack": {
        "epsilons": ([0.0, 0.5, 1.0, 2.0], 0.0, 255.0),  # in 1/255; untrained for it, models have nothing left above
        "iterations": (100, 1, 10000),  # of APGD and FAB
        "queries": (5000, 1, 1000000),  # of Square
    },
    "autoattack_l2": {"like": "autoattack", "epsilons": ([0.0, 25.5, 63.75, 127.5], 0.0, 1e5)},
}

NORMS = {"linf": "Linf", "l2": "L2"}


def standard(settings: dict[str, Any], seed: int, batch: Shown, ball: Ball) -> Tensor:
    """The images it found, or the clean ones where it found nothing."""
    try:
        import pyautoattack
    except ImportError:
        raise Problem(
            "E-117", Exit.CONFIG, "AutoAttack needs the package pyautoattack", fix="pip install 'sandglass[robust]'"
        ) from None
    classes = ask(batch.model, batch.x[:1]).shape[1]
    if classes < 4:
        raise Problem(
            "E-116",
            Exit.CONFIG,
            f"AutoAttack needs 4 classes, the model has {classes}",
            why="the DLR loss is measured in the distance of the best to the third and the fourth",
            fix="attack: pgd, with loss: both",
        )
    devices = [batch.x.device] if batch.x.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # it seeds torch's own generators
        attack = pyautoattack.AutoAttack(
            batch.model, norm=NORMS[ball.norm], eps=ball.radius, seed=seed, device=batch.x.device
        )
        attack.verbose = False
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, classes - 1)
        attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = settings["iterations"]
        attack.square.n_queries = settings["queries"]
        found, _ = attack.run_standard_evaluation(batch.x, batch.y, batch_size=len(batch.x))
    return found.detach()


def linf(
    model: Model, images: Tensor, labels: Tensor, settings: dict[str, Any], seed: int, kept: Kept | None = None
) -> Outcome:
    """Rows for every epsilon, examples, predictions. Raises Problem E-116, E-117 (78), and see `run`."""
    return run("autoattack", partial(standard, settings, seed), model, images, labels, settings, kept)


def l2(
    model: Model, images: Tensor, labels: Tensor, settings: dict[str, Any], seed: int, kept: Kept | None = None
) -> Outcome:
    return run("autoattack_l2", partial(standard, settings, seed), model, images, labels, settings, kept, norm="l2")
