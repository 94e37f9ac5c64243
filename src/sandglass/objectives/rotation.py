"""Rotation: how many quarter turns has this image made? To tell, one must know what it shows and which way up that is.

    L = mean over images and r in {0, 1, 2, 3} of CE(W f(turn^r(v)) + b, r);  ln 4 when nothing is known

Gidaris et al. 2018. All four turns of every image are in the batch, so the encoder sees 4 B images, and nothing is
drawn here. A turn moves whole pixels and leaves no border that would give it away. Views must not be turned or flipped
upside down by their recipe: that would make the answer ambiguous. Classes without an upright (balls, textures) bound
the accuracy that can be reached.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sandglass.backbones.grid import Encoder, Features
from sandglass.data.loader import Batch
from sandglass.objectives._base import Objective
from sandglass.objectives._parts import single

PAPER = "arXiv 1803.07728"
VIEWS = "crop_flip"
KIND = "one view"
BACKBONES = "any"
SETTINGS: dict[str, object] = {}
TRAIN = {
    "cnn": {"optimizer": "sgd", "lr_per_256": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "clip_norm": 0.0},
    "transformer": {"optimizer": "adamw", "lr_per_256": 5e-4, "weight_decay": 0.05},
}


class Rotation(Objective):
    """Unsupervised representation learning by predicting image rotations (Gidaris et al. 2018)."""

    static = True
    rowwise = True
    views = (1, 1)
    alarm = 0.02  # pooled features have much in common, and no norm takes it away before they are watched

    def __init__(self, encoder: Encoder, settings: dict[str, Any], classes: int) -> None:
        super().__init__(encoder, settings, classes)
        self.head = nn.Linear(encoder.width, 4)

    def features(self, encoder: Encoder, batch: Batch) -> list[Features]:
        """Of the first view, turned anticlockwise: (4 B, ...), all images upright, then all by 90 degrees, ..."""
        return [encoder(torch.cat([torch.rot90(batch.views[0], turns, (2, 3)) for turns in range(4)]))]

    def loss(self, encoder: Encoder, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        """ "accuracy" is that of the guesses at the turn; 1/4 by chance."""
        pooled = features[0].pooled
        self.watch(pooled)
        guess = single(self.head(pooled))
        turns = torch.arange(4, device=guess.device).repeat_interleave(len(guess) // 4)
        accuracy = (guess.argmax(1) == turns).float().mean()
        return {"loss": nn.functional.cross_entropy(guess, turns), "accuracy": accuracy}
