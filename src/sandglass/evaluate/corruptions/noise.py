"""Noise: each entry of an image (B,3,S,S) in [0,1] is changed by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from sandglass.evaluate.corruptions._draws import Draws


def gaussian_noise(x: Tensor, deviation: float, draws: Draws) -> Tensor:
    """As in little light."""
    return x + deviation * draws.normal(*x.shape[1:])


def shot_noise(x: Tensor, photons: float, draws: Draws) -> Tensor:
    """Light comes in grains, `photons` of them make white."""
    return draws.poisson(x * photons) / photons


def impulse_noise(x: Tensor, share: float, draws: Draws) -> Tensor:
    """Salt and pepper, half each."""
    chance = draws.uniform(*x.shape[1:])
    return torch.where(chance < share / 2, 0.0, torch.where(chance > 1 - share / 2, 1.0, x))


def speckle_noise(x: Tensor, deviation: float, draws: Draws) -> Tensor:
    """In proportion to the light."""
    return x + x * deviation * draws.normal(*x.shape[1:])
