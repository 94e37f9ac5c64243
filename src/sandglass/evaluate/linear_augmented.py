"""Linear probe on augmented views: what a classifier learns on a frozen encoder from random crops and flips.

min over W, b of  mean cross-entropy(W f(view) + b, y)  by SGD with momentum 0.9, no weight decay, the rate falling
along a cosine from lr = lr_per_256 * N / 256 to 0, as in Chen et al. 2020, appendix B.6 (without Nesterov's term). How
large features are depends on what taught the encoder, so the rate is chosen: one classifier for each rate of the grid
learns from the same features, the one with the best validation accuracy is kept, and test is read once, after that.
Features enter as they are, neither standardised nor batch-normalised; classifiers start at zero, as the problem is
convex. The encoder is in evaluation mode and in plain float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sandglass.backbones.grid import judging
from sandglass.data.loader import epoch_order, open_split, step_generator
from sandglass.engine.schedule import learning_rate_factor
from sandglass.errors import Exit, Problem
from sandglass.evaluate.features import Row, Subject, accuracy_rows, places, plain_float32, refuse_blind_choice, share
from sandglass.views.recipes import make_views

PAPER = "arXiv 2002.05709"

SETTINGS = {
    "lr_per_256": [0.03, 0.1, 0.3, 1.0, 3.0],  # the grid; times batch_size / 256
    "epochs": (100, 1, 100000),  # over the labelled images
    "least_steps": (1000, 0, 10000000),  # few images are gone through more often, until these are done
    "batch_size": (256, 1, 65536),  # images; at most those that are labelled
}


def run(subject: Subject, settings: dict[str, Any], seed: int) -> list[Row]:
    """Accuracies on val and test, with the rate chosen on val; `seed` decides order and views.

    Raises Problem: E-120 (78) a grid to choose from and no validation split; E-121 (76) features that are not finite.
    """
    features, grid = subject.features, sorted(set(settings["lr_per_256"]))
    if not len(features.val):
        refuse_blind_choice("linear_augmented", "lr_per_256", grid)
    heads = fit(subject, grid, settings, seed)
    best = 0
    if len(features.val):
        scores = [head(features.val) for head in heads]
        surest = [-float(F.cross_entropy(score, features.val_labels)) for score in scores]
        hits = [share(places(score, features.val_labels) < 1) for score in scores]
        best = max(range(len(grid)), key=lambda i: (hits[i], surest[i]))  # of equal accuracies the surer one
    rows: list[Row] = [{"metric": "lr_per_256", "value": grid[best], "split": "val"}]
    if len(features.val):
        rows += accuracy_rows(heads[best](features.val), features.val_labels, "val")
    scores = heads[best](features.test)
    subject.answers["predicted"] = scores.argmax(dim=1)
    return rows + accuracy_rows(scores, features.test_labels, "test")


def fit(subject: Subject, grid: list[float], settings: dict[str, Any], seed: int) -> list[nn.Linear]:
    """A trained classifier (D,) -> (classes,) for each rate per 256 images of the grid."""
    train, rows, device = open_split(subject.packed, "train"), torch.as_tensor(subject.labelled), subject.device
    batch_size = min(settings["batch_size"], len(rows))
    steps_per_epoch = len(rows) // batch_size
    epochs = max(settings["epochs"], math.ceil(settings["least_steps"] / steps_per_epoch))
    heads = [_zero(subject.features.train.shape[1], subject.features.classes, device) for _ in grid]
    rates = [lr * batch_size / 256 for lr in grid]
    optimizer = torch.optim.SGD([{"params": head.parameters()} for head in heads], momentum=0.9)
    for step in range(epochs * steps_per_epoch):
        epoch, within = divmod(step, steps_per_epoch)
        if within == 0:
            order = rows[epoch_order(len(rows), seed, epoch)]
        factor = learning_rate_factor(step, epochs * steps_per_epoch, 0, "cosine")
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        some = order[within * batch_size : (within + 1) * batch_size]
        images, sizes = train.take(some)
        generator = step_generator(seed, epoch, 0, "probe views")
        (view,) = make_views("crop_flip", {}, images.to(device), sizes.to(device), subject.size, generator, some)
        labels = torch.from_numpy(train.labels[some.numpy()]).to(device)
        with plain_float32(device):
            with judging(subject.encoder):
                pooled = subject.encoder(view).pooled.float()
            losses = [F.cross_entropy(head(pooled), labels) for head in heads]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()  # each classifier has a term of its own
            optimizer.step()
    if not all(bool(p.isfinite().all()) for head in heads for p in head.parameters()):
        what = "the encoder's answers to augmented views are not finite"
        raise Problem("E-121", Exit.DIVERGED, what, fix="train it again with a lower learning rate or with clip_norm")
    return [head.requires_grad_(False) for head in heads]


def _zero(width: int, classes: int, device: torch.device) -> nn.Linear:
    """Made without drawing a random number."""
    head = nn.Linear(width, classes, device="meta").to_empty(device=device)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return head
