"""Dense relative localisation: from two cells of the grid, tell how far apart they are along each axis.

For pairs of cells (i,j), (l,m), drawn uniformly with replacement (a cell may meet itself), a small MLP g is fitted to
t = (|i-l| / h, |j-m| / w):  loss = mean over pairs of |g([e_ij ; e_lm]) - t|_1.
Liu et al., "Efficient Training of Visual Transformers with Small Datasets", NeurIPS 2021, arXiv 2106.03746.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sandglass.auxiliary._base import Auxiliary
from sandglass.backbones.grid import Encoder
from sandglass.data.loader import Batch

PAPER = "arXiv 2106.03746"

SETTINGS = {
    "weight": (0.1, 0.0, 10.0),  # lambda
    "lambda_schedule": ("const", {"const", "warmup_decay"}),
    "pairs": (32, 1, 4096),  # per image
    "share_pairs": False,  # the same pairs for every image of a batch
    "reduction": ("sum", {"sum", "mean"}),  # over the two axes; mean is half of sum, and so wants twice the weight
    "target_scale": ("h", {"h", "h-1", "cells"}),  # distances over the side, over the largest distance, or in cells
    "signed": False,  # i-l instead of |i-l|
    "form": ("regression", {"regression", "ce", "cbr", "circular"}),  # how a distance is asked for
    "hidden": (512, 1, 8192),  # width of the hidden layers, if `budget` is native
    "budget": ("native", {"native", "matched"}),  # matched: as many parameters as masked embedding's decoder
    "sees": ("features", {"features", "positions"}),  # positions: the control that never looks at the image
}

PRESETS = {
    "thesis": {"pairs": 32, "share_pairs": True, "reduction": "sum", "target_scale": "h", "lambda_schedule": "const"},
    "sound": {
        "pairs": 32,
        "share_pairs": False,
        "reduction": "sum",
        "target_scale": "h-1",
        "lambda_schedule": "warmup_decay",
    },
}


class DRLoc(Auxiliary):
    """g = Linear(2C,hidden)-ReLU-Linear(hidden,hidden)-ReLU-Linear(hidden,2). Runs in float32: it is small."""

    scale: Tensor  # (2,)

    def __init__(self, encoder: Encoder, settings: dict[str, Any]) -> None:
        super().__init__(encoder, settings)
        hidden = settings["hidden"]
        self.head = nn.Sequential(
            nn.Linear(2 * self.channels, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2)
        )
        less = {"h": 0, "h-1": 1}.get(settings["target_scale"])
        sides = [1.0 if less is None else max(side - less, 1) for side in self.grid_shape]
        self.register_buffer("scale", torch.tensor(sides), persistent=False)
        self.chance = self._chance()

    def loss(self, encoder: Encoder, grid: Tensor, batch: Batch) -> dict[str, Tensor]:
        """grid (B,C,h,w) -> "loss", and "over_chance": 1 is what the best constant answer gets, 0 is perfect."""
        with torch.autocast(grid.device.type, enabled=False):
            tokens = grid.float().flatten(2).transpose(1, 2)  # (B,hw,C)
            cells = batch.drawn(self.draw).to(grid.device, non_blocking=True)
            rows = torch.arange(len(tokens), device=grid.device)[:, None, None]
            predicted = self.head(tokens[rows, cells].flatten(2))  # (B,pairs,2C) -> (B,pairs,2)
            distance = (predicted - self.target(cells)).abs().mean(dim=(0, 1))
            loss = distance.sum() if self.settings["reduction"] == "sum" else distance.mean()
        return {"loss": loss, "over_chance": loss.detach() / self.chance}

    def draw(self, images: int, generator: torch.Generator) -> Tensor:
        """Pairs of cells, numbered row by row: int64 (images,pairs,2)."""
        drawn = 1 if self.settings["share_pairs"] else images
        cells = self.grid_shape[0] * self.grid_shape[1]
        return torch.randint(cells, (drawn, self.settings["pairs"], 2), generator=generator).expand(images, -1, -1)

    def target(self, cells: Tensor) -> Tensor:
        """The distance of each pair, down and across: (B,pairs,2) cell numbers -> float32 (B,pairs,2)."""
        width = self.grid_shape[1]
        apart = torch.stack([cells // width, cells % width], dim=-1).diff(dim=2).squeeze(2).neg()  # first minus second
        return (apart if self.settings["signed"] else apart.abs()) / self.scale

    def _chance(self) -> float:
        """Loss of the best constant answer, the median distance, over all pairs of cells (0.391 for 8x8, sum, h)."""
        axes = []
        for side, scale in zip(self.grid_shape, self.scale.tolist(), strict=True):
            places = torch.arange(side, dtype=torch.float64)
            apart = (places[:, None] - places).flatten() / scale
            apart = apart if self.settings["signed"] else apart.abs()
            axes.append(float((apart - apart.median()).abs().mean()))
        return sum(axes) if self.settings["reduction"] == "sum" else sum(axes) / 2
