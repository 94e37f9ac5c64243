"""Jigsaw: the cells of an image are shuffled, and each must tell where it came from.

    loss = mean over cells of CE(g(e_i), place of cell i in the image);  ln N for N cells at first
    g = Linear(C,C)-ReLU-Linear(C,C)-ReLU-Linear(C,N)

Chen et al. 2023 (Jigsaw-ViT), arXiv 2207.11971, whose eta is the weight here, 0.1. They show a plain ViT a share
1 - gamma of its tokens without positions, which needs no shuffling (`form: tokens`; our class token keeps its
position). In other encoders layers know the place of a cell, from padding, windows or positions: there pieces of
pixels, one a cell, are shuffled before the first layer, so that its place says nothing of a cell's origin (`form:
pixels`). What is left are seams, where windows overlap and a cell has pixels of its new neighbours in it; and in every
form a cell's own content, such as sky. How far that leads without training is the accuracy of a run with `encoder:
untrained`: the same puzzle and head, on what a frozen copy of the encoder says, made before the first step.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sandglass.auxiliary._base import Auxiliary, looking_again
from sandglass.backbones.grid import Encoder
from sandglass.data.loader import Batch
from sandglass.errors import Exit, Problem
from sandglass.objectives._masking import cell_side, hidden_of, of_patches, takes_patches_alone
from sandglass.objectives._parts import single, still

PAPER = "arXiv 2207.11971"

SETTINGS = {
    "weight": (0.1, 0.0, 10.0),  # eta
    "lambda_schedule": ("const", {"const", "warmup_decay"}),
    "form": ("pixels", {"pixels", "tokens"}),  # what is shuffled; tokens: a plain ViT's, without positions
    "ratio": (0.5, 0.0, 0.95),  # gamma, share of the tokens that is dropped; pixels are all kept
    "encoder": ("trained", {"trained", "untrained"}),  # untrained: the control, a frozen copy from before training
    "budget": ("native", {"native", "matched"}),  # matched: as many parameters as masked embedding's decoder
}

PRESETS = {
    "thesis": {"weight": 0.1, "ratio": 0.5, "lambda_schedule": "const"},
    "sound": {"weight": 0.1, "ratio": 0.5, "lambda_schedule": "const"},
}


class Jigsaw(Auxiliary):
    """215,344 parameters for a grid (312,8,8); 4.7 M, hidden layers wider, with `budget: matched`.

    Raises Problem T-161 if the cells do not divide the image, T-156 if the encoder's tokens cannot be shuffled.
    """

    own_forward = True

    def __init__(self, encoder: Encoder, settings: dict[str, Any]) -> None:
        super().__init__(encoder, settings)
        self.side = cell_side(encoder, "jigsaw")
        self.cells = math.prod(self.grid_shape)
        self.kept = self.cells
        if settings["form"] == "tokens":
            if not takes_patches_alone(encoder.model):
                raise Problem(
                    "T-156",
                    Exit.CONFIG,
                    f"jigsaw: the tokens of {type(encoder.model).__name__} cannot be shuffled",
                    why="its layers need the whole grid, or its patches overlap; a plain ViT's do not",
                    fix="auxiliary.jigsaw.form: pixels",
                )
            self.kept -= min(hidden_of(self.cells, settings["ratio"]), self.cells - 1)
        c, n = self.channels, self.cells
        hidden = self._matched() if settings["budget"] == "matched" else c
        self.head = nn.Sequential(
            nn.Linear(c, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, n)
        )
        self.untrained = copy.deepcopy(encoder) if settings["encoder"] == "untrained" else None
        if self.untrained is not None:
            still(self.untrained)

    def loss(self, encoder: Encoder, grid: Tensor, batch: Batch) -> dict[str, Tensor]:
        """ "over_chance": the loss over ln N; "accuracy" of the best guesses, 1/N by chance. `grid` is not asked."""
        view = batch.views[0]
        origin = batch.drawn(self.draw).to(view.device, non_blocking=True)
        looker = encoder if self.untrained is None else self.untrained
        with looking_again(looker):
            guess = single(self.head(self.see(looker, view, origin)))
        loss = F.cross_entropy(guess.flatten(0, 1), origin.flatten())
        return {
            "loss": loss,
            "over_chance": loss.detach() / math.log(self.cells),
            "accuracy": (guess.argmax(2) == origin).float().mean(),
        }

    def draw(self, images: int, generator: torch.Generator) -> Tensor:
        """The cells that are shown of each image, in their order there: int64 (images,v)."""
        return torch.rand(images, self.cells, generator=generator).argsort(1)[:, : self.kept]

    def see(self, encoder: Encoder, view: Tensor, origin: Tensor) -> Tensor:
        """What the encoder says of cells (B,v) of a view in [0,1], in this order: (B,v,C)."""
        if self.settings["form"] == "tokens":
            return of_patches(encoder.model, (view - encoder.mean) / encoder.std, origin, placed=False)[1]
        return encoder(shuffled(view, origin, self.side)).grid.flatten(2).transpose(1, 2)

    def _matched(self) -> int:
        """Width h of the hidden layers: h^2 + (C + N + 2) h + N parameters, as near as can be to `matched`."""
        half = (self.channels + self.cells + 2) / 2
        return max(1, round(math.sqrt(half**2 + self.matched() - self.cells) - half))


def shuffled(images: Tensor, origin: Tensor, side: int) -> Tensor:
    """(B,3,S,S) with, at place i, the piece of `side` px from place `origin` (B,n) int64 at i, both row by row."""
    pieces = F.pixel_unshuffle(images, side)
    moved = pieces.flatten(2).gather(2, origin[:, None].expand(-1, pieces.shape[1], -1))
    return F.pixel_shuffle(moved.view_as(pieces), side)
