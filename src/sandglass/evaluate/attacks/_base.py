"""What every attack with an epsilon shares: the model it is shown, the sweep over epsilon, and the numbers in the end.

Threat model: the attacker knows the weights, the normalisation and the true label, and changes each test image by at
most epsilon, in 1/255 of the pixel range in either norm. The model is deterministic, in evaluation mode and in float32,
and is judged by its logits. Normalisation is part of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sandglass.backbones.grid import Encoder
from sandglass.data.loader import open_split
from sandglass.errors import Exit, Problem
from sandglass.evaluate.attacks._ball import Ball
from sandglass.evaluate.attacks._kept import Keep, Kept, Part
from sandglass.evaluate.features import plain_float32
from sandglass.views.recipes import evaluation_view

BATCH = 256  # images; changes nothing but memory, except in AutoAttack
DRAWN = 8  # examples kept

Model = Callable[[Tensor], Tensor]  # images (B,3,S,S) in [0,1] -> logits (B,classes)
Loss = Callable[[Tensor, Tensor], Tensor]  # logits, labels -> scalar, summed over images


class Outcome(NamedTuple):
    """What an attack leaves."""

    rows: list[dict[str, Any]]
    examples: dict[str, np.ndarray]  # clean, adversarial (K,3,S,S); labels, *_prediction (K,); epsilon or names (K,)
    predictions: dict[str, np.ndarray]  # labels, clean (N,); attacked (E,N) int16; epsilons or names (E,)


@dataclass(frozen=True)
class Shown:
    """A batch under attack: images (B,3,S,S), labels (B,), and their rows in the whole set."""

    model: Model
    x: Tensor
    y: Tensor
    rows: range

    @cached_property
    def slope(self) -> Tensor:
        """The gradient of the cross-entropy at the clean images."""
        return input_gradient(self.model, self.x, self.y)


Attack = Callable[[Shown, Ball], Tensor]  # -> images (B,3,S,S) within the ball


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


def run(
    name: str,
    attack: Attack,
    model: Model,
    images: Tensor,
    labels: Tensor,
    settings: dict[str, Any],
    kept: Keep | None = None,
    norm: str = "linf",
) -> Outcome:
    """Show `model` the clean images (N,3,S,S) and those that `attack` makes of them at every epsilon.

    Rows, for each epsilon: clean_top1, robust_top1, drop (robust - clean, as the thesis prints it), retention
    (robust / clean), robust_cross_entropy in nats. For all together: robust_area, the mean of robust_top1 between the
    least and the largest epsilon (trapezoids); zero_gradient_share, of the entries of the gradient, and
    zero_gradient_images, of images where all are zero: near 1, a gradient attack proves nothing.
    Raises Problem E-111 for images that are not in [0,1], E-112 for normalised space without
    `model.std`, E-113 .. E-115 for a model that cannot be attacked as it is.
    """
    epsilons, kept, n = sorted(set(map(float, settings["epsilons"]))), kept or Kept(), len(images)
    unit = _unit(model, settings.get("space", "pixel")).to(images.device)
    drawn = sorted({row * n // DRAWN for row in range(DRAWN)})
    clean: list[Part] = []
    attacked: list[list[Part]] = [[] for _ in epsilons]
    with plain_float32(images.device):
        check(model, images)
        for first in range(0, n, BATCH):
            rows = range(first, min(first + BATCH, n))
            batch = Shown(model, images[rows.start : rows.stop].float(), labels[rows.start : rows.stop], rows)
            clean.append(kept(f"clean-{rows.start}-{rows.stop}", partial(_clean, batch)))
            for place, epsilon in zip(attacked, epsilons, strict=True):
                ball = Ball(norm, epsilon / 255, unit, settings.get("clip", True))
                pictures = [row - first for row in rows if row in drawn and epsilon == epsilons[-1]]
                part = partial(_attacked, batch, ball, attack, pictures)
                place.append(kept(f"{epsilon:g}-{rows.start}-{rows.stop}", part))
    before = torch.cat([part["prediction"] for part in clean])
    after = torch.stack([torch.cat([part["prediction"] for part in parts]) for parts in attacked])
    truth = labels.cpu()
    shared = {"split": "test", "n": n, "attack": name}
    robust = [share_right(predictions, truth) for predictions in after]
    table = []
    for epsilon, accuracy, parts in zip(epsilons, robust, attacked):
        loss = {"metric": "robust_cross_entropy", "value": sum(float(part["loss"]) for part in parts) / n}
        table += [row | {"epsilon": epsilon} for row in [*rates(before, accuracy, truth, shared), loss | shared]]
    if len(epsilons) > 1:
        area = float(np.trapezoid(robust, epsilons)) / (epsilons[-1] - epsilons[0])
        table.append({"metric": "robust_area", "value": area} | shared)
    zeros, flat = (sum(int(part[name]) for part in clean) for name in ("zeros", "flat"))
    table.append({"metric": "zero_gradient_share", "value": zeros / images.numel()} | shared)
    table.append({"metric": "zero_gradient_images", "value": flat / n} | shared)
    examples = {
        "clean": images[drawn].float().cpu().numpy(),
        "adversarial": torch.cat([part["pictures"] for part in attacked[-1]]).numpy(),
        "labels": truth[drawn].numpy(),
        "clean_prediction": before[drawn].numpy(),
        "adversarial_prediction": after[-1][drawn].numpy(),
        "epsilon": np.full(len(drawn), epsilons[-1], dtype=np.float32),
    }
    return Outcome(table, examples, predicted(truth, before, after) | {"epsilons": np.array(epsilons)})


def _clean(batch: Shown) -> Part:
    zero = batch.slope.flatten(1) == 0
    found = {"prediction": ask(batch.model, batch.x).argmax(dim=1), "zeros": zero.sum(), "flat": zero.all(1).sum()}
    return {name: tensor.cpu() for name, tensor in found.items()}


def _attacked(batch: Shown, ball: Ball, attack: Attack, pictures: list[int]) -> Part:
    moved = attack(batch, ball) if ball.radius else batch.x  # at 0 every search ends where it began
    logits = ask(batch.model, moved)
    found = {"prediction": logits.argmax(dim=1), "loss": cross_entropy(logits, batch.y), "pictures": moved[pictures]}
    return {name: tensor.cpu() for name, tensor in found.items()}


def share_right(predictions: Tensor, labels: Tensor) -> float:
    return int((predictions == labels).sum()) / len(labels)


def rates(clean: Tensor, robust: float, labels: Tensor, shared: dict[str, Any]) -> list[dict[str, Any]]:
    """What a changed accuracy is beside the clean one; no retention where nothing was right."""
    right = share_right(clean, labels)
    found = {"clean_top1": right, "robust_top1": robust, "drop": robust - right}
    found |= {"retention": robust / right} if right else {}
    return [{"metric": metric, "value": value} | shared for metric, value in found.items()]


def predicted(labels: Tensor, clean: Tensor, attacked: Tensor) -> dict[str, np.ndarray]:
    """Of every image, so that two models can be compared on the same images."""
    parts = {"labels": labels, "clean": clean, "attacked": attacked}
    return {name: part.numpy().astype(np.int16) for name, part in parts.items()}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed, so that an image's gradient does not depend on the size of its batch."""
    return F.cross_entropy(logits, labels, reduction="sum")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """By how much the best wrong class leads, summed: its gradient does not fade when the model is very sure.

    Carlini and Wagner 2017, arXiv 1608.04644.
    """
    own = F.one_hot(labels, logits.shape[1]).bool()
    return (logits.masked_fill(own, -torch.inf).amax(dim=1) - logits[own]).sum()


