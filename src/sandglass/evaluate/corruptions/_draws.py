"""Chance for a batch of images, each from a generator of its own, so that no image depends on its company."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Draws:
    def __init__(self, generators: list[torch.Generator], device: torch.device) -> None:
        self.generators, self.device = generators, device

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, (B, *shape)."""
        return self._each(lambda generator: torch.randn(shape, generator=generator))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return self._each(lambda generator: torch.rand(shape, generator=generator)) * (high - low) + low

    def whole(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers from `low` to below `high`."""
        return self._each(lambda generator: torch.randint(low, high, shape, generator=generator))

    def poisson(self, rates: Tensor) -> Tensor:
        """Of the shape of `rates`, (B, ...)."""
        own = zip(rates.cpu(), self.generators, strict=True)
        return torch.stack([torch.poisson(rate, generator=generator) for rate, generator in own]).to(self.device)

    def _each(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        return torch.stack([draw(generator) for generator in self.generators]).to(self.device)
