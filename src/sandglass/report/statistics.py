"""What a handful of seeds can say: a mean with its interval, and exact tests that state their own limit.

The permutation tests ask how often a relabelling of the same numbers gives a difference in means at least as large as
the one observed, p = #{|d'| >= |d|} / #{d'} over all relabellings (Fisher 1935; Pitman 1937). With few seeds the
smallest p that can occur at all is large, so every comparison carries it. Several p of one table are corrected by
Holm's steps (1979).

Two numbers of one network each are of its images: Wilson's interval (1927), Efron's bootstrap (BCa, 1987), McNemar's
exact test (1947). They say what these networks would do on other images, and nothing about other seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95  # of every interval
ALPHA = 0.05  # below this a difference is called decided
DRAWS = 10_000  # of a bootstrap
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


@dataclass(frozen=True)
class Discordance:
    """Two networks on the same `n` images: how many images only the first got right, and how many only the second."""

    n: int
    first: int
    second: int

    @property
    def p(self) -> float:
        """McNemar's exact test, two-sided: are the images on which they disagree shared out as by a fair coin?

        It conditions on these two networks and on the number of images on which they disagree.
        """
        return min(1.0, 2 * float(stats.binom.cdf(min(self.first, self.second), self.first + self.second, 0.5)))


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


def discordance(first: np.ndarray, second: np.ndarray) -> Discordance:
    """From what each network got right: two bool (N,), image by image."""
    if first.shape != second.shape:
        raise ValueError(f"not the same images: {len(first)} and {len(second)}")
    return Discordance(len(first), int((first & ~second).sum()), int((second & ~first).sum()))


def over_seeds(pairs: Sequence[Discordance]) -> Comparison:
    """McNemar's question of several pairs of networks, a pair for each seed, with the seed as the unit.

    The names of the two networks of a pair are swapped for all images together; what each network got right, and so
    every count, stays as it is. To throw all counts into one binomial instead would count an image once for every seed
    and call the luck of a seed a property of the method.
    """
    return compare([pair.first / pair.n for pair in pairs], [pair.second / pair.n for pair in pairs], paired=True)


def holm(ps: Sequence[float]) -> list[float]:
    """The p of one family, each corrected for the others: the k-th smallest of m by m - k + 1, never below the one
    before. With all corrected p <= alpha called decided, one false decision or more has at most probability alpha."""
    corrected, least = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = least
    return corrected


def bootstrap(units: np.ndarray, of: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> tuple[float, float]:
    """BCa interval of a function of means, such as the ratio of two accuracies.

    `units` (n, k) are what is independent, a row each: the images of one network, or seeds. `of` takes the k means of
    every draw, (D, k) -> (D,); draws of which it makes nan are left out. Of three seeds the interval is much too short,
    as three numbers do not tell their spread: `summarise` is for those. nan for n = 1.
    """
    n = len(units)
    if n == 1:
        return math.nan, math.nan
    rows, counts = np.unique(units.astype(np.float64), axis=0, return_counts=True)  # n draws of rows: a multinomial
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = of(np.random.default_rng(seed).multinomial(n, counts / n, DRAWS) @ rows / n)
    drawn = drawn[np.isfinite(drawn)]
    total = counts @ rows
    estimate = of(total[None] / n)[0]
    if not len(drawn) or drawn.min() == drawn.max():
        return float(estimate), float(estimate)
    without = of((total - rows) / (n - 1))  # the jackknife: each kind of row left out once
    lean = counts @ without / n - without
    spread = float(counts @ lean**2)
    skew = float(counts @ lean**3) / (6 * spread**1.5) if spread > 0 else 0.0
    below = float(np.mean(drawn < estimate) + np.mean(drawn == estimate) / 2)
    shift = stats.norm.ppf(np.clip(below, 1 / DRAWS, 1 - 1 / DRAWS))
    z = shift + stats.norm.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = np.quantile(drawn, stats.norm.cdf(shift + z / (1 - skew * z)))
    return float(low), float(high)
