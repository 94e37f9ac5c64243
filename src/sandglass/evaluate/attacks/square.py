"""Square attack: random squares of colour, kept where they lower the margin. It asks for no gradient, so it does not
care whether there is one: what withstands PGD and falls to this one was not robust but masked.

Start x + eps s with s = +-1 for each channel and column; then, query by query, a square of side sqrt(p) S at a random
place is set to x + eps s, s = +-1 for each channel. p begins as `share` and is halved after 0.1, 0.5, 2, 10, 20, 40, 60
and 80 % of the queries. l-inf only.  Andriushchenko et al. 2020, arXiv 1912.00049.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from sandglass.data.loader import step_generator
from sandglass.evaluate.attacks._ball import Ball
from sandglass.evaluate.attacks._base import Model, Outcome, Shown, ask, run
from sandglass.evaluate.attacks._kept import Kept

PAPER = "arXiv 1912.00049"

SETTINGS = {
    "epsilons": ([0.0, 1.0, 2.0, 4.0, 8.0], 0.0, 255.0),  # in 1/255
    "space": ("pixel", {"pixel", "normalised"}),
    "clip": True,
    "queries": (1000, 1, 1000000),  # for each image
    "share": (0.8, 0.001, 1.0),  # of the image that the first squares cover
}

HALVED = (0.001, 0.005, 0.02, 0.1, 0.2, 0.4, 0.6, 0.8)  # where p halves, as a part of the queries


def squares(settings: dict[str, Any], seed: int, batch: Shown, ball: Ball) -> Tensor:
    """Images that fool, or were nearest to it. Draws are a function of (seed, row), and so do not depend on batches."""
    queries, size, device = settings["queries"], batch.x.shape[-1], batch.x.device
    generators = [step_generator(seed, 0, row, "square") for row in batch.rows]
    stripes = torch.stack([_signs((3, 1, size), g) for g in generators]).to(device)
    places = torch.stack([torch.rand(queries, 2, generator=g) for g in generators]).to(device)
    colours = torch.stack([_signs((queries, 3, 1, 1), g) for g in generators]).to(device)
    reach, at = ball.radius * ball.unit, torch.arange(size, device=device)
    found = batch.x.clone()
    lead = _lead(batch.model, found, batch.y)
    left = (lead < 0).nonzero().flatten()
    for query in range(queries + 1):
        if not len(left):
            break
        x, best = batch.x[left], found[left]
        if query == 0:
            moved = ball.clipped(x + reach * stripes[left])
        else:
            part = settings["share"] / 2 ** sum(query > queries * point for point in HALVED)
            side = min(size, max(1, round(part**0.5 * size)))
            corner = (places[left, query - 1] * (size - side + 1)).long()
            down, across = ((at >= c[:, None]) & (at < c[:, None] + side) for c in corner.T)
            inside = (down[:, :, None] & across[:, None, :])[:, None]
            moved = torch.where(inside, ball.clipped(x + reach * colours[left, query - 1]), best)
        new = _lead(batch.model, moved, batch.y[left])
        better = new > lead[left]
        found[left] = torch.where(better[:, None, None, None], moved, best)
        lead[left] = torch.where(better, new, lead[left])
        left = left[lead[left] < 0]
    return found


def _lead(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    """By how much the best wrong class leads: (B,)."""
    logits = ask(model, images)
    own = logits.gather(1, labels[:, None])
    return (logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1, keepdim=True) - own)[:, 0]


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=generator).float() * 2 - 1


def linf(
    model: Model, images: Tensor, labels: Tensor, settings: dict[str, Any], seed: int, kept: Kept | None = None
) -> Outcome:
    """Rows for every epsilon, examples, predictions. Raises Problem, see `run`."""
    return run("square", partial(squares, settings, seed), model, images, labels, settings, kept)
