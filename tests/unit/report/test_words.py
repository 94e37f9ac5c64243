"""Numbers in words, by hand."""

import pytest

from sandglass.report import words
from sandglass.report.statistics import compare, summarise


def test_percent() -> None:
    assert words.percent([0.93, 0.934, 0.929]) == "93.1 ± 0.3"
    assert words.percent([0.7125]) == "71.2"  # no spread is made up for one seed
    assert words.percent([-0.2, -0.1]) == "−15.0 ± 7.1"
    assert words.percent_n([0.93, 0.934, 0.929]) == "93.1 ± 0.3 % (n = 3)"


def test_interval() -> None:
    assert words.interval([0.5, 0.6, 0.7], 100) == "35.2 – 84.8"  # 4.30265 * 0.1 / sqrt(3)
    assert words.interval([0.9, 1.0], 100) == "31.5 – 100.0"  # an accuracy ends at 100
    assert words.interval([0.7], 10_000) == "69.1 – 70.9 *"
    assert words.interval([0.7], 0) == "–"


@pytest.mark.parametrize(
    "values, text",
    [
        ([892.1, 915.1, 870.0], "892 ± 23"),
        ([2.074, 2.1, 2.05], "2.075 ± 0.025"),
        ([0.7, 0.7, 0.7], "0.7 ± 0"),
        ([0.0, 0.0], "0 ± 0"),
        ([1.5e-9, 2.5e-9], "2e-09 ± 7.1e-10"),
        ([1234.5], "1234"),
    ],
)
def test_number(values: list[float], text: str) -> None:
    assert words.number(summarise(values)) == text


def test_signs_and_probabilities() -> None:
    assert [words.signed(x) for x in (0.219, -0.004, 0.0004, -0.0004)] == ["+21.9", "−0.4", "0.0", "0.0"]
    assert [words.probability(p) for p in (1.0, 0.1, 0.0625, 0.00794)] == ["1.00", "0.10", "0.06", "0.008"]


def test_verdicts_say_what_n_can_show() -> None:
    end = ": cannot be significant with n = 3, where no p is below 0.10"
    assert words.verdict(compare([3, 4, 5], [0, 1, 2])) == f"exact p = 0.10{end}"
    assert words.verdict(compare([0, 4, 5], [3, 1, 2])).endswith(end)
    assert "significant with n = 3 pairs, " in words.verdict(compare([3, 4, 5], [0, 1, 2], paired=True))
    assert "significant with n = 2 and 3, " in words.verdict(compare([3, 4], [0, 1, 2]))
    assert words.verdict(compare([5, 6, 7, 8, 9], [0, 1, 2, 3, 4])) == "exact p = 0.008"


def test_limits_are_told_once_for_each_size() -> None:
    few, many = compare([1, 2, 3], [0, 0, 0], paired=True), compare(range(1, 7), [0] * 6, paired=True)
    assert words.limits([]) == [] and len(words.limits([many])) == 1
    notes = words.limits([few, few, many])  # corrected: 3 * 0.03125, which is above 0.05, and 2 * 0.25
    assert len(notes) == 3 and "p ≤ 0.05 in none" in notes[0] and "3 comparisons" in notes[0]
    assert "A difference cannot be significant with n = 3 pairs, whatever its size: its p is 0.25 or more." in notes[1]
    assert notes[1].endswith("It takes n = 6.") and notes[2].endswith("It takes n = 7.")  # 3 * 2 / 2^7
    assert "Corrected for 3 comparisons, a difference cannot be significant with n = 6 pairs" in notes[2]
    assert words.limits([compare([1, 2, 3], [0, 0, 0])])[1].endswith("It takes n = 4.")


def test_what_can_decide_has_no_limit() -> None:
    sure = compare(range(1, 8), [0] * 7, paired=True)  # 2 / 2^7, twice still below 0.05
    assert words.limits([sure, sure]) == [
        "p: exact two-sided permutation test within pairs of one seed. "
        "After Holm's correction for 2 comparisons, p ≤ 0.05 in 2."
    ]


def test_test_size_is_wilsons() -> None:
    (note,) = words.test_size([0.5, 0.5], 10_000)  # 1.96 * 0.5 points
    assert "10,000 test images" in note and "± 1.0 points" in note
    assert words.test_size([], 100) == words.test_size([0.5], 0) == []


def test_numbers_stay_with_their_units() -> None:
    assert words.bound("93.1 ± 0.4 % (n = 3)") == "93.1\u00a0±\u00a00.4\u00a0% (n\u00a0=\u00a03)"
    assert words.bound("then = 3 or so") == "then =\u00a03 or so"
