"""Attacks in the l-inf ball: images moved by at most epsilon per pixel so that a classifier errs. True labels are used.

FGSM  x + eps sign(grad_x CE(f(x), y)).  Goodfellow et al. 2015, arXiv 1412.6572.
PGD   x_0 random in the ball; x_{t+1} = project(x_t + a eps / T sign(grad CE)), T steps, the worst of several restarts.
      Madry et al. 2018, arXiv 1706.06083.
epsilon is in 1/255 of the pixel range, and normalisation is part of the model. `thesis`: one 8-bit level, no clipping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sandglass.backbones.grid import Encoder
from sandglass.data.loader import open_split, step_generator
from sandglass.errors import Exit, Problem
from sandglass.evaluate.features import plain_float32
from sandglass.views.recipes import evaluation_view

ABOUT = {
    "fgsm": "Fast gradient sign method: one step of size epsilon along the sign of the gradient.",
    "pgd": "Projected gradient descent: many small steps from random starts, kept inside the ball.",
}
PAPER = "arXiv 1412.6572, 1706.06083"

SETTINGS = {
    "fgsm": {
        "epsilons": [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0],  # in 1/255
        "space": ("pixel", {"pixel", "normalised"}),  # normalised: epsilon is of what the network sees, pixels / std
        "clip": True,  # to [0, 1], as an image file would
    },
    "pgd": {
        "epsilons": [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0],
        "space": ("pixel", {"pixel", "normalised"}),
        "clip": True,
        "steps": (20, 1, 10000),  # T
        "step_scale": (2.5, 0.01, 1000.0),  # a; a step is a * epsilon / T
        "random_start": True,  # without it there is one start, and so no restarts
        "restarts": (5, 1, 1000),
    },
}

PRESETS = {
    "thesis": {"epsilons": [0.0, 1.0], "space": "pixel", "clip": False},
    "sound": {"epsilons": [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0], "space": "pixel", "clip": True},
}

BATCH = 256  # images; changes nothing but memory
DRAWN = 8  # examples kept

Model = Callable[[Tensor], Tensor]  # images (B,3,S,S) in [0,1] -> logits (B,classes)
# images, labels, the loss's gradient there, radii in pixels, rows of the whole set -> one batch per radius
Attack = Callable[[Tensor, Tensor, Tensor, list[Tensor], range], Iterator[Tensor]]
Result = tuple[list[dict[str, Any]], dict[str, np.ndarray]]


class Logits(nn.Module):
    """An encoder as a classifier of images: (B,3,S,S) in [0,1] -> (B,classes)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.std = encoder.std

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder.logits(self.encoder(images))


