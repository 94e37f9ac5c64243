"""How a distance along one axis of the grid may be asked for: as a number, a class, a class made a number, an angle.

d is a distance in cells, 0 .. side-1, or 1-side .. side-1 if signed; its bin k is d counted from the smallest.

    regression  |g - d / scale|
    ce          cross entropy of softmax(g) over the bins, against the bin of d
    cbr         (mu - k)^2 / s + 0.001 log s,  mu and s mean and variance of the bin under softmax(g), s + 1e-8
    circular    1 - cos(g, (cos, sin)(2 pi d / side))

The first three are those of the code that Liu et al. released with arXiv 2106.03746; cbr is the cycle-back regression
of Dwibedi et al., arXiv 1904.07846. `circular` is for experiments only: it makes the two ends of an axis neighbours,
which an image's are not.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor


class Distance(ABC):
    """One axis of `side` cells, asked in one form. `scale`, in cells, is the unit of the regression alone."""

    answers: int  # numbers the head gives for this axis
    binned = False

    def __init__(self, side: int, scale: float, signed: bool) -> None:
        self.side, self.scale = side, scale
        self.least = 1 - side if signed else 0
        places = torch.arange(side, dtype=torch.float64)
        apart = (places[:, None] - places).flatten()
        self.all = apart if signed else apart.abs()  # of every pair of places, (side^2,), each as likely

    @abstractmethod
    def loss(self, said: Tensor, apart: Tensor) -> Tensor:
        """What the head said (...,answers), and the distances in cells (...), int64 -> (...)."""

    @abstractmethod
    def error(self, said: Tensor, apart: Tensor) -> Tensor:
        """How far what was said is from the truth, in cells, at least 0: (...,answers) and (...) -> (...)."""

    @abstractmethod
    def chance(self) -> float:
        """The mean loss of the best answer that does not depend on the pair."""


class Regression(Distance):
    answers = 1

    def loss(self, said: Tensor, apart: Tensor) -> Tensor:
        return (said[..., 0] - apart / self.scale).abs()

    def error(self, said: Tensor, apart: Tensor) -> Tensor:
        return self.loss(said, apart) * self.scale

    def chance(self) -> float:
        """That of the median."""
        return float((self.all - self.all.median()).abs().mean()) / self.scale


class Binned(Distance):
    binned = True

    def __init__(self, side: int, scale: float, signed: bool) -> None:
        super().__init__(side, scale, signed)
        self.answers = side - self.least


class CrossEntropy(Binned):
    """The error is that of the likeliest bin."""

    def loss(self, said: Tensor, apart: Tensor) -> Tensor:
        return F.cross_entropy(said.movedim(-1, 1), apart - self.least, reduction="none")

    def error(self, said: Tensor, apart: Tensor) -> Tensor:
        return (said.argmax(dim=-1) + self.least - apart).abs().float()

    def chance(self) -> float:
        """The entropy of the distances."""
        share = (self.all - self.least).long().bincount().double() / len(self.all)
        return float(torch.special.entr(share).sum())


class CycleBack(Binned):
    """Slightly below 0 at best: 0.001 log s with s near 1e-8."""

    def loss(self, said: Tensor, apart: Tensor) -> Tensor:
        weights, bins, mean = self._softened(said)
        variance = (weights * (bins - mean[..., None]).square()).sum(dim=-1) + 1e-8
        return (mean - (apart - self.least)).square() / variance + 0.001 * variance.log()

    def error(self, said: Tensor, apart: Tensor) -> Tensor:
        return (self._softened(said)[2] + self.least - apart).abs()

    def chance(self) -> float:
        """Of answers of mean mu the widest is best: all at the two ends, s = mu (last - mu). The mu is searched."""
        last = float(self.answers - 1)
        truth, mean = self.all - self.least, torch.linspace(0, last, 100_001, dtype=torch.float64)
        squared = truth.var(correction=0) + (truth.mean() - mean).square()
        variance = mean * (last - mean) + 1e-8
        return float((squared / variance + 0.001 * variance.log()).min())

    def _softened(self, said: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights, bins = said.softmax(dim=-1), torch.arange(self.answers, device=said.device, dtype=said.dtype)
        return weights, bins, (weights * bins).sum(dim=-1)


class Circular(Distance):
    """The error is measured around the axis: `side` cells are once around."""

    answers = 2

    def loss(self, said: Tensor, apart: Tensor) -> Tensor:
        angle = 2 * math.pi * apart.to(said.dtype) / self.side
        return 1 - F.cosine_similarity(said, torch.stack([angle.cos(), angle.sin()], dim=-1), dim=-1)

    def error(self, said: Tensor, apart: Tensor) -> Tensor:
        turn = (torch.atan2(said[..., 1], said[..., 0]) / (2 * math.pi) - apart.to(said.dtype) / self.side) % 1
        return torch.minimum(turn, 1 - turn) * self.side

    def chance(self) -> float:
        """That of the mean direction, whose length is how much the directions agree."""
        angle = 2 * math.pi * self.all / self.side
        return 1 - math.hypot(float(angle.cos().mean()), float(angle.sin().mean()))


FORMS: dict[str, type[Distance]] = {
    "regression": Regression,
    "ce": CrossEntropy,
    "cbr": CycleBack,
    "circular": Circular,
}
