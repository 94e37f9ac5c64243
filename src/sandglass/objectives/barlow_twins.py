"""Barlow Twins: over a batch, each output of one view agrees with the same output of the other, and with no other one.

    C = A^T B / N,   A, B (N, D): outputs of the two views, each column with mean 0 and variance 1 over the batch
    L = scale_loss * [ sum_i (1 - C_ii)^2 + redundancy * sum_{i != j} C_ij^2 ]

Zbontar et al. 2021 (arXiv 2103.03230): biased variance with eps 1e-5, as their batch norm has it. Statistics and C are
of the images of all processes. The head is lightly's; the bias of its last layer, which theirs lacks, cancels. The
authors give biases and norms 0.024 of the rate of weights: under LARS, blind to the scale of a loss except in biases
and norms, a `scale_loss` of 0.024 is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from lightly.models.modules.heads import BarlowTwinsProjectionHead
from torch import Tensor

from sandglass.backbones.grid import Encoder, Features
from sandglass.data.loader import Batch
from sandglass.distributed import gather
from sandglass.objectives._base import Objective
from sandglass.objectives._parts import single

PAPER = "arXiv 2103.03230"
VIEWS = "baseline"
KIND = "two views"
BACKBONES = "any"
SETTINGS = {
    "hidden": (2048, 1, 65536),  # width inside the projector
    "out": (2048, 1, 65536),  # D; more than the batch can tell apart adds noise of redundancy * D^2 / N
    "redundancy": (0.005, 0.0, 1.0),  # weight of what different outputs share
    "scale_loss": (0.024, 1e-4, 1.0),  # the loss is a sum over D: of the order of D
}
PRESETS = {"blog": {"scale_loss": 1.0}}
TRAIN = {
    "cnn": {
        "optimizer": "lars",
        "lr_per_256": 0.2,
        "momentum": 0.9,
        "weight_decay": 1.5e-6,
        "warmup_epochs": 10.0,
        "clip_norm": 0.0,
    },
    "transformer": {
        "optimizer": "adamw",
        "lr_per_256": 5e-4,
        "weight_decay": 0.05,
        "warmup_epochs": 20.0,
        "clip_norm": 3.0,
    },
    "blog": {
        "optimizer": "sgd",
        "lr_per_256": 0.06,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "decay": "everything",
        "warmup_epochs": 0.0,
        "clip_norm": 0.0,
        "batch_size": 256,
    },
}


class BarlowTwins(Objective):
    """Redundancy reduction (Zbontar et al. 2021)."""

    static = True

    def __init__(self, encoder: Encoder, settings: dict[str, Any], classes: int) -> None:
        super().__init__(encoder, settings, classes)
        self.redundancy, self.scale = settings["redundancy"], settings["scale_loss"]
        self.projector = BarlowTwinsProjectionHead(encoder.width, settings["hidden"], settings["out"])

    def loss(self, encoder: Encoder, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        a, b = (gather(single(self.projector(f.pooled))) for f in features)
        self.watch(a)
        with torch.autocast(a.device.type, enabled=False):
            same, other = departures(a, b)
        other = self.redundancy * other
        return {"loss": self.scale * (same + other), "invariance": same.detach(), "redundancy": other.detach()}


def departures(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Of the cross-correlation of outputs (N, D) from the identity: squares summed on the diagonal, and off it."""
    correlation = standardised(a).T @ standardised(b) / len(a)
    diagonal = correlation.diagonal()
    return (1 - diagonal).square().sum(), correlation.square().sum() - diagonal.square().sum()


def standardised(x: Tensor) -> Tensor:
    """Columns of (N, D) with mean 0 and variance 1; a constant column becomes 0."""
    return (x - x.mean(0)) * (x.var(0, correction=0) + 1e-5).rsqrt()
