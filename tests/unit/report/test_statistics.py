"""Intervals and tests against scipy, against exact fractions, and at the sizes where they must refuse to decide."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from sandglass.report.statistics import (
    EXACT,
    Discordance,
    bootstrap,
    compare,
    discordance,
    holm,
    over_seeds,
    smallest_p,
    summarise,
    wilson,
)


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


def both(first: str, second: str) -> Discordance:
    """From what two networks got right, image by image: '1101'."""
    return discordance(*(np.array([mark == "1" for mark in marks]) for marks in (first, second)))


def by_coins(first: int, second: int) -> Fraction:
    """All ways to toss a coin for every image on which the two disagree."""
    tosses = list(itertools.product((1, -1), repeat=first + second))
    return Fraction(sum(abs(sum(some)) >= abs(first - second) for some in tosses), len(tosses))


def test_mcnemar_by_hand_by_coins_and_by_scipy() -> None:
    found = both("1111100", "0001110")
    assert (found.n, found.first, found.second) == (7, 3, 1)
    assert found.p == pytest.approx(2 * (1 + 4) / 16)  # at most one of four tosses, twice
    for first, second in itertools.product(range(6), repeat=2):
        p = Discordance(100, first, second).p
        assert p == pytest.approx(float(by_coins(first, second)))
        if first + second:
            assert p == pytest.approx(stats.binomtest(first, first + second, 0.5).pvalue)


def test_mcnemar_at_its_ends() -> None:
    assert both("1010", "1010").p == 1  # they never disagree
    assert Discordance(10_000, 0, 5).p == pytest.approx(2 / 2**5)  # all one way: five images cannot decide
    assert Discordance(10_000, 0, 6).p == Discordance(10_000, 6, 0).p == pytest.approx(2 / 2**6)
    assert Discordance(50, 3, 9).p == Discordance(50_000, 3, 9).p  # where both are right tells nothing
    with pytest.raises(ValueError, match="same images"):
        both("101", "10")


def test_an_image_does_not_count_once_for_each_seed() -> None:
    pair = Discordance(1000, 30, 10)  # p = 0.002 by itself
    test = over_seeds([pair, pair, pair])
    assert (test.p, test.n, test.difference) == (0.25, (3, 3), pytest.approx(0.02))
    assert not test.can_decide and pair.p < 0.01


def test_seeds_that_disagree_decide_nothing_however_sure_each_is() -> None:
    pairs = [Discordance(1000, 90, 10), Discordance(1000, 10, 90), Discordance(1000, 80, 20), Discordance(1000, 20, 80)]
    assert all(pair.p < 1e-8 for pair in pairs) and over_seeds(pairs).p == 1
    assert over_seeds([Discordance(100, k + 3, 2) for k in range(6)]).p == pytest.approx(2 / 2**6)


def by_closing(ps: list[float]) -> list[float]:
    """Holm's method as a closed test: p of one is the worst Bonferroni of all sets that hold it (Marcus 1976)."""
    sets = [some for size in range(1, len(ps) + 1) for some in itertools.combinations(range(len(ps)), size)]
    worst = {some: min(1.0, len(some) * min(ps[k] for k in some)) for some in sets}
    return [max(value for some, value in worst.items() if k in some) for k in range(len(ps))]


def test_holm_by_hand_and_by_closing() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # 0.04 is lifted to 0.06
    rng = np.random.default_rng(0)
    for m in range(1, 8):
        ps = list(rng.choice([0.001, 0.01, 0.02, 0.03, 0.2, 0.5], m))  # with ties
        assert holm(ps) == pytest.approx(by_closing(ps))


def test_holm_at_its_ends() -> None:
    assert holm([]) == [] and holm([0.03]) == [0.03] and holm([0.6, 0.7]) == [1.0, 1.0]
    ps = list(np.random.default_rng(1).uniform(0, 0.3, 20))
    corrected = holm(ps)
    assert [x for _, x in sorted(zip(ps, corrected))] == sorted(corrected)
    assert all(p <= mine <= 1 for p, mine in zip(ps, corrected))


def mean(means: np.ndarray) -> np.ndarray:
    return means[:, 0]


def ratio(means: np.ndarray) -> np.ndarray:
    return means[:, 1] / means[:, 0]


def test_bootstrap_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    skewed = rng.exponential(1, (60, 1))
    clean = rng.random(400) < 0.8
    images = np.stack([clean, clean & (rng.random(400) < 0.6)], axis=1)

    def kept(c: np.ndarray, r: np.ndarray, axis: int) -> np.ndarray:
        return r.mean(axis=axis) / c.mean(axis=axis)

    of_scipy = (
        stats.bootstrap((skewed[:, 0],), np.mean, method="BCa", n_resamples=20_000, rng=1),
        stats.bootstrap(
            tuple(images.T.astype(float)), kept, method="BCa", n_resamples=20_000, paired=True, vectorized=True, rng=1
        ),
    )
    for mine, theirs in zip((bootstrap(skewed, mean), bootstrap(images, ratio)), of_scipy):
        error = 0.1 * theirs.standard_error  # of a quantile at 2.5 % from 10,000 draws: 0.03 deviations
        assert mine == pytest.approx(tuple(theirs.confidence_interval), abs=float(error))


def test_bootstrap_covers_a_share_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        low, high = bootstrap(rng.random((200, 1)) < 0.7, mean)
        held += low <= 0.7 <= high
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / 400) <= held / 400 <= 0.95 + 3 * math.sqrt(0.95 * 0.05 / 400)


def test_bootstrap_of_three_seeds_is_too_short_and_students_is_not() -> None:
    rng = np.random.default_rng(0)
    held = np.zeros(2)
    for _ in range(400):
        seeds = rng.normal(0, 1, (3, 1))
        s = summarise(list(seeds[:, 0]))
        low, high = bootstrap(seeds, mean)
        assert seeds.min() - 1e-12 <= low <= high <= seeds.max() + 1e-12
        held += (low <= 0 <= high, s.low <= 0 <= s.high)
    assert held[0] / 400 < 0.8 and held[1] / 400 > 0.9


def test_bootstrap_at_its_ends() -> None:
    assert all(map(math.isnan, bootstrap(np.array([[0.7]]), mean)))
    assert bootstrap(np.full((5, 1), 0.7), mean) == (pytest.approx(0.7), pytest.approx(0.7))
    rare = np.zeros((8, 2))
    rare[0] = 1  # in a third of the draws nothing is right, and there is no retention
    assert bootstrap(rare, ratio) == (1, 1)
    shares = np.random.default_rng(0).random((50, 1)) < 0.5
    assert bootstrap(shares, mean) == bootstrap(shares, mean)
    flipped = bootstrap(~shares, mean)
    assert bootstrap(shares, mean) == (
        pytest.approx(1 - flipped[1], abs=0.011),
        pytest.approx(1 - flipped[0], abs=0.011),
    )
