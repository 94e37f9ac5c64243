"""Intervals and tests against scipy, against exact fractions, and at the sizes where they must refuse to decide."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from sandglass.report.statistics import EXACT, compare, smallest_p, summarise, wilson


def test_summary_equals_scipy() -> None:
    values = [0.912, 0.934, 0.901, 0.927, 0.919]
    s = summarise(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (s.n, s.mean, s.deviation) == (5, pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert (s.low, s.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_summary_by_hand() -> None:
    s = summarise([1, 2, 3])  # deviation 1, t(0.975, 2) = 4.30265
    assert (s.mean, s.deviation) == (2, 1)
    assert s.high - s.mean == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)


def test_one_seed_has_no_spread() -> None:
    s = summarise([0.7])
    assert (s.n, s.mean) == (1, 0.7)
    assert math.isnan(s.deviation) and math.isnan(s.low) and math.isnan(s.high)


def by_fractions(a: list[Fraction], b: list[Fraction]) -> Fraction:
    """The definition, word for word, without rounding."""
    pooled, n = a + b, len(a)

    def gap(chosen: tuple[int, ...]) -> Fraction:
        inside = sum((pooled[i] for i in chosen), Fraction(0))
        return abs(inside / n - (sum(pooled) - inside) / (len(pooled) - n))

    all_gaps = [gap(chosen) for chosen in itertools.combinations(range(len(pooled)), n)]
    return Fraction(sum(g >= all_gaps[0] for g in all_gaps), len(all_gaps))


@pytest.mark.parametrize("n, m", [(1, 1), (1, 4), (3, 3), (3, 5), (4, 4)])
def test_unpaired_equals_the_definition(n: int, m: int) -> None:
    rng = np.random.default_rng(n + 10 * m)
    for _ in range(20):  # tenths, so that ties are common and rounding would show
        a = [Fraction(int(k), 10) for k in rng.integers(0, 6, n)]
        b = [Fraction(int(k), 10) for k in rng.integers(0, 6, m)]
        assert compare([float(x) for x in a], [float(x) for x in b]).p == pytest.approx(float(by_fractions(a, b)))


def test_tests_equal_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.4, 1, 6), rng.normal(0, 1, 6)

    def gap(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return x.mean(axis=axis) - y.mean(axis=axis)

    for paired, kind in ((False, "independent"), (True, "samples")):
        expected = stats.permutation_test((a, b), gap, permutation_type=kind, n_resamples=np.inf).pvalue
        assert compare(a, b, paired=paired).p == pytest.approx(expected)


def test_paired_by_hand() -> None:
    # Differences 1, 2, -1: of the 8 sums of +-1 +-2 +-1, |sum| >= 2 has 4, 2, 2, 0 and their mirrors: 6 of 8.
    assert compare([1, 2, 0], [0, 0, 1], paired=True).p == pytest.approx(6 / 8)


@pytest.mark.parametrize(
    "n, m, paired, p",
    [(3, 3, False, 0.1), (4, 4, False, 2 / 70), (5, 5, False, 2 / 252), (5, 5, True, 0.0625), (6, 6, True, 0.03125)],
)
def test_smallest_p_is_what_separated_data_reach(n: int, m: int, paired: bool, p: float) -> None:
    assert smallest_p(n, m, paired) == pytest.approx(p)
    apart = compare(100 + 2.0 ** np.arange(n), 2.0 ** np.arange(m), paired=paired)
    assert apart.p == pytest.approx(p)
    assert apart.can_decide == (p <= 0.05)


def test_unequal_sizes_have_no_mirror_image() -> None:
    assert compare([10, 11], [1, 2, 3]).p == pytest.approx(1 / 10) == smallest_p(2, 3)


def test_no_difference_is_p_one_and_a_swap_changes_only_the_sign() -> None:
    assert compare([0.8, 0.8], [0.8, 0.8]).p == 1
    there, back = compare([1, 2, 4], [2, 5, 3]), compare([2, 5, 3], [1, 2, 4])
    assert (there.p, there.difference) == (pytest.approx(back.p), pytest.approx(-back.difference))


@pytest.mark.parametrize("paired", [False, True])
def test_many_seeds_are_drawn_and_still_agree_with_the_t_test(paired: bool) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.35, 1, 40), rng.normal(0, 1, 40)
    assert smallest_p(40, 40, paired) < 1 / EXACT
    expected = (stats.ttest_rel if paired else stats.ttest_ind)(a, b).pvalue
    assert compare(a, b, paired=paired).p == pytest.approx(expected, abs=0.01)


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="equal lengths"):
        compare([1, 2], [1], paired=True)


@pytest.mark.parametrize("k, n", [(0, 10), (10, 10), (335, 360), (7000, 10000)])
def test_wilson_equals_scipy(k: int, n: int) -> None:
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == (pytest.approx(expected.low, abs=1e-12), pytest.approx(expected.high))
