"""Accuracy on corrupted images: no adversary, only noise, blur, weather and files, nineteen kinds at five levels.

robust_top1 is the mean over the fifteen corruptions of the benchmark and their levels (Hendrycks and Dietterich 2019,
arXiv 1903.12261); the other four, which its authors hold out, are told beside it. The images are those of
`sandglass.evaluate.corruptions`: the same for every model and seed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sandglass.evaluate.attacks import _base
from sandglass.evaluate.attacks._base import Model, Outcome, ask, check, predicted, rates, share_right
from sandglass.evaluate.attacks._kept import Kept, Part
from sandglass.evaluate.corruptions import HELD_OUT, LEVELS, corrupt
from sandglass.evaluate.features import plain_float32

PAPER = "arXiv 1903.12261"

SETTINGS = {"levels": ([1, 2, 3, 4, 5], {1, 2, 3, 4, 5})}


def run(
    model: Model, images: Tensor, labels: Tensor, settings: dict[str, Any], seed: int, kept: Kept | None = None
) -> Outcome:
    """Rows: clean_top1, robust_top1, drop, retention; nineteen_top1, the mean over all; for each corruption
    top1_<name>, the mean over levels, and top1_<name>_<level>. The examples are all corruptions at the middle level.
    `seed` changes nothing.

    Raises Problem: see `_base.run`.
    """
    levels = sorted({int(level) for level in settings["levels"]})
    kept, n, middle = kept or Kept(), len(images), levels[len(levels) // 2]
    shown = {name: k * n // len(LEVELS) for k, name in enumerate(LEVELS)}  # another image for each
    with plain_float32(images.device):
        check(model, images)
        clean = kept("clean", partial(_seen, model, images))["prediction"]
        found = {
            (name, level): kept(f"{name}-{level}", partial(_seen, model, images, name, level, shown[name]))
            for name in LEVELS
            for level in levels
        }
    truth, shared = labels.cpu(), {"split": "test", "n": n, "attack": "corruptions"}
    right = {key: share_right(part["prediction"], truth) for key, part in found.items()}
    means = {name: float(np.mean([right[name, level] for level in levels])) for name in LEVELS}
    numbers = {"nineteen_top1": float(np.mean(list(means.values())))}
    numbers |= {f"top1_{name}": mean for name, mean in means.items()}
    numbers |= {f"top1_{name}_{level}": value for (name, level), value in right.items()}
    table = rates(clean, float(np.mean([means[name] for name in LEVELS if name not in HELD_OUT])), truth, shared)
    table += [{"metric": metric, "value": value} | shared for metric, value in numbers.items()]
    drawn, names = [*shown.values()], np.array([f"{name.replace('_', ' ')}, level {middle}" for name in LEVELS])
    examples = {
        "clean": images[drawn].float().cpu().numpy(),
        "adversarial": torch.cat([found[name, middle]["picture"] for name in LEVELS]).numpy(),
        "labels": truth[drawn].numpy(),
        "clean_prediction": clean[drawn].numpy(),
        "adversarial_prediction": np.array([int(found[k, middle]["prediction"][row]) for k, row in shown.items()]),
        "names": names,
    }
    attacked = torch.stack([part["prediction"] for part in found.values()])
    keys = {"names": np.array([f"{name}_{level}" for name, level in found])}
    return Outcome(table, examples, predicted(truth, clean, attacked) | keys)


def _seen(model: Model, images: Tensor, name: str = "", level: int = 0, picture: int = 0) -> Part:
    """What the model takes all images for, clean or corrupted, and one of them."""
    predictions, pictures = [], []
    for first in range(0, len(images), _base.BATCH):
        x = images[first : first + _base.BATCH].float()
        if name:
            x = corrupt(name, level, x, range(first, first + len(x)))
        predictions.append(ask(model, x).argmax(dim=1).cpu())
        pictures += [x[[picture - first]].cpu()] if first <= picture < first + len(x) else []
    return {"prediction": torch.cat(predictions), "picture": pictures[0]}
