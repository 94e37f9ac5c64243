"""VICReg: two views agree, while each output keeps a deviation of 1 over the batch and no two outputs covary.

    L = 25 mean (a - b)^2 + 25 [v(a) + v(b)] / 2 + [c(a) + c(b)],   a, b (N, D): outputs of the two views
    v(x) = mean_j relu(1 - sqrt(Var_j + 1e-4)),   c(x) = 1/D sum_{i != j} Cov_ij^2,   both over the batch, with N - 1

Bardes, Ponce and LeCun 2022 (arXiv 2105.04906), as their code has it: the paper sums the first term over D and v over
views. Statistics are of the images of all processes. The head is lightly's, whose last layer has a bias; it cancels.
A loss that stays at 24.75 = 25 (1 - sqrt(1e-4)) is a collapse, not convergence.
"""

from __future__ import annotations

from typing import Any

import torch
from lightly.models.modules.heads import VICRegProjectionHead
from torch import Tensor
from torch.nn.functional import mse_loss

from sandglass.backbones.grid import Encoder, Features
from sandglass.data.loader import Batch
from sandglass.distributed import gather
from sandglass.objectives._base import Objective
from sandglass.objectives._parts import single

PAPER = "arXiv 2105.04906"
VIEWS = "baseline"
KIND = "two views"
BACKBONES = "any"
SETTINGS = {
    "hidden": (2048, 1, 65536),  # width inside the expander
    "out": (2048, 1, 65536),  # D
}
TRAIN = {
    "cnn": {
        "optimizer": "lars",
        "lr_per_256": 0.5,
        "momentum": 0.9,
        "weight_decay": 1e-6,
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
        "optimizer": "lars",
        "lr_per_256": 0.3,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "decay": "everything",
        "warmup_epochs": 20.0,
        "clip_norm": 0.0,
        "batch_size": 256,
    },
}

INVARIANCE = VARIANCE = 25.0  # weights of the terms; that of the covariances is 1


class VICReg(Objective):
    """Variance, invariance, covariance (Bardes et al. 2022)."""

    static = True

    def __init__(self, encoder: Encoder, settings: dict[str, Any], classes: int) -> None:
        super().__init__(encoder, settings, classes)
        self.projector = VICRegProjectionHead(encoder.width, settings["hidden"], settings["out"])

    def loss(self, encoder: Encoder, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        a, b = (gather(single(self.projector(f.pooled))) for f in features)
        self.watch(a)
        with torch.autocast(a.device.type, enabled=False):
            (v, c), (w, k) = moments(a), moments(b)
            parts = {
                "invariance": INVARIANCE * mse_loss(a, b),
                "variance": VARIANCE * (v + w) / 2,
                "covariance": c + k,
            }
        return {"loss": sum(parts.values(), a.new_zeros(())), **{key: part.detach() for key, part in parts.items()}}


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """v and c of outputs (N, ..., D) over N, each the mean over what is between."""
    n, d = len(x), x.shape[-1]
    x = (x - x.mean(0)).movedim(0, -2)
    own = x.square().sum(-2) / (n - 1)
    product = x @ x.mT if n < d else x.mT @ x  # of one norm: the smaller will do
    every = product.square().sum((-2, -1)) / (n - 1) ** 2
    return (1 - (own + 1e-4).sqrt()).relu().mean(), ((every - own.square().sum(-1)) / d).mean()
