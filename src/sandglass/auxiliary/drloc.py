"""Dense relative localisation: from two cells of the grid, tell how far apart they are along each axis.

For pairs of cells (i,j), (l,m), drawn uniformly with replacement (a cell may meet itself), a small MLP g is asked for
the distances along both axes. As a regression (the default), with t = (|i-l| / h, |j-m| / w):

    loss = mean over pairs of |g([e_ij ; e_lm]) - t|_1

The other forms are in _distances.py; their losses too are a mean over pairs, and `reduction` says sum or mean over the
two axes for all of them (the released code takes the mean for the regression, the sum for ce and cbr).
Liu et al., "Efficient Training of Visual Transformers with Small Datasets", NeurIPS 2021, arXiv 2106.03746.

A grid that says where each of its cells is, and nothing of the image, solves the task: position embeddings and padding
tell it that much. `sees: positions` is that solution by itself (a free vector per cell in the place of e, the encoder
untouched), beside which a loss on features can be judged.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sandglass.auxiliary._base import Auxiliary
from sandglass.auxiliary._distances import FORMS
from sandglass.auxiliary._grid import GridWatch
from sandglass.backbones.grid import Encoder
from sandglass.data.loader import Batch

PAPER = "arXiv 2106.03746"

SETTINGS = {
    "weight": (0.1, 0.0, 10.0),  # lambda
    "lambda_schedule": ("const", {"const", "warmup_decay"}),
    "pairs": (32, 1, 4096),  # per image
    "share_pairs": False,  # the same pairs for every image of a batch
    "reduction": ("sum", {"sum", "mean"}),  # over the two axes; mean is half of sum, and so wants twice the weight
    "target_scale": ("h", {"h", "h-1", "cells"}),  # regression: over the side, over the largest distance, or in cells
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
    """g = Linear(2C,hidden)-ReLU-Linear(hidden,hidden)-ReLU-Linear(hidden,answers). Runs in float32: it is small.

    For ce and cbr a Linear(hidden,hidden) comes before the last, without a ReLU between them, as released. The last
    layers of the two axes share nothing: they are the two halves of one matrix.
    """

    def __init__(self, encoder: Encoder, settings: dict[str, Any]) -> None:
        super().__init__(encoder, settings)
        form, less = FORMS[settings["form"]], {"h": 0, "h-1": 1}.get(settings["target_scale"])
        scales = [1.0 if less is None else float(max(side - less, 1)) for side in self.grid_shape]
        self.axes = [form(side, unit, settings["signed"]) for side, unit in zip(self.grid_shape, scales, strict=True)]
        self.answers = [axis.answers for axis in self.axes]
        inner = 2 if form.binned else 1  # Linear(hidden,hidden)s
        hidden = self._matched(inner) if settings["budget"] == "matched" else settings["hidden"]
        layers = [nn.Linear(2 * self.channels, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
        if form.binned:
            layers.append(nn.Linear(hidden, hidden))
        self.head = nn.Sequential(*layers, nn.Linear(hidden, sum(self.answers)))
        if settings["sees"] == "positions":
            self.positions = nn.Parameter(torch.randn(math.prod(self.grid_shape), self.channels))
        self.chance = self._reduced([axis.chance() for axis in self.axes])
        self.watch = GridWatch()

    def loss(self, encoder: Encoder, grid: Tensor, batch: Batch) -> dict[str, Tensor]:
        """grid (B,C,h,w) -> "loss"; "over_chance": 1 is what the best constant answer gets, 0 (nearly) is perfect;
        "error_cells": how far off an answer is along an axis, on average; and the figures of the grid."""
        with torch.autocast(grid.device.type, enabled=False):
            tokens = grid.float().flatten(2).transpose(1, 2)  # (B,hw,C)
            if self.settings["sees"] == "positions":
                tokens = self.positions.expand(len(grid), -1, -1)
            cells = batch.drawn(self.draw).to(grid.device, non_blocking=True)
            rows = torch.arange(len(tokens), device=grid.device)[:, None, None]
            said = self.head(tokens[rows, cells].flatten(2)).split(self.answers, dim=-1)  # (B,pairs,answers) per axis
            asked = list(zip(self.axes, said, self.apart(cells).unbind(-1), strict=True))
            loss = self._reduced([axis.loss(told, apart).mean() for axis, told, apart in asked])
            with torch.no_grad():
                error = torch.stack([axis.error(told, apart).mean() for axis, told, apart in asked]).mean()
        return {"loss": loss, "over_chance": loss.detach() / self.chance, "error_cells": error, **self.watch(grid)}

    def draw(self, images: int, generator: torch.Generator) -> Tensor:
        """Pairs of cells, numbered row by row: int64 (images,pairs,2)."""
        drawn = 1 if self.settings["share_pairs"] else images
        cells = self.grid_shape[0] * self.grid_shape[1]
        return torch.randint(cells, (drawn, self.settings["pairs"], 2), generator=generator).expand(images, -1, -1)

    def apart(self, cells: Tensor) -> Tensor:
        """The distance of each pair in cells, down and across: (B,pairs,2) cell numbers -> int64 (B,pairs,2)."""
        width = self.grid_shape[1]
        apart = torch.stack([cells // width, cells % width], dim=-1).diff(dim=2).squeeze(2).neg()  # first minus second
        return apart if self.settings["signed"] else apart.abs()

    def no_weight_decay(self) -> set[str]:
        return {"positions"}

    def _reduced(self, axes: list[Any]) -> Any:
        return sum(axes) if self.settings["reduction"] == "sum" else sum(axes) / 2

    def _matched(self, inner: int) -> int:
        """The width that gives the head the parameters of masked embedding's four blocks, positions and token.

        Rounded down to tens from a thousand on: 1,870 for a regression on (312,8,8), 0.8 % too few.
        """
        c, answers = self.channels, sum(self.answers)
        budget = 4 * (12 * c * c + 13 * c) + (math.prod(self.grid_shape) + 1) * c
        linear = 2 * c + 1 + inner + answers  # inner * hidden^2 + linear * hidden + answers = budget
        hidden = (math.sqrt(linear**2 + 4 * inner * (budget - answers)) - linear) / (2 * inner)
        return max(round(hidden), 1) if hidden < 1000 else int(hidden) // 10 * 10
