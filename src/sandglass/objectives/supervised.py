"""Supervised: cross-entropy with the labels. The reference row of every table, and the loss of finetuning.

L = - mean log softmax(head(f(v)))[label],  over all views
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sandglass.backbones.grid import Encoder, Features
from sandglass.data.loader import Batch
from sandglass.objectives._base import Objective

PAPER = ""
VIEWS = "crop_flip"
KIND = "any number of views"
BACKBONES = "any"
SETTINGS: dict[str, object] = {}


class Supervised(Objective):
    """Cross-entropy through the backbone's own head."""

    needs_labels = True
    views = (1, math.inf)

    def loss(self, encoder: Encoder, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        logits = [encoder.logits(f).float() for f in features]
        loss = torch.stack([nn.functional.cross_entropy(x, batch.labels) for x in logits]).mean()
        top1 = torch.stack([(x.argmax(1) == batch.labels).float().mean() for x in logits]).mean()
        return {"loss": loss, "train_top1": top1.detach()}
