"""The contract of an objective: what the loop calls, and when.

    features = [encoder(view) for view in batch.views]       one forward per view: batch-norm statistics are per view
    objective.loss(encoder, features, batch)["loss"]         float32 scalar; other entries are detached scalars to log
    objective.after_step(encoder, progress)                  after the optimiser: momentum targets, queues
    objective.monitor(features, batch)                       at log steps only: is it collapsing?

All its state, targets and queues too, is in state_dict, so that a resumed run is the same run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sandglass.backbones.grid import Encoder, Features
from sandglass.data.loader import Batch
from sandglass.objectives._parts import effective_rank


class Objective(nn.Module, ABC):
    """Built from the encoder it will teach (to copy it or read its width), its settings, and the class count."""

    needs_labels = False

    def __init__(self, encoder: Encoder, settings: dict[str, Any], classes: int) -> None:
        super().__init__()

    @abstractmethod
    def loss(self, encoder: Encoder, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        """features: one per view; batch.views: V tensors (B, 3, S, S) in [0, 1]; batch.labels: (B,)."""

    def after_step(self, encoder: Encoder, progress: float) -> None:
        """`progress`: optimiser steps done / steps in all, in (0, 1]."""

    def monitor(self, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        """Collapse monitors of the pooled features (B, C) of the first view."""
        return collapse(features[0].pooled)


@torch.no_grad()
def collapse(pooled: Tensor) -> dict[str, Tensor]:
    """Is every image mapped to the same point? (B, C) -> scalars.

    feature_std: mean over dimensions of the deviation over the batch of the unit features, times sqrt(C): 1 is healthy,
    0 collapsed. effective_rank: C at most, 1 when one direction is left. mean_cosine: over pairs of different images.
    """
    x = pooled.float()
    unit = nn.functional.normalize(x, dim=1)
    n, width = x.shape
    cosine = (unit.sum(0).square().sum() - n) / max(1, n * (n - 1))
    return {
        "feature_std": unit.std(0).mean() * width**0.5,
        "effective_rank": effective_rank(x),
        "mean_cosine": cosine,
    }
