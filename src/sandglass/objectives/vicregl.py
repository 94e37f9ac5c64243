"""VICRegL: VICReg of whole views, and of cells of their grids that match: nearest in feature, and nearest in the image.

    L = alpha G + (1 - alpha) Lambda,   z_v (N, D): outputs of view v,   m_v (N, L_v, D'): outputs of each of its cells
    G = 25 mean_P (z_a - z_b)^2 + mean_v [25 v(z_v) + c(z_v)]                            v and c: see vicreg.py
    Lambda = mean_P [l_feature + l_location],   P: ordered pairs (a, b) of views, a one of the two large ones
    l(a, b) = [R(a -> b; matches) + R(b -> a; matches_back)] / 2
    R(a -> b; k): the k cells of a that are nearest to one of b, in order of that distance, beside those of b:
        25 mean (x - y)^2 + mean_{x, y} [25 v + c],   v and c over the batch, for each rank by itself

Bardes, Ponce and LeCun 2022 (arXiv 2210.01571), as their code has it: matching by feature keeps every cell, k is for
that by location. Ours: places follow flips, which their code leaves out; cells are ordered by distance, theirs by
position; a layer norm, not a batch norm, in the head of the cells (lightly's), for every backbone.

`form: legacy` is what lightly had until April 2023, and so the blog's: the first view large, the second small, one
pair, no v and c in Lambda, k for both kinds of match, G the loss of VICReg, and centres of cells too far apart.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from lightly.models.modules.heads import BarlowTwinsProjectionHead, VicRegLLocalProjectionHead
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sandglass.backbones.grid import Encoder, Features, check
from sandglass.data.loader import Batch
from sandglass.distributed import gather
from sandglass.errors import Exit, Problem
from sandglass.objectives._base import Objective
from sandglass.objectives._parts import single
from sandglass.objectives.vicreg import INVARIANCE, VARIANCE, moments

PAPER = "arXiv 2210.01571"
VIEWS = "located"
KIND = "two located views, and any number of smaller ones"
BACKBONES = "any whose last map has several cells"
SETTINGS = {
    "hidden": (2048, 1, 65536),  # width inside the expander of whole views
    "out": (2048, 1, 65536),  # D
    "local_hidden": (512, 1, 65536),  # width inside the head of cells
    "local_out": (512, 1, 65536),  # D'
    "alpha": (0.75, 0.0, 1.0),  # weight of whole views; at 1 there is no head of cells, at 0 no expander
    "matches": (20, 1, 65536),  # cells of the first view of a pair, all if it has fewer
    "matches_back": (4, 1, 65536),  # cells of the second
    "form": ("correct", {"correct", "legacy"}),
}
PRESETS = {"blog": {"form": "legacy", "local_hidden": 128, "local_out": 128}}
CROPS = {"blog": {"count": 1, "small_count": 1, "small_crop_scale_min": 0.05, "small_crop_scale_max": 0.2}}
TRAIN = {
    "cnn": {
        "optimizer": "lars",
        "lr_per_256": 0.5,
        "momentum": 0.9,
        "weight_decay": 1e-6,
        "warmup_epochs": 10.0,
        "clip_norm": 0.0,
    },
    "transformer": {
        "optimizer": "adamw",
        "lr_per_256": 5e-4,
        "weight_decay": 0.05,
        "warmup_epochs": 20.0,
        "clip_norm": 3.0,
    },
    "blog": {
        "optimizer": "lars",
        "lr_per_256": 0.3,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "decay": "everything",
        "warmup_epochs": 10.0,
        "clip_norm": 0.0,
        "batch_size": 256,
    },
}


class VICRegL(Objective):
    """VICReg of local features (Bardes et al. 2022). Raises Problem T-160 for a grid of one cell, unless alpha is 1."""

    views = (2, math.inf)

    def __init__(self, encoder: Encoder, settings: dict[str, Any], classes: int) -> None:
        super().__init__(encoder, settings, classes)
        self.alpha, self.legacy = settings["alpha"], settings["form"] == "legacy"
        self.matches = settings["matches"], settings["matches_back"]
        if self.alpha < 1 and encoder.grid_shape == (1, 1):
            raise _nothing_to_match(encoder)
        self.projector: nn.Module | None = None
        self.local_projector: nn.Module | None = None
        if self.alpha > 0:
            self.projector = BarlowTwinsProjectionHead(encoder.width, settings["hidden"], settings["out"])
        if self.alpha < 1:
            widths = settings["local_hidden"], settings["local_out"]
            self.local_projector = VicRegLLocalProjectionHead(encoder.width, *widths)

    def loss(self, encoder: Encoder, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        device = features[0].pooled.device
        pairs = [(a, b) for a in range(1 if self.legacy else 2) for b in range(len(features)) if a != b]
        loss, parts = torch.zeros((), device=device), {}
        if self.local_projector:
            maps = [gather(single(self.local_projector(f.grid.flatten(2).mT))) for f in features]
            centres = [place.centres(*f.grid.shape[2:]) for place, f in zip(batch.places, features, strict=True)]
            cells = [(stretched(c) if self.legacy else c).flatten(1, 2) for c in centres]
            places = [gather(c.to(device, non_blocking=True)) for c in cells]
            self.watch(maps[0].flatten(0, 1))
            with torch.autocast(device.type, enabled=False):
                local = self._of_cells(maps, places, pairs)
            loss, parts["local"] = loss + (1 - self.alpha) * local, local.detach()
        if self.projector:
            z = [gather(single(self.projector(f.pooled))) for f in features]
            self.watch(z[0])
            with torch.autocast(device.type, enabled=False):
                whole = self._of_views(z, pairs)
            loss, parts["global"] = loss + self.alpha * whole, whole.detach()
        return {"loss": loss, **parts}

    def _of_views(self, z: list[Tensor], pairs: list[tuple[int, int]]) -> Tensor:
        """G of outputs (N, D). VICReg adds up the covariances of its two views, of which this is the mean."""
        weight = 2.0 if self.legacy else 1.0
        return INVARIANCE * mean([mse_loss(z[a], z[b]) for a, b in pairs]) + scatter(z, weight)

    def _of_cells(self, maps: list[Tensor], places: list[Tensor], pairs: list[tuple[int, int]]) -> Tensor:
        """Lambda of outputs (N, L_v, D') of cells whose centres in the image are `places` (N, L_v, 2)."""

        @cache  # without a limit, (a, b) and (b, a) need the same two
        def compared(a: int, b: int, by_place: bool, keep: int | None) -> Tensor:
            x, y = nearest(maps[a], maps[b], *((places[a], places[b]) if by_place else (maps[a], maps[b])), keep)
            return INVARIANCE * mse_loss(x, y) + (0 if self.legacy else scatter([x, y], 1.0))

        losses = []
        for a, b in pairs:
            for by_place in (False, True):
                there, back = self.matches if by_place or self.legacy else (None, None)
                losses.append((compared(a, b, by_place, there) + compared(b, a, by_place, back)) / 2)
        return 2 * mean(losses)


def nearest(a: Tensor, b: Tensor, at: Tensor, among: Tensor, keep: int | None) -> tuple[Tensor, Tensor]:
    """Rows of a (N, L, D) and of b (N, M, D) that match: two of (N, min(keep, L), D), the closest match first.

    Each row of a is matched with the row of b nearest to it in Euclidean distance between `at` (N, L, E) and `among`
    (N, M, E); several may have the same. No gradient goes through the choice.
    """
    with torch.no_grad():
        distance, match = torch.cdist(at, among).min(2)
        kept = distance.argsort(dim=1, stable=True)[:, :keep]
        match = match.gather(1, kept)

    def taken(rows: Tensor, index: Tensor) -> Tensor:
        return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2]))

    return taken(a, kept), taken(b, match)


def scatter(outputs: list[Tensor], weight: float) -> Tensor:
    """Mean over outputs (N, ..., D) of what keeps them apart: 25 v + weight * c."""
    return mean([VARIANCE * v + weight * c for v, c in map(moments, outputs)])


def stretched(centres: Tensor) -> Tensor:
    """Centres (N, h, h, 2) as lightly places them: the first right, the others h / (h - 1) times as far from it."""
    first = centres.amin((1, 2), keepdim=True)
    cells = centres.shape[1]
    return first + (centres - first) * cells / max(1, cells - 1)


def mean(values: list[Tensor]) -> Tensor:
    """Of scalars."""
    return torch.stack(values).mean()


def _nothing_to_match(encoder: Encoder) -> Problem:
    """Names sizes and arguments near these with which the backbone has several cells: each is tried."""
    name, size = encoder.model.pretrained_cfg["architecture"], encoder.size
    arguments = {key: value for key, value in encoder.model.made_with.items() if key != "img_size"}
    what = f"vicregl matches cells, and at {size} px {name} has one"
    why = "\n".join(check(name, size, arguments)["warnings"])
    return Problem(
        "T-160", Exit.CONFIG, what, why=why, fix="objectives.vicregl.alpha: 1.0, or one of the settings above"
    )
