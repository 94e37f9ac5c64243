"""BYOL: predict, from one view, what a slowly moving copy of the network says of the other; no negatives.

    L = [2 - 2 cos(q(g(f(v1))), sg g'(f'(v2)))] + [the same with v1 and v2 exchanged],  mean over the batch
    target f', g':  theta' <- m theta' + (1 - m) theta  after each step,  m from `momentum` to `momentum_end`, a cosine

Grill et al. 2020. The two directions are summed and the squared distance keeps its factor 2, as the authors' code does.
Heads and cosine are lightly's; the target is detached here, since lightly's loss does not. The target starts as a
copy, runs in train mode (batch statistics) without drop-path and dropout, and its running statistics are its own.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
from torch import Tensor

from sandglass.backbones.grid import Encoder, Features
from sandglass.data.loader import Batch
from sandglass.objectives._base import Objective, deviation
from sandglass.objectives._parts import cosine, follow, single, still

PAPER = "arXiv 2006.07733"
VIEWS = "baseline"
KIND = "two views"
BACKBONES = "any"
SETTINGS = {
    "hidden": (4096, 1, 65536),  # width inside projector and predictor
    "out": (256, 1, 65536),  # width of the space in which views are compared
    "momentum": (0.99, 0.0, 1.0),  # of the target at the start
    "momentum_end": (1.0, 0.0, 1.0),
}
PRESETS = {"blog": {"momentum_end": 0.99}}
TRAIN = {
    "cnn": {"optimizer": "lars", "lr_per_256": 0.45, "weight_decay": 1e-6, "warmup_epochs": 10.0, "clip_norm": 0.0},
    "transformer": {"optimizer": "adamw", "lr_per_256": 5e-4, "weight_decay": 0.05, "warmup_epochs": 10.0},
    "blog": {  # lightly's SGD at 0.06 with decay 5e-4 on a loss that is a quarter of this one: the same steps
        "optimizer": "sgd",
        "lr_per_256": 0.015,
        "weight_decay": 2e-3,
        "decay": "everything",
        "warmup_epochs": 0.0,
        "clip_norm": 0.0,
    },
}


class BYOL(Objective):
    """Bootstrap your own latent (Grill et al. 2020)."""

    static = True

    def __init__(self, encoder: Encoder, settings: dict[str, Any], classes: int) -> None:
        super().__init__(encoder, settings, classes)
        hidden, out = settings["hidden"], settings["out"]
        self.momentum, self.momentum_end = settings["momentum"], settings["momentum_end"]
        self.projector = BYOLProjectionHead(encoder.width, hidden, out)
        self.predictor = BYOLPredictionHead(out, hidden, out)
        self.target = still(copy.deepcopy(encoder))
        self.target_projector = still(copy.deepcopy(self.projector))
        self.similarity = NegativeCosineSimilarity()

    def loss(self, encoder: Encoder, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        predicted = [single(self.predictor(self.projector(f.pooled))) for f in features]
        with torch.no_grad():
            targets = [single(self.target_projector(self.target(view).pooled)) for view in batch.views]
        self.watch(targets[0])
        first = self.similarity(predicted[0], targets[1].detach())
        second = self.similarity(predicted[1], targets[0].detach())
        return {"loss": (2 + 2 * first) + (2 + 2 * second), "target_std": deviation(targets[0])}

    def after_step(self, encoder: Encoder, progress: float) -> None:
        momentum = cosine(progress, self.momentum, self.momentum_end)
        follow(self.target, encoder, momentum)
        follow(self.target_projector, self.projector, momentum)
