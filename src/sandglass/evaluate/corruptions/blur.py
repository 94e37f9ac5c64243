"""Blur: each pixel of an image (B,3,S,S) becomes a mean of others. Lengths are in px of an image of 32 px."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sandglass.evaluate.corruptions._draws import Draws

SIZE = 32  # px, of which the parameters are


def gaussian_blur(x: Tensor, sigma: float, draws: Draws) -> Tensor:
    return smooth(x, sigma * x.shape[-1] / SIZE)


def defocus_blur(x: Tensor, level: tuple[float, float], draws: Draws) -> Tensor:
    """A point becomes a disc: (radius, sigma by which the disc's edge is softened)."""
    radius, soft = (length * x.shape[-1] / SIZE for length in level)
    reach = math.ceil(radius) + 2
    at = torch.arange(-reach, reach + 1, device=x.device)
    disc = (at[:, None] ** 2 + at**2 <= radius**2).to(x)[None, None]
    kernel = smooth(disc / disc.sum(), soft, reach=1 if radius <= 8 else 2)
    return F.conv2d(F.pad(x, [reach] * 4, "reflect"), kernel.expand(3, 1, -1, -1), groups=3)


def glass_blur(x: Tensor, level: tuple[float, int, int], draws: Draws) -> Tensor:
    """Each pixel shows a near one: (sigma of the blur before and after, px, times).

    The paper says that pixels are swapped; in the images that its authors published they are copied, as here.
    """
    scale, size = x.shape[-1] / SIZE, x.shape[-1]
    sigma, reach, times = level[0] * scale, max(1, round(level[1] * scale)), level[2]
    place = torch.arange(size * size, device=x.device).view(1, size, size)
    x = smooth(x, sigma)
    for _ in range(times):
        down, across = draws.whole(-reach, reach, 2, size, size).unbind(dim=1)  # never as far as +reach, as published
        near = place + size * down + across
        inner = slice(reach + 1, size - reach + 1)
        shown = place.repeat(len(x), 1, 1)
        shown[:, inner, inner] = near[:, inner, inner]
        x = x.flatten(2).gather(2, shown.flatten(1)[:, None].expand(-1, 3, -1)).view_as(x)
    return smooth(x, sigma)


def motion_blur(x: Tensor, level: tuple[float, float], draws: Draws) -> Tensor:
    """A trail at an angle of up to 45 degrees: (radius, sigma)."""
    return trail(x, level, draws.uniform(low=-45, high=45))


def zoom_blur(x: Tensor, furthest: float, draws: Draws) -> Tensor:
    """The mean of the image and of what a lens shows on its way to a zoom, in steps of 0.01."""
    steps = [1 + step / 100 for step in range(round((furthest - 1) * 100) + 1)]
    return torch.stack([x, *(zoomed(x, step) for step in steps)]).mean(dim=0)


def smooth(x: Tensor, sigma: float, reach: int | None = None) -> Tensor:
    """A Gaussian blur of (B,C,h,w), cut off at 4 sigma or `reach` px; beyond the edge it goes on as at the edge."""
    reach = int(4 * sigma + 0.5) if reach is None else reach
    if not reach or not sigma:
        return x
    at = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    weights = (-(at**2) / (2 * sigma**2)).exp()
    weights = (weights / weights.sum()).expand(x.shape[1], 1, -1)
    x = F.conv2d(F.pad(x, [0, 0, reach, reach], "replicate"), weights[..., None], groups=x.shape[1])
    return F.conv2d(F.pad(x, [reach, reach, 0, 0], "replicate"), weights[:, :, None], groups=x.shape[1])


def trail(x: Tensor, level: tuple[float, float], degrees: Tensor) -> Tensor:
    """Each pixel of (B,C,S,S) a mean along one direction (B,), weighted by half a Gaussian: (px at most, sigma)."""
    size = x.shape[-1]
    length, sigma = (value * size / SIZE for value in level)
    taps = range(min(2 * math.ceil(length) + 1, math.ceil(4 * sigma) + 1))
    weights = [math.exp(-(tap**2) / (2 * sigma**2)) for tap in taps]
    angle = torch.deg2rad(degrees)
    step = torch.stack([angle.cos(), angle.sin()], dim=-1)[:, None, None]
    at = (torch.arange(size, device=x.device, dtype=x.dtype) + 0.5) * 2 / size - 1
    grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=-1)
    seen = (
        w * F.grid_sample(x, grid + tap * step * 2 / size, padding_mode="border", align_corners=False)
        for tap, w in zip(taps, weights)
    )
    return sum(seen, torch.zeros_like(x)) / sum(weights)


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle of (B,C,S,S), enlarged to the whole."""
    if factor == 1:
        return x
    turn = torch.eye(2, 3, device=x.device, dtype=x.dtype) / factor
    grid = F.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
