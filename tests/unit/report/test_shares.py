"""Curves over the share of labels hold what was judged, and stay away where there is a single share."""

from typing import Any

import pytest

from sandglass.report.collect import collect
from sandglass.report.experiments import experiments
from sandglass.report.shares import label_shares, share_curve


def add(study: Any, share: float | None, seed: int, top1: float, **columns: Any) -> None:
    rows = [{"metric": "top1", "value": top1, "split": "test", "n": 100}]
    own = {"data set": "d", "backbone": "b", "init": "scratch", "auxiliary": "none", "labels": share}
    study.add("finetune", "f", seed, own | columns, rows)


def stages(study: Any) -> dict[str, Any]:
    frame = collect(study.root, [f"{run['stage']}/{run['name']}" for run in study.runs])
    return {"finetune": experiments(frame, "finetune")}


def test_a_curve_has_the_seeds_that_have_every_share(empty_study: Any) -> None:
    for share, seed, top1 in ((1.0, 0, 0.9), (1.0, 1, 0.8), (0.1, 0, 0.5), (0.1, 1, 0.4), (0.1, 2, 0.3)):
        add(empty_study, share, seed, top1)
    curve = share_curve(stages(empty_study)["finetune"])
    assert curve is not None
    assert curve[0].tolist() == [0.1, 1.0] and curve[1].tolist() == [[0.5, 0.9], [0.4, 0.8]]


def test_one_line_for_each_init_with_its_n_and_one_chart_for_each_data_set(empty_study: Any) -> None:
    for data in ("d", "e"):
        for init, seeds in (("scratch", (0, 1)), ("pretrained", (0, 1, 2))):
            for share in (0.05, 0.5):
                for seed in seeds:
                    add(empty_study, share, seed, 0.5 + share / 3 + seed / 50, init=init, **{"data set": data})
    section = label_shares(stages(empty_study))
    assert [caption for caption, _ in section.charts] == ["d", "e"]
    for _, chart in section.charts:
        assert "scratch (n = 2)" in chart and "pretrained (n = 3)" in chart
        assert ">5<" in chart and ">50<" in chart and "share of the labels, %" in chart


@pytest.mark.parametrize("share", [0.1, None])
def test_nothing_is_drawn_of_a_single_share(empty_study: Any, share: float | None) -> None:
    for seed in (0, 1):
        add(empty_study, share, seed, 0.5)
    assert not label_shares(stages(empty_study))