def under_attack(
    encoder: Encoder, data_folder: Path, size: int, limit: int | None, device: torch.device
) -> tuple[Logits, Tensor, Tensor]:
    """The classifier, frozen, and the test images it will be shown: float32 (N,3,size,size) on `device`, labels (N,).

    With a `limit` the images are evenly spaced over the split: many test sets are sorted by class.
    """
    split = open_split(data_folder, "test", evaluating=True)
    count = min(limit or len(split), len(split))
    rows = np.arange(count) * len(split) // count
    parts = [split.take(some) for some in np.array_split(rows, -(-count // BATCH))]
    images = torch.cat([evaluation_view(pixels, sizes, size) for pixels, sizes in parts]).clamp_(0, 1)
    labels = torch.as_tensor(split.labels[rows], device=device)
    return Logits(encoder).eval().requires_grad_(False), images.to(device), labels


def fgsm(model: Model, images: Tensor, labels: Tensor, settings: dict[str, Any], seed: int) -> Result:
    """Rows for every epsilon, and examples to draw; `seed` changes nothing. Raises Problem, see `run`."""

    def attack(x: Tensor, y: Tensor, slope: Tensor, radii: list[Tensor], rows: range) -> Iterator[Tensor]:
        for radius in radii:
            moved = x + radius * slope.sign()
            yield moved.clamp(0, 1) if settings["clip"] else moved

    return run("fgsm", attack, model, images, labels, settings)


def pgd(model: Model, images: Tensor, labels: Tensor, settings: dict[str, Any], seed: int) -> Result:
    """Rows for every epsilon, and examples to draw. Raises Problem, see `run`.

    Random starts are a function of (seed, restart, row), and so do not depend on batches.
    """

    def inside(moved: Tensor, x: Tensor, radius: Tensor) -> Tensor:
        moved = torch.minimum(torch.maximum(moved, x - radius), x + radius)
        return moved.clamp(0, 1) if settings["clip"] else moved

    def ascend(x: Tensor, y: Tensor, radius: Tensor, start: Tensor) -> Tensor:
        moved, step = inside(start, x, radius), settings["step_scale"] * radius / settings["steps"]
        for _ in range(settings["steps"]):
            moved = inside(moved + step * input_gradient(model, moved, y).sign(), x, radius)
        return moved

    def attack(x: Tensor, y: Tensor, slope: Tensor, radii: list[Tensor], rows: range) -> Iterator[Tensor]:
        for radius in radii:
            if not radius.any():  # every search would end where it began
                yield x
                continue
            worst, fooled = x, torch.zeros_like(y, dtype=torch.bool)
            highest = torch.full_like(x[:, 0, 0, 0], -torch.inf)
            for restart in range(settings["restarts"] if settings["random_start"] else 1):
                start = x + radius * _noise(x, seed, restart, rows) if settings["random_start"] else x
                moved = ascend(x, y, radius, start)
                logits = _ask(model, moved)
                loss, wrong = F.cross_entropy(logits, y, reduction="none"), logits.argmax(dim=1) != y
                better = (wrong & ~fooled) | ((wrong == fooled) & (loss > highest))
                worst = torch.where(better[:, None, None, None], moved, worst)
                fooled, highest = fooled | wrong, torch.where(better, loss, highest)
            yield worst

    return run("pgd", attack, model, images, labels, settings)


def run(name: str, attack: Attack, model: Model, images: Tensor, labels: Tensor, settings: dict[str, Any]) -> Result:
    """Show `model` the clean images (N,3,S,S) and those that `attack` makes of them at every epsilon.

    Rows, for each epsilon: clean_top1, robust_top1, drop (robust - clean, as the thesis prints it), retention
    (robust / clean); and zero_gradient_share, of the entries of the gradient: near 1, a gradient attack proves nothing.
    Raises Problem E-110 for a bad epsilon, E-111 for images that are not in [0,1], E-112 for normalised space without
    `model.std`, E-113 .. E-115 for a model that cannot be attacked as it is.
    """
    epsilons = sorted(set(map(float, settings["epsilons"])))
    if not epsilons or epsilons[0] < 0:
        raise Problem(
            "E-110", Exit.CONFIG, f"attacks.{name}.epsilons: {epsilons}", fix="numbers of 1/255, none below 0"
        )
    radii = [_radius(model, images, epsilon, settings["space"]) for epsilon in epsilons]
    n, zeros = len(images), 0
    drawn = sorted({row * n // DRAWN for row in range(DRAWN)})
    clean: list[Tensor] = []
    attacked: list[list[Tensor]] = [[] for _ in epsilons]
    pictures: list[Tensor] = []
    with plain_float32(images.device):
        _check(model, images)
        for first in range(0, n, BATCH):
            rows = range(first, min(first + BATCH, n))
            x, y = images[rows.start : rows.stop].float(), labels[rows.start : rows.stop]
            slope = input_gradient(model, x, y)
            zeros += int((slope == 0).sum())
            clean.append(_ask(model, x).argmax(dim=1))
            for place, moved in zip(attacked, attack(x, y, slope, radii, rows), strict=True):
                place.append(_ask(model, moved).argmax(dim=1))
            pictures += [moved[row - first].cpu() for row in rows if row in drawn]  # of the largest epsilon
    before, after = torch.cat(clean), [torch.cat(parts) for parts in attacked]
    right = int((before == labels).sum()) / n
    table: list[dict[str, Any]] = []
    for epsilon, predictions in zip(epsilons, after, strict=True):
        robust = int((predictions == labels).sum()) / n
        found = {"clean_top1": right, "robust_top1": robust, "drop": robust - right}
        found |= {"retention": robust / right} if right else {}
        table += [
            {"metric": metric, "value": value, "split": "test", "n": n, "attack": name, "epsilon": epsilon}
            for metric, value in found.items()
        ]
    share = zeros / images.numel()
    table.append({"metric": "zero_gradient_share", "value": share, "split": "test", "n": n, "attack": name})
    return table, {
        "clean": images[drawn].float().cpu().numpy(),
        "adversarial": torch.stack(pictures).numpy(),
        "labels": labels[drawn].cpu().numpy(),
        "clean_prediction": before[drawn].cpu().numpy(),
        "adversarial_prediction": after[-1][drawn].cpu().numpy(),
        "epsilon": np.full(len(drawn), epsilons[-1], dtype=np.float32),
    }


def input_gradient(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    """grad_x of the cross-entropy, summed over the batch so that an image's gradient does not depend on its size."""
    with torch.enable_grad():
        x = images.detach().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(model(x).float(), labels, reduction="sum"), x)[0]


def _radius(model: Model, images: Tensor, epsilon: float, space: str) -> Tensor:
    """epsilon in pixels, to be broadcast over (B,3,S,S)."""
    std = getattr(model, "std", None)
    if space == "normalised" and std is None:
        raise Problem(
            "E-112",
            Exit.CONFIG,
            "the model does not say its std, which normalised space is measured in",
            fix="space: pixel",
        )
    unit = torch.as_tensor(std).reshape(-1, 1, 1) if space == "normalised" else torch.ones(())
    return (epsilon / 255 * unit).to(images.device, torch.float32)


def _noise(x: Tensor, seed: int, restart: int, rows: range) -> Tensor:
    """Uniform in [-1,1], of the shape of x."""
    draws = [torch.rand(x.shape[1:], generator=step_generator(seed, restart, row, "pgd")) for row in rows]
    return torch.stack(draws).to(x.device) * 2 - 1


def _ask(model: Model, images: Tensor) -> Tensor:
    """Logits, float32 (B,classes), without gradient."""
    with torch.no_grad():
        logits = model(images).float()
    if not logits.isfinite().all():
        raise Problem(
            "E-113", Exit.DIVERGED, "the model's logits are not finite", why="an attack would count them as errors"
        )
    return logits


def _check(model: Model, images: Tensor) -> None:
    """Refuse what would make robust accuracy mean nothing."""
    if not (images.numel() and float(images.min()) >= 0 and float(images.max()) <= 1):
        bounds = f"{float(images.min()):g} .. {float(images.max()):g}" if images.numel() else "none"
        raise Problem(
            "E-111",
            Exit.CONTENT,
            f"an attack needs images in [0, 1], these are {bounds}",
            fix="give pixels / 255, and normalise inside the model",
        )
    some = images[:BATCH].float()
    half = len(some) // 2 + 1
    logits, again = _ask(model, some), _ask(model, some[:half])  # in other company, for the sake of batch norm
    if not torch.allclose(logits[:half], again, rtol=1e-3, atol=1e-4):
        raise Problem(
            "E-114",
            Exit.REFUSED,
            "asked twice, the model gives the same image different answers",
            why="dropout, drop-path or batch statistics are active: chance would be counted as robustness",
            fix="model.eval()",
        )
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(dim=1), torch.ones_like(logits[:, 0]), atol=1e-4):
        raise Problem(
            "E-115",
            Exit.REFUSED,
            "the model's outputs are probabilities, not logits",
            why="a softmax before the cross-entropy flattens the gradient and weakens every attack",
            fix="leave the softmax out",
        )
