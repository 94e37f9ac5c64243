"""What every auxiliary task is: a head on the last feature map, a loss, and the weight that loss has over a run.

total loss = objective + sum of weight_at(progress) * task loss. A task that sees only the grid shares the objective's
forward pass; one that asks about a changed image makes its own. Its parameters are trained with the encoder's and
dropped at export; it never judges.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sandglass.auxiliary._grid import rank
from sandglass.backbones.grid import Encoder
from sandglass.data.loader import Batch
from sandglass.errors import Exit, Problem

WARMUP = 20 / 300  # share of a run, `warmup_decay`: 20 of 300 epochs in the code that Liu et al. (2021) released


class Auxiliary(nn.Module, ABC):
    """An auxiliary task for the grids (B,C,h,w) of `encoder`: C = `channels`, (h,w) = `grid_shape`.

    Raises Problem T-150 for a grid of one cell, in which there is nothing to locate and nothing to hide.
    """

    own_forward = False  # whether it shows the encoder images of its own making

    def __init__(self, encoder: Encoder, settings: dict[str, Any]) -> None:
        super().__init__()
        if encoder.grid_shape == (1, 1):
            raise Problem(
                "T-150",
                Exit.CONFIG,
                f"{type(self).__name__} needs a grid of several cells, and the backbone's last map is 1x1",
                fix="a larger size, or a backbone with a smaller stride",
            )
        self.channels, self.grid_shape, self.settings = encoder.width, encoder.grid_shape, settings

    @abstractmethod
    def loss(self, encoder: Encoder, grid: Tensor, batch: Batch) -> dict[str, Tensor]:
        """grid (B,C,h,w) of the batch's first view -> {"loss": float32 scalar with gradient, named scalars without}.

        The loss is not yet weighted. All randomness comes through `batch.drawn`, in functions of nothing but their
        arguments and settings, and nothing else may differ from step to step: on a GPU a step is recorded.
        """

    def monitor(self, grid: Tensor) -> dict[str, Tensor]:
        """What is told at log steps only, as it makes a GPU wait: scalars of the grid that `loss` was given."""
        return {"effective_rank": rank(grid)}

    def after_step(self, encoder: Encoder, progress: float) -> None:
        """Called after each update of the weights, with the share of the run that is done."""

    def weight_at(self, progress: float) -> float:
        """lambda at `progress` in [0, 1] of the run: constant, or a linear rise and then a linear fall to 0."""
        weight = float(self.settings["weight"])
        if self.settings["lambda_schedule"] == "const":
            return weight
        return weight * min(progress / WARMUP, (1.0 - progress) / (1.0 - WARMUP))

    def collapsed(self) -> bool:
        """Asked once at the end of every epoch: has the task driven the grid to a constant?"""
        return False

    def matched(self) -> int:
        """Parameters of masked embedding's decoder for this grid, four blocks: what `budget: matched` brings a head to.

        4,709,016 for (312,8,8).
        """
        c, cells = self.channels, self.grid_shape[0] * self.grid_shape[1]
        return 4 * (12 * c * c + 13 * c) + (cells + 1) * c


@contextmanager
def looking_again(encoder: nn.Module) -> Iterator[None]:
    """For a forward of changed images: batch norm goes by their own statistics and keeps none of them.

    The running statistics, by which the encoder is judged, so stay those of whole images; the last forward of a step
    would otherwise have the larger part in them.
    """
    norms = [m for m in encoder.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
