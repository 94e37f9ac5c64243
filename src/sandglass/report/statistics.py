"""What a handful of seeds can say: a mean with its interval, and exact tests that state their own limit.

The permutation tests ask how often a relabelling of the same numbers gives a difference in means at least as large as
the one observed, p = #{|d'| >= |d|} / #{d'} over all relabellings (Fisher 1935; Pitman 1937). With few seeds the
smallest p that can occur at all is large, so every comparison carries it. One accuracy over n images has Wilson's
interval (1927).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95  # of every interval
ALPHA = 0.05  # below this a difference is called decided
EXACT = 200_000  # relabellings that are still enumerated: 10 against 10 seeds, or 17 pairs; beyond it as many are drawn


@dataclass(frozen=True)
class Summary:
    """One quantity over seeds. `deviation` is the sample's (n - 1); it and the interval are nan for n = 1."""

    n: int
    mean: float
    deviation: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """`difference` = mean(a) - mean(b); `smallest` is the least p that any data of this size could give."""

    difference: float
    p: float
    smallest: float
    n: tuple[int, int]
    paired: bool

    @property
    def can_decide(self) -> bool:
        """False: whatever the numbers, this many seeds cannot make a difference significant."""
        return self.smallest <= ALPHA


def summarise(values: Sequence[float]) -> Summary:
    """Mean, sample deviation and Student's t interval of `values` (at least one)."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Summary(1, mean, math.nan, math.nan, math.nan)
    deviation = float(np.std(values, ddof=1))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * deviation / math.sqrt(n)
    return Summary(n, mean, deviation, mean - reach, mean + reach)


def compare(a: Sequence[float], b: Sequence[float], *, paired: bool = False) -> Comparison:
    """Two-sided permutation test of equal means.

    Unpaired: all ways to share the numbers out among groups of these sizes. Paired (a[i] belongs to b[i]): all ways to
    swap within pairs, which is the sign-flip test of the differences.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if paired and len(x) != len(y):
        raise ValueError(f"pairs need equal lengths, not {len(x)} and {len(y)}")
    observed = abs(x.mean() - y.mean())
    others = _sign_flips(x - y) if paired else _relabellings(x, y)
    ties = 1e-12 * np.abs([*x, *y]).max()  # equal up to rounding is equal
    p = float(np.mean(others >= observed - ties))
    return Comparison(float(x.mean() - y.mean()), p, smallest_p(len(x), len(y), paired), (len(x), len(y)), paired)


def _sign_flips(differences: np.ndarray) -> np.ndarray:
    """|mean| of the n `differences` under every choice of signs, or under EXACT drawn ones and the observed."""
    n = len(differences)
    if 2**n <= EXACT:
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1, 1], (EXACT, n))
        signs[0] = 1
    return np.abs(signs @ differences) / n


def _relabellings(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|difference in means| for every choice of which numbers are x, or for EXACT drawn ones and the observed."""
    n, m, pooled = len(x), len(y), np.concatenate([x, y])
    if math.comb(n + m, n) <= EXACT:
        chosen = np.array(list(itertools.combinations(range(n + m), n)))
    else:
        rng = np.random.default_rng(0)
        chosen = np.array([np.arange(n), *(rng.permutation(n + m)[:n] for _ in range(EXACT - 1))])
    sums = pooled[chosen].sum(axis=1)
    return np.abs(sums / n - (pooled.sum() - sums) / m)


def smallest_p(n: int, m: int, paired: bool = False) -> float:
    """The least two-sided p: the observed labelling, with its mirror image where sizes allow one, is most extreme."""
    if paired:
        return 2 / 2**n
    return (2 if n == m else 1) / math.comb(n + m, n)


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a proportion `successes` / n, as fractions."""
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return centre - reach, centre + reach
