"""Ratios of times that were measured in turns, and when not to believe them.

A ratio is formed within each round, where both sides met the same neighbours, and told as its median with the least
and the largest. If these differ by more than a quarter of the median, the machine was measured and not the program:
there is no number then, and no verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

DISAGREE = 0.25  # of the median


@dataclass(frozen=True)
class Ratio:
    """One value per round."""

    rounds: tuple[float, ...]

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float]) -> Ratio:
        """above / below, round by round."""
        return cls(tuple(a / b for a, b in zip(above, below, strict=True)))

    @property
    def spread(self) -> float:
        """(largest - least) / median."""
        return (max(self.rounds) - min(self.rounds)) / median(self.rounds)

    @property
    def agrees(self) -> bool:
        return self.spread <= DISAGREE

    @property
    def value(self) -> float | None:
        """The median, unless the rounds disagree."""
        return median(self.rounds) if self.agrees else None

    def __str__(self) -> str:
        if self.value is None:
            return f"rounds differ by {self.spread:.0%}"
        return f"{self.value:.2f} ({min(self.rounds):.2f}-{max(self.rounds):.2f})"


@dataclass(frozen=True)
class Target:
    """What a ratio should be at least, but for `slack` of it.

    `bound` is the most that it could be here, and `bound_is` what was measured for that. Where even this is too small,
    the target is out of reach: the machine's doing, and not ours.
    """

    what: str
    ratio: Ratio
    least: float
    bound: Ratio | None = None
    bound_is: str = ""
    slack: float = 1.0

    @property
    def verdict(self) -> str:
        """met, missed, out of reach, or not judged."""
        if self.ratio.value is None:
            return "not judged"
        if self.ratio.value >= self.slack * self.least:
            return "met"
        out_of_reach = self.bound and self.bound.value is not None and self.bound.value < self.least
        return "out of reach" if out_of_reach else "missed"

    def __str__(self) -> str:
        text = f"{self.verdict}: {self.what} {self.ratio}, at least {self.slack * self.least:g}"
        return text + (f"; {self.bound_is} alone: {self.bound}" if self.verdict == "out of reach" else "")
