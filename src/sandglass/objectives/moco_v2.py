"""MoCo v2: recognise one's own image among keys of earlier batches, which a slowly moving copy of the network made.

    q = g(f(v)) / |.|,   k = g'(f'(w)) / |.|,   v and w the two views
    l(q, k) = -log( exp(q.k/T) / (exp(q.k/T) + sum over the queue of exp(q.k'/T)) )
    L = [ l(q1, k2) + l(q2, k1) ] / 2,  mean over the batch;   theta' <- m theta' + (1 - m) theta  after each step

He et al. 2020 (arXiv 1911.05722), Chen et al. 2020. Symmetric, with the short queue, fast target and low temperature of
the authors' own recipe for CIFAR; `preset: paper` is that for ImageNet. The keys of both views enter the queue when
both terms are computed: after the first, as with lightly's loss, an image would meet its own key among the negatives of
the second. Lest it meet its key of an epoch ago too often, no more keys are used than half the images of an epoch. The
queue begins with random unit vectors, as the authors' does. Batch norm sees the whole batch, so no images are shuffled
between devices.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightly.models.modules.heads import MoCoProjectionHead
from torch import Tensor, nn

from sandglass import distributed
from sandglass.backbones.grid import Encoder, Features
from sandglass.data.loader import Batch
from sandglass.objectives._base import Objective
from sandglass.objectives._parts import follow, see, single, still

PAPER = "arXiv 2003.04297"
VIEWS = "baseline"
KIND = "two views"
BACKBONES = "any"
SETTINGS = {
    "hidden": (2048, 1, 65536),  # width inside the projector
    "out": (128, 1, 65536),  # width of the space in which views are compared
    "queue": (4096, 1, 1048576),  # keys kept
    "momentum": (0.99, 0.0, 1.0),  # of the target, constant
    "temperature": (0.1, 0.01, 10.0),
}
PRESETS = {"paper": {"queue": 65536, "momentum": 0.999, "temperature": 0.2}}
TRAIN = {
    "cnn": {
        "optimizer": "sgd",
        "lr_per_256": 0.06,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "warmup_epochs": 10.0,
        "clip_norm": 0.0,
    },
    "transformer": {  # MoBY's rate (arXiv 2105.04553)
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


class MoCoV2(Objective):
    """Momentum contrast with a queue (Chen et al. 2020)."""

    queue: Tensor  # (keys, D) unit rows, the newest first

    def __init__(self, encoder: Encoder, settings: dict[str, Any], classes: int) -> None:
        super().__init__(encoder, settings, classes)
        self.momentum, self.temperature = settings["momentum"], settings["temperature"]
        self.projector = MoCoProjectionHead(encoder.width, settings["hidden"], settings["out"])
        self.target = still(copy.deepcopy(encoder))
        self.target_projector = still(copy.deepcopy(self.projector))
        self.register_buffer("queue", nn.functional.normalize(torch.randn(settings["queue"], settings["out"]), dim=1))

    def loss(self, encoder: Encoder, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        queries = [_unit(self.projector(f.pooled)) for f in features]
        with torch.no_grad():
            keys = [_unit(self.target_projector(f.pooled)) for f in see(self.target, batch.views, self.together)]
            whole = [distributed.gather(rows) for rows in keys]
        self.watch(keys[0])
        negatives = self.queue[: max(1, batch.clock.steps_per_epoch * len(whole[0]) // 2)]
        first = contrast(queries[0], keys[1], negatives, self.temperature)
        second = contrast(queries[1], keys[0], negatives, self.temperature)
        self.queue = torch.cat((*whole, self.queue))[: len(self.queue)].clone()  # a new one: backward needs the old
        loss = (first + second) / 2
        return {"loss": loss, "negatives": loss.detach().new_full((), len(negatives))}

    def after_step(self, encoder: Encoder, progress: float) -> None:
        follow(self.target, encoder, self.momentum)
        follow(self.target_projector, self.projector, self.momentum)


def contrast(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Unit rows: queries (n, D), their keys (n, D), negatives (K, D) -> mean of l."""
    with torch.autocast(queries.device.type, enabled=False):
        logits = torch.cat(((queries * keys).sum(1, keepdim=True), queries @ negatives.T), 1) / temperature
    return (logits.logsumexp(1) - logits[:, 0]).mean()


def _unit(rows: Tensor) -> Tensor:
    return nn.functional.normalize(single(rows), dim=1)
