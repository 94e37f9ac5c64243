"""What every auxiliary task is: a head on the last feature map, a loss, and the weight that loss has over a run.

total loss = objective + sum of weight_at(progress) * task loss. A task sees only the grid, so one forward pass of the
encoder serves them all. Its parameters are trained with the encoder's and dropped at export; it never judges.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from sandglass.data.loader import Batch
from sandglass.errors import Exit, Problem

WARMUP = 20 / 300  # share of a run, `warmup_decay`: 20 of 300 epochs in the code that Liu et al. (2021) released


class Auxiliary(nn.Module, ABC):
    """An auxiliary task for grids (B,C,h,w) with C = `channels` and (h,w) = `grid_shape`.

    Raises Problem T-150 for a grid of one cell, in which there is nothing to locate and nothing to hide.
    """

    def __init__(self, channels: int, grid_shape: tuple[int, int], settings: dict[str, Any]) -> None:
        super().__init__()
        if grid_shape[0] * grid_shape[1] == 1:
            raise Problem(
                "T-150",
                Exit.CONFIG,
                f"{type(self).__name__} needs a grid of several cells, and the backbone's last map is 1x1",
                fix="a larger size, or a backbone with a smaller stride",
            )
        self.channels, self.grid_shape, self.settings = channels, grid_shape, settings

    @abstractmethod
    def loss(self, grid: Tensor, batch: Batch) -> dict[str, Tensor]:
        """grid (B,C,h,w) -> {"loss": float32 scalar with gradient, and named scalars without}.

        The loss is not yet weighted. All randomness comes through `batch.drawn`.
        """

    def weight_at(self, progress: float) -> float:
        """lambda at `progress` in [0, 1] of the run: constant, or a linear rise and then a linear fall to 0."""
        weight = float(self.settings["weight"])
        if self.settings["lambda_schedule"] == "const":
            return weight
        return weight * min(progress / WARMUP, (1.0 - progress) / (1.0 - WARMUP))

    def collapsed(self) -> bool:
        """Asked once at the end of every epoch: has the task driven the grid to a constant?"""
        return False
