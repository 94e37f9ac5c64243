"""The arithmetic of ratios, and when there is none."""

import pytest

from sandglass.bench.commands import judge
from sandglass.bench.ratios import Ratio, Target


def test_a_ratio_is_formed_within_rounds() -> None:
    """A neighbour that slows the second round by ten slows both sides: the ratio does not see it."""
    ratio = Ratio.of([2.0, 20.0, 2.2], [4.0, 40.0, 4.0])
    assert ratio.rounds == pytest.approx((0.5, 0.5, 0.55))
    assert ratio.value == pytest.approx(0.5) and str(ratio) == "0.50 (0.50-0.55)"


def test_rounds_that_differ_by_more_than_a_quarter_give_no_number() -> None:
    """Spread is (largest - least) / median: 0.25 is let pass, a little more is not."""
    assert Ratio((0.75, 1.0, 1.0)).value == 1.0
    disputed = Ratio((0.74, 1.0, 1.0))
    assert disputed.value is None and "0.74" not in str(disputed) and str(disputed) == "rounds differ by 26%"


@pytest.mark.parametrize(
    ("values", "verdict", "code"), [((0.9, 0.9), "met", 0), ((0.7, 0.7), "missed", 1), ((0.5, 1.5), "not judged", 75)]
)
def test_verdicts(values: tuple[float, ...], verdict: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    target = Target("fraction", Ratio(values), 0.8)
    assert target.verdict == verdict
    assert judge([target]) == code and capsys.readouterr().out.startswith(verdict)


def test_what_a_free_input_would_miss_too_is_out_of_reach_and_no_failure() -> None:
    """Lightly takes 2.5, our step alone 1.0: no input makes it three times as fast, while 2.2 is for ours to mend."""
    ours, most = Ratio.of([2.5, 2.5], [1.1, 1.1]), Ratio.of([2.5, 2.5], [1.0, 1.0])
    beyond, within = (Target("speed", ours, least, most, "views in memory") for least in (3.0, 2.4))
    assert beyond.verdict == "out of reach" and judge([beyond]) == 0
    assert within.verdict == "missed" and judge([within]) == judge([beyond, within]) == 1
    assert str(beyond).endswith("at least 3; views in memory alone: 2.50 (2.50-2.50)")
    assert Target("speed", ours, 3.0, Ratio((2.0, 3.5))).verdict == "missed", "a disputed limit excuses nothing"


def test_a_miss_outweighs_what_cannot_be_judged_and_slack_eases() -> None:
    missed, disputed = Target("a", Ratio((0.7,)), 0.8), Target("b", Ratio((0.5, 1.5)), 0.8)
    assert judge([disputed, missed]) == 1
    assert judge([missed], slack=0.8) == 0
