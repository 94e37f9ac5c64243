"""What cameras and files do to an image (B,3,S,S) in [0,1]."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sandglass.evaluate.corruptions._draws import Draws
from sandglass.evaluate.corruptions.blur import smooth


def contrast(x: Tensor, left: float, draws: Draws) -> Tensor:
    """Nearer to each colour's mean."""
    mean = x.mean(dim=(2, 3), keepdim=True)
    return (x - mean) * left + mean


def saturate(x: Tensor, level: tuple[float, float], draws: Draws) -> Tensor:
    """The saturation s of hue, saturation and value becomes a s + b: level (a, b). Grey has the hue of red."""
    value = x.amax(dim=1, keepdim=True)
    chroma = value - x.amin(dim=1, keepdim=True)
    grey = chroma == 0
    red = torch.tensor([0.0, 1.0, 1.0], device=x.device, dtype=x.dtype)[:, None, None]
    away = torch.where(grey, red, (value - x) / torch.where(grey, 1.0, chroma))
    saturation = (level[0] * chroma / value.clamp(min=1e-6) + level[1]).clamp(0, 1)
    return value * (1 - saturation * away)


def elastic_transform(x: Tensor, level: tuple[float, float, float], draws: Draws) -> Tensor:
    """Stretched as a whole and in small regions; in sides of the image: (length and sigma of the regional
    displacement, how far each of three points of an affine map moves)."""
    size = x.shape[-1]
    length, sigma, far = (part * size for part in level)
    middle, third = size // 2, size // 3
    corners = torch.tensor([[third, third], [third, -third], [-third, -third]], device=x.device) + float(middle)
    moved = corners + draws.uniform(3, 2, low=-far, high=far)
    ones = torch.ones_like(moved[..., :1])
    back = torch.linalg.solve(torch.cat([moved, ones], dim=2), corners.expand_as(moved))  # (B,3,2): from new to old
    at = torch.arange(size, device=x.device, dtype=x.dtype)
    grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=-1)
    x = _sampled(x, torch.einsum("hwc,bcd->bhwd", F.pad(grid, (0, 1), value=1.0), back))
    shift = smooth(draws.uniform(2, size, size, low=-1, high=1), sigma) * length
    return _sampled(x, grid + shift.permute(0, 2, 3, 1))


def _sampled(x: Tensor, grid: Tensor) -> Tensor:
    """(B,C,S,S) at px (B,S,S,2), across and down; beyond its edge it is reflected."""
    return F.grid_sample(x, grid * 2 / (x.shape[-1] - 1) - 1, padding_mode="reflection", align_corners=True)


def pixelate(x: Tensor, part: float, draws: Draws) -> Tensor:
    """Made smaller and large again, without interpolation."""
    size = x.shape[-1]

    def coarse(image: Image.Image) -> Image.Image:
        small = image.resize((int(size * part),) * 2, Image.Resampling.BOX)
        return small.resize((size, size), Image.Resampling.BOX)

    return _each(x, coarse)


def jpeg_compression(x: Tensor, quality: int, draws: Draws) -> Tensor:
    def compressed(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _each(x, compressed)


def _each(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """What needs Pillow: image by image, at 8 bits."""
    pixels = x.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    changed = np.stack([np.asarray(change(Image.fromarray(image))) for image in pixels])
    return torch.from_numpy(changed).to(x.device).permute(0, 3, 1, 2).to(x.dtype) / 255
