"""The contract of an objective: what the loop calls, and when.

    features = objective.features(encoder, batch)            by default what the encoder says of each view
    objective.loss(encoder, features, batch)["loss"]         float32 scalar; other entries are detached scalars to log
    objective.after_step(encoder, progress)                  after the optimiser: momentum targets
    objective.monitor(features, batch)                       at log steps only: is it collapsing?
    objective.spread()                                       at the end of an epoch: if below `alarm`, it has collapsed
    objective.judged(encoder)                                after the last step: the encoder that is kept and judged
    objective.assign(pooled)                                 if it makes clusters: the clusters of its images

All its state, targets and queues too, is in state_dict, so that a resumed run is the same run. What it draws, it draws
with `batch.drawn`; where it is in the run, it reads from `batch.clock`; rows of other processes come from
`distributed.gather`. So several processes that share a batch compute what one does.

A file says, in literals that are read without importing it: PAPER, VIEWS (the recipe it wants by default), KIND (of
views), BACKBONES (that it can teach), SETTINGS, PRESETS, and TRAIN: optimisers by which it has been trained. CROPS, if
there, says how many large and small views it took then, of whatever recipe, and their scales.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sandglass.backbones.grid import Encoder, Features
from sandglass.data.loader import Batch
from sandglass.objectives._parts import effective_rank, see


class Objective(nn.Module, ABC):
    """Built from the encoder it will teach (to copy it or read its width), its settings, and the class count.

    Raises Problem T-16x (78) if that encoder cannot be taught by it, with the nearest setting that can.
    """

    needs_labels = False
    views: tuple[int, float] = (2, 2)  # how many of an image it takes, at least and at most
    rowwise = False  # the loss is the mean over images of what each says alone; `loss` changes no state
    static = False  # the same operations at every step, but for what `batch.drawn` gives: no clock, no state
    together = False  # batch norm sees all views of one size at once, instead of every view by itself
    undecayed_rate: tuple[str, ...] = ()  # prefixes of its parameters whose learning rate keeps its peak
    kept: tuple[str, ...] = ()  # prefixes of its own state that `assign` needs after training
    measure = "the deviation of what the loss compares, of that of spread points,"  # what `spread` is, in words
    alarm = 0.2  # of `spread`
    patience = 0  # steps (a fifth of a run at most) in which it may look collapsed because it has not begun to learn
    remedy = "a lower lr_per_256, a longer warmup_epochs, or a larger batch_size"

    def __init__(self, encoder: Encoder, settings: dict[str, Any], classes: int) -> None:
        super().__init__()
        self._watched: Tensor | None = None

    def inputs(self, sides: list[int]) -> list[int]:
        """Sides in px of what it shows the encoder, given those of the views."""
        return sides

    def features(self, encoder: Encoder, batch: Batch) -> list[Features]:
        """One per view (B, 3, S, S) of `batch.views`."""
        return see(encoder, batch.views, self.together)

    @abstractmethod
    def loss(self, encoder: Encoder, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        """features: as above; batch.views: V tensors (B, 3, S, S) in [0, 1]; batch.labels: (B,)."""

    def after_step(self, encoder: Encoder, progress: float) -> None:
        """`progress`: optimiser steps done / steps in all, in (0, 1]."""

    def judged(self, encoder: Encoder) -> Encoder:
        """Which encoder is exported and judged: the one that was taught, or a copy that is better than it."""
        return encoder

    def assign(self, pooled: Tensor) -> Tensor:
        """Pooled features (N, C) of the judged encoder -> scores (N, clusters): an image is in that of its largest."""
        raise NotImplementedError

    def monitor(self, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        """Collapse monitors of the pooled features (B, C) of the first view, and the size of its grid's entries."""
        return collapse(features[0].pooled) | {"grid_rms": features[0].grid.detach().float().square().mean().sqrt()}

    def watch(self, rows: Tensor) -> None:
        """Called in `loss` with the rows (B, D) that it compares, which must not all become the same."""
        self._watched = rows.detach()

    def spread(self) -> float:
        """Of the rows last watched: 1 if spread over the sphere, 0 if all are the same; inf if none are watched."""
        return math.inf if self._watched is None else float(deviation(self._watched))


@torch.no_grad()
def deviation(rows: Tensor) -> Tensor:
    """(B, D): mean over dimensions of the deviation over the batch of the unit rows, times sqrt(D)."""
    return nn.functional.normalize(rows.float(), dim=1).std(0).mean() * rows.shape[1] ** 0.5


@torch.no_grad()
def information(chances: Tensor) -> Tensor:
    """(B, K), rows sum to 1: H(mean row) - mean H(row) in nats, what a row tells of its image; 0 if all are equal."""
    return torch.special.entr(chances.mean(0)).sum() - torch.special.entr(chances).sum(1).mean()


@torch.no_grad()
def collapse(pooled: Tensor) -> dict[str, Tensor]:
    """Is every image mapped to the same point? (B, C) -> scalars.

    feature_std: `deviation`, 1 is healthy, 0 collapsed. effective_rank: C at most, 1 when one direction is left.
    mean_cosine: over pairs of different images.
    """
    x = pooled.float()
    n = len(x)
    cosine = (nn.functional.normalize(x, dim=1).sum(0).square().sum() - n) / max(1, n * (n - 1))
    return {"feature_std": deviation(x), "effective_rank": effective_rank(x), "mean_cosine": cosine}
