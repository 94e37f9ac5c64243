"""Weather: something lies between the lens and what an image (B,3,S,S) in [0,1] shows, or the light is another.

The published frost is cut from five photographs. Here it is drawn: feathers of ice along the ridges of a fractal
height, pale blue, as bright on average; the numbers of frost are therefore not those of the published set.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from sandglass.evaluate.corruptions._draws import Draws
from sandglass.evaluate.corruptions.blur import SIZE, smooth, trail, zoomed

ICE = (0.62, 0.70, 0.78)  # red, green, blue of frost at its thickest
WATER = (175 / 255, 238 / 255, 238 / 255)
MUD = (63 / 255, 42 / 255, 20 / 255)
GREY = (0.299, 0.587, 0.114)  # the part of each colour in brightness


def snow(x: Tensor, level: tuple[float, ...], draws: Draws) -> Tensor:
    """Flakes that fall, on a whitened scene: (mean, deviation, size and threshold of flakes, radius and sigma of
    their fall, how much of the scene is left as it was)."""
    mean, deviation, size, threshold, radius, sigma, left = level
    flakes = zoomed(mean + deviation * draws.normal(1, *x.shape[2:]), size)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    flakes = trail(flakes, (radius, sigma), draws.uniform(low=-135, high=-45))
    grey = (x * _colour(GREY, x)).sum(dim=1, keepdim=True)
    x = left * x + (1 - left) * torch.maximum(x, 1.5 * grey + 0.5)
    return x + flakes + flakes.rot90(2, (2, 3))


def frost(x: Tensor, level: tuple[float, float], draws: Draws) -> Tensor:
    """(part of the scene, part of the frost)."""
    height = _plasma(x.shape[-1], 2.0, draws)
    ridges = (1 - (2 * height - 1).abs() * 2).clamp(0, 1) ** 2
    ice = 0.4 + 0.6 * torch.maximum(ridges, _plasma(x.shape[-1], 1.5, draws) ** 2)
    return level[0] * x + level[1] * ice * _colour(ICE, x)


def fog(x: Tensor, level: tuple[float, float], draws: Draws) -> Tensor:
    """A fractal veil, and less contrast: (thickness, by how much finer parts of the veil are fainter)."""
    thickness, decay = level
    brightest = x.amax(dim=(1, 2, 3), keepdim=True)
    return (x + thickness * _plasma(x.shape[-1], decay, draws)) * brightest / (brightest + thickness)


def brightness(x: Tensor, more: float, draws: Draws) -> Tensor:
    """The value of hue, saturation and value is raised: colours grow in proportion, black becomes grey."""
    value = x.amax(dim=1, keepdim=True)
    raised = (value + more).clamp(max=1)
    return torch.where(value > 0, x * raised / value.clamp(min=1e-6), raised)


def spatter(x: Tensor, level: tuple[float, float, float, float, float, str], draws: Draws) -> Tensor:
    """Drops on the lens: (mean, deviation, sigma and threshold of a height that makes drops, how opaque, of what)."""
    mean, deviation, sigma, threshold, opaque, liquid = level
    scale = x.shape[-1] / SIZE
    height = smooth(mean + deviation * draws.normal(1, *x.shape[2:]), sigma * scale)
    if liquid == "mud":
        cover = smooth((height > threshold).to(x), opaque * scale)
        cover = torch.where(cover < 0.8, 0.0, cover)
        return x * (1 - cover) + cover * _colour(MUD, x)
    drops = torch.where(height < threshold, 0.0, height)
    light = torch.stack([torch.from_numpy(_relief(drop[0].cpu().numpy())) for drop in drops]).to(x)[:, None]
    cover = drops * light
    return x + opaque * cover / cover.amax(dim=(2, 3), keepdim=True).clamp(min=1e-6) * _colour(WATER, x)


def _relief(drop: np.ndarray) -> np.ndarray:
    """How much light a drop's slope throws: (S,S), from the distance to the outline, embossed from the upper left."""
    inside = drop > 0
    outline = inside ^ ndimage.binary_erosion(inside)
    if not outline.any():
        return np.zeros_like(drop)
    distance = ndimage.uniform_filter(np.minimum(ndimage.distance_transform_edt(~outline), 20), 3).round()
    below = np.searchsorted(np.sort(distance, axis=None), distance, side="right")  # equalised: ranks, from 0 to 255
    least = below.min()
    even = 255 * (below - least) / max(below.max() - least, 1)
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    return ndimage.uniform_filter(ndimage.correlate(even, emboss, mode="mirror").clip(0, 255), 3)


def _plasma(size: int, decay: float, draws: Draws) -> Tensor:
    """A fractal height (B,1,size,size) from 0 to 1, by squares and diamonds: each new point is the mean of its four
    neighbours and a chance whose reach falls by decay^2 when their distance halves. It repeats itself at its edges."""
    full = 2 ** (size - 1).bit_length()
    chance = draws.uniform(full, full, low=-1, high=1)
    height, step, reach = torch.zeros_like(chance), full, 1.0
    while step > 1:
        half = step // 2
        corners = height[:, ::step, ::step]
        right, below = corners.roll(-1, 2), corners.roll(-1, 1)
        middles = (corners + right + below + below.roll(-1, 2)) / 4 + reach * chance[:, half::step, half::step]
        height[:, half::step, half::step] = middles
        across = (corners + right + middles + middles.roll(1, 1)) / 4
        height[:, ::step, half::step] = across + reach * chance[:, ::step, half::step]
        down = (corners + below + middles + middles.roll(1, 2)) / 4
        height[:, half::step, ::step] = down + reach * chance[:, half::step, ::step]
        step, reach = half, reach / decay**2
    height = height - height.amin(dim=(1, 2), keepdim=True)
    height = height / height.amax(dim=(1, 2), keepdim=True).clamp(min=1e-6)
    return height[:, None, :size, :size]


def _colour(rgb: tuple[float, float, float], x: Tensor) -> Tensor:
    return torch.tensor(rgb, device=x.device, dtype=x.dtype)[:, None, None]
