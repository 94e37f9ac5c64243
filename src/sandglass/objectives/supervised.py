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

# `finetune.optimisation`. thesis: Floros 2024 states Adam, 1e-4, 128 images and 100 epochs, and no augmentation,
# schedule or decay; its weights of the auxiliary losses are the best on the test set, so nothing was held out. sound:
# what one would run today.
FINETUNE = {
    "thesis": {
        "optimizer": "adam",
        "lr_per_256": 2e-4,
        "batch_size": 128,
        "epochs": 100,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "clip_norm": 0.0,
        "precision": "float32",
        "views": "plain",
        "split": "trainval",
        "on_collapse": "report",  # an attached target may, and then that is what the thesis's method does
    },
    "sound": {
        "optimizer": "adamw",
        "lr_per_256": 1e-3,
        "batch_size": 128,
        "epochs": 100,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "warmup_epochs": 5.0,
        "clip_norm": 3.0,
        "views": "crop_flip",
        "split": "train",
    },
}


class Supervised(Objective):
    """Cross-entropy through the backbone's own head."""

    static = True
    needs_labels = True
    rowwise = True
    views = (1, math.inf)
    alarm = 0.0  # labels say by themselves whether anything is learned

    def loss(self, encoder: Encoder, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        logits = [encoder.logits(f).float() for f in features]
        loss = torch.stack([nn.functional.cross_entropy(x, batch.labels) for x in logits]).mean()
        top1 = torch.stack([(x.argmax(1) == batch.labels).float().mean() for x in logits]).mean()
        return {"loss": loss, "train_top1": top1.detach()}
