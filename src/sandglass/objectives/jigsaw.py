"""Jigsaw: nine tiles of an image in one of P orders; which one? Parts must be known to be put in their places.

    L = CE(g(concat_j h(f(tile at place j))), p),  p drawn from the P permutations of the table;  ln P at first

Noroozi & Favaro 2016: 3 x 3 cells, in each a tile at a random place, so that edges do not continue from tile to tile;
each tile standardised per channel by its own mean and deviation, against tell-tale colours; some images grey.
The authors choose permutations of large mean distance; here the smallest distance to those chosen comes first, then the
mean, and ties go to the first in lexicographic order: no draw, the same table everywhere. A tile's side is the largest
multiple of the encoder's stride that the encoder takes and that leaves an eighth of its cell as room to move (64 px of
74 at 224 px); where there is none, of 4 px. Channels are not shifted by constants: standardising undoes it.
"""

from __future__ import annotations

import copy
from functools import cache
from itertools import count, permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sandglass.backbones.grid import Encoder, Features
from sandglass.data.loader import Batch
from sandglass.errors import Exit, Problem
from sandglass.objectives._base import Objective
from sandglass.objectives._parts import single
from sandglass.views import ops

PAPER = "arXiv 1603.09246"
VIEWS = "crop_flip"
KIND = "one view"
BACKBONES = "any that takes smaller crops"
SETTINGS = {
    "permutations": (100, 2, 1000),  # P
    "out": (512, 1, 65536),  # width of what is kept of a tile
    "hidden": (2048, 1, 65536),  # width inside the classifier
    "grey": (0.3, 0.0, 1.0),  # share of images that lose their colour
}
TRAIN = {
    "cnn": {"optimizer": "sgd", "lr_per_256": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "clip_norm": 0.0},
    "transformer": {"optimizer": "adamw", "lr_per_256": 5e-4, "weight_decay": 0.05},
}

FLAT = 1e-3  # a deviation below a quarter of a grey level is rounding; it is not blown up to 1


