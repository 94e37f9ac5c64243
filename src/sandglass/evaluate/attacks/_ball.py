"""How far an attack may go: the images within epsilon of a clean one, in one of two norms and one of two spaces.

A change d of an image is measured as |d / unit|: its largest entry (l-inf), or its Euclidean length over all channels
and pixels (l-2). `unit` is 1 for epsilon in pixels, and for epsilon in what the network sees the standard deviations,
one for each channel, by which it divides its input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NORMS = ("linf", "l2")


@dataclass(frozen=True)
class Ball:
    """Around images (B,3,S,S) in [0,1]."""

    norm: str
    radius: float  # in units
    unit: Tensor  # to be broadcast over (B,3,S,S)
    clip: bool  # whether what leaves [0,1] is put back, as an image file would

    def steepest(self, slope: Tensor) -> Tensor:
        """The change of length 1 along which a loss with this gradient rises most; 0 where the gradient is."""
        if self.norm == "linf":
            return self.unit * slope.sign()
        return self.unit * _normal(slope * self.unit)

    def clipped(self, moved: Tensor) -> Tensor:
        return moved.clamp(0, 1) if self.clip else moved

    def inside(self, moved: Tensor, x: Tensor) -> Tensor:
        """`moved`, clipped and then drawn towards `x` into the ball around it: as `x` is in [0,1], so is the result."""
        moved, reach = self.clipped(moved), self.radius * self.unit
        if self.norm == "linf":
            return torch.minimum(torch.maximum(moved, x - reach), x + reach)
        change = (moved - x) / self.unit
        return x + change * (self.radius / _length(change).clamp(min=1e-30)).clamp(max=1) * self.unit

    def anywhere(self, x: Tensor, generators: list[torch.Generator]) -> Tensor:
        """A point of the ball around each of the images `x`, uniformly, from one generator for each."""
        if self.norm == "linf":
            draws = torch.stack([torch.rand(x.shape[1:], generator=g) for g in generators]).to(x.device)
            return self.clipped(x + self.radius * self.unit * (2 * draws - 1))
        directions = torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators]).to(x.device)
        depths = torch.stack([torch.rand(1, 1, 1, generator=g) for g in generators]).to(x.device)
        return self.clipped(x + self.radius * self.unit * _normal(directions) * depths ** (1 / x[0].numel()))


def _length(change: Tensor) -> Tensor:
    """(B,3,S,S) -> (B,1,1,1)."""
    return change.flatten(1).norm(dim=1)[:, None, None, None]


def _normal(change: Tensor) -> Tensor:
    """Of length 1, each image by itself; zeros stay zeros. In two steps: the squares of 1e-30 are 0 in float32."""
    change = change / change.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-37)
    return change / _length(change).clamp(min=1e-30)
