"""Activation norm: a penalty on the size of the grid, and nothing to solve; the control for masked embedding.

loss = mean over images, cells and channels of E^2.
It is what masked embedding with an attached target would be if its decoder always said 0, so the same weight is the
same pull. What it gains, masked embedding gains by shrinking the grid; compare them at an equal final `rms`.
Merity et al., "Revisiting Activation Regularization for Language RNNs", arXiv 1708.01009; here without its dropout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sandglass.auxiliary._base import Auxiliary
from sandglass.auxiliary._grid import GridWatch
from sandglass.backbones.grid import Encoder
from sandglass.data.loader import Batch

PAPER = "arXiv 1708.01009"

SETTINGS = {
    "weight": (0.1, 0.0, 10.0),  # lambda
    "lambda_schedule": ("const", {"const", "warmup_decay"}),
}

PRESETS = {
    "thesis": {"lambda_schedule": "const"},
    "sound": {"lambda_schedule": "const"},
}


class ActivationNorm(Auxiliary):
    """No parameters. It never counts as collapsed: a small grid is what is asked for, and `rms` tells how small."""

    def __init__(self, encoder: Encoder, settings: dict[str, Any]) -> None:
        super().__init__(encoder, settings)
        self.watch = GridWatch()

    def loss(self, encoder: Encoder, grid: Tensor, batch: Batch) -> dict[str, Tensor]:
        """grid (B,C,h,w) -> "loss" and the figures of the grid."""
        with torch.autocast(grid.device.type, enabled=False):
            return {"loss": grid.float().square().mean(), **self.watch(grid)}
