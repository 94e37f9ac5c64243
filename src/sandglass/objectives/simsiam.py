"""SimSiam: predict, from one view, what the same network says of the other; the answer gets no gradient.

    z = g(f(v)),  p = h(z);   L = - [ cos(p1, sg z2) + cos(p2, sg z1) ] / 2,  mean over the batch

Chen & He 2021. Neither negatives nor a momentum copy: the stop-gradient `sg` and the predictor h alone keep it from
collapse, whose loss is -1 as at perfection. Since z leaves a batch norm, its deviation stays at 1 even on a line; what
the guard measures is its dimensions. Heads and cosine are lightly's; z is detached here, since its loss does not. The
projector's hidden layers are 2048 wide, as there, where the authors' have the backbone's width. The predictor's
learning rate stays at its peak, as in the authors' results. Fragile on transformers: rather BYOL or MoCo v3 there.
"""

from __future__ import annotations

import math
from typing import Any

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead
from torch import Tensor, nn

from sandglass.backbones.grid import Encoder, Features
from sandglass.data.loader import Batch
from sandglass.objectives._base import Objective, deviation
from sandglass.objectives._parts import effective_rank, single

PAPER = "arXiv 2011.10566"
VIEWS = "baseline"
KIND = "two views"
BACKBONES = "any"
SETTINGS = {
    "hidden": (2048, 1, 65536),  # width inside the projector
    "out": (2048, 1, 65536),  # width of the space in which views are compared
    "bottleneck": (512, 1, 65536),  # width inside the predictor; a quarter of `out` matters
    "fixed_predictor_rate": True,  # the predictor's learning rate stays at its peak
}
PRESETS = {"blog": {"fixed_predictor_rate": False}}
TRAIN = {
    "cnn": {
        "optimizer": "sgd",
        "lr_per_256": 0.05,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "warmup_epochs": 10.0,
        "clip_norm": 0.0,
    },
    "transformer": {
        "optimizer": "adamw",
        "lr_per_256": 5e-4,
        "weight_decay": 0.05,
        "warmup_epochs": 10.0,
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
    },
}


class SimSiam(Objective):
    """Simple siamese representations (Chen & He 2021)."""

    static = True
    alarm = 2.0  # dimensions

    def __init__(self, encoder: Encoder, settings: dict[str, Any], classes: int) -> None:
        super().__init__(encoder, settings, classes)
        out = settings["out"]
        self.projector = SimSiamProjectionHead(encoder.width, settings["hidden"], out)
        self.predictor = SimSiamPredictionHead(out, settings["bottleneck"], out)
        self.undecayed_rate = ("predictor",) if settings["fixed_predictor_rate"] else ()
        self.similarity = NegativeCosineSimilarity()

    def loss(self, encoder: Encoder, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        projected = [self.projector(f.pooled) for f in features]
        predicted = [single(self.predictor(z)) for z in projected]
        targets = [single(z).detach() for z in projected]
        self.watch(targets[0])
        first = self.similarity(predicted[0], targets[1])
        second = self.similarity(predicted[1], targets[0])
        return {"loss": (first + second) / 2, "target_std": deviation(targets[0])}

    def spread(self) -> float:
        """Effective rank of the unit rows last watched: 1 if all are the same or lie on a line."""
        if self._watched is None:
            return math.inf
        return float(effective_rank(nn.functional.normalize(self._watched, dim=1)))