def input_gradient(model: Model, images: Tensor, labels: Tensor, loss: Loss = cross_entropy) -> Tensor:
    """grad_x of the loss, (B,3,S,S)."""
    with torch.enable_grad():
        x = images.detach().requires_grad_()
        return torch.autograd.grad(loss(model(x).float(), labels), x)[0]


def ask(model: Model, images: Tensor) -> Tensor:
    """Logits, float32 (B,classes), without gradient."""
    with torch.no_grad():
        logits = model(images).float()
    if not logits.isfinite().all():
        raise Problem(
            "E-113", Exit.DIVERGED, "the model's logits are not finite", why="an attack would count them as errors"
        )
    return logits


def _unit(model: Model, space: str) -> Tensor:
    """What epsilon is measured in, in pixels, to be broadcast over (B,3,S,S)."""
    std = getattr(model, "std", None)
    if space == "normalised" and std is None:
        raise Problem(
            "E-112",
            Exit.CONFIG,
            "the model does not say its std, which normalised space is measured in",
            fix="space: pixel",
        )
    return torch.as_tensor(std).reshape(-1, 1, 1).float() if space == "normalised" else torch.ones(1, 1, 1)


def check(model: Model, images: Tensor) -> None:
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
    logits, again = ask(model, some), ask(model, some[:half])  # in other company, for the sake of batch norm
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