class Jigsaw(Objective):
    """Unsupervised learning of visual representations by solving jigsaw puzzles (Noroozi & Favaro 2016).

    Raises Problem T-162 if the encoder takes no tile that fits into a third of its image.
    """

    views = (1, 1)
    alarm = 0.02  # pooled features have much in common, and no norm takes it away before they are watched
    table: Tensor

    def __init__(self, encoder: Encoder, settings: dict[str, Any], classes: int) -> None:
        super().__init__(encoder, settings, classes)
        self.grey, self.side = settings["grey"], tile_side(encoder)
        self.register_buffer("table", torch.from_numpy(far_permutations(settings["permutations"])))
        out, hidden = settings["out"], settings["hidden"]
        self.tile_head = nn.Sequential(nn.Linear(encoder.width, out, bias=False), nn.BatchNorm1d(out), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(9 * out, hidden), nn.ReLU(), nn.Linear(hidden, len(self.table)))

    def inputs(self, sides: list[int]) -> list[int]:
        return [self.side]

    def features(self, encoder: Encoder, batch: Batch) -> list[Features]:
        """Of the shuffled tiles of the first view, (9 B, ...): those of an image follow each other."""
        tiles = self.puzzle(batch)
        return [encoder(standardised(tiles.flatten(0, 1)) * encoder.std + encoder.mean)]

    def puzzle(self, batch: Batch) -> Tensor:
        """Draw tiles and their order, which `loss` will ask for: (B, 9, 3, side, side) in [0, 1]."""
        view = batch.views[0].clone()
        slack = view.shape[-1] // 3 - self.side
        shift = batch.drawn(lambda n, generator: torch.randint(slack + 1, (n, 9, 2), generator=generator))
        which = batch.drawn(lambda n, generator: torch.randint(len(self.table), (n,), generator=generator))
        ops.only(view, batch.drawn(lambda n, generator: torch.rand(n, generator=generator)) < self.grey, ops.grey)
        self.answer = which.to(view.device, non_blocking=True)
        tiles = cut(view, shift.to(view.device, non_blocking=True), self.side)
        return tiles[torch.arange(len(tiles), device=tiles.device)[:, None], self.table[self.answer]]

    def loss(self, encoder: Encoder, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        """ "accuracy" is that of the guesses at the permutation; 1/P by chance."""
        self.watch(features[0].pooled)
        tiles = self.tile_head(features[0].pooled)
        guess = single(self.classifier(tiles.unflatten(0, (-1, 9)).flatten(1)))
        accuracy = (guess.argmax(1) == self.answer).float().mean()
        return {"loss": nn.functional.cross_entropy(guess, self.answer), "accuracy": accuracy}


def cut(images: Tensor, shift: Tensor, side: int) -> Tensor:
    """(B, 3, S, S) -> (B, 9, 3, side, side): a tile of each cell, row by row, `shift` (B, 9, 2) px down and right."""
    size = images.shape[-1]
    corner = torch.arange(3, device=images.device) * size // 3
    rows = corner.repeat_interleave(3) + shift[..., 0]  # (B, 9)
    columns = corner.repeat(3) + shift[..., 1]
    along = torch.arange(side, device=images.device)
    image = torch.arange(len(images), device=images.device)[:, None, None, None]
    tiles = images[image, :, (rows[..., None] + along)[..., None], (columns[..., None] + along)[:, :, None]]
    return tiles.movedim(-1, 2)


def standardised(tiles: Tensor) -> Tensor:
    """(N, 3, s, s): every channel of every tile with mean 0 and deviation 1; a flat one is 0."""
    deviation, mean = torch.std_mean(tiles, (2, 3), keepdim=True)
    return (tiles - mean) / torch.where(deviation < FLAT, 1.0, deviation)


@cache
def far_permutations(number: int) -> np.ndarray:
    """int64 (number, 9): the identity, then each time the permutation that differs in most places from those chosen."""
    everyone = np.array(list(permutations(range(9))), dtype=np.int8).T.copy()  # (9, 9!): additions run along memory
    chosen = [0]
    nearest, total = np.full(everyone.shape[1], 9, dtype=np.int8), np.zeros(everyone.shape[1], dtype=np.int32)
    while len(chosen) < number:
        places = (everyone != everyone[:, chosen[-1:]]).sum(0, dtype=np.int8)
        nearest, total = np.minimum(nearest, places), total + places
        best = np.flatnonzero(nearest == nearest.max())
        chosen.append(int(best[np.argmax(total[best])]))
    return everyone.T[chosen].astype(np.int64)


def tile_side(encoder: Encoder) -> int:
    """In px: the largest multiple of the encoder's stride, or else of 4, that a cell has room for and it takes."""
    stride, room = encoder.size // encoder.grid_shape[0], _room(encoder.size)
    trial, why = copy.deepcopy(encoder).eval(), f"a cell has room for {room} px"
    for side in [*range(room // stride * stride, 0, -stride), *range(room // 4 * 4, 0, -4)]:
        try:
            with torch.no_grad():
                trial(torch.zeros(1, 3, side, side, device=encoder.mean.device))
            return side
        except Exception as error:  # whatever a model raises at a size that is not for it
            why = str(error)
    enough = next(size for size in count(encoder.size, stride) if _room(size) >= stride)
    raise Problem(
        "T-162",
        Exit.CONFIG,
        f"jigsaw: {type(encoder.model).__name__} for images of {encoder.size} px takes no tile of their ninths",
        why=why,
        fix="a backbone that takes images of any size: resnet, convnext, pvt_v2, hourglass, vit with "
        "dynamic_img_size: true, or swin with strict_img_size: false"
        + (f", and images of {enough} px or more" if enough > encoder.size else ""),
    )


def _room(size: int) -> int:
    """The largest tile, in px, that leaves an eighth of its cell as room to move."""
    return size // 3 * 7 // 8
