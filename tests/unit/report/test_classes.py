"""Counts of confusions against scikit-learn, accuracies of classes by hand."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from sandglass.errors import Problem
from sandglass.report.classes import by_class, confusions
from sandglass.report.collect import collect
from sandglass.report.experiments import Experiment, experiments

RNG = np.random.default_rng(0)


def add(study: Any, init: str, seed: int, true: np.ndarray, predicted: np.ndarray, **columns: Any) -> None:
    top1 = float(np.mean(true == predicted))
    rows = [{"metric": "top1", "value": top1, "split": "test", "n": len(true)}]
    own = {"data set": "d", "backbone": "b", "init": init, "auxiliary": "none", "labels": 1.0}
    key = study.add("finetune", "f", seed, own | columns, rows)
    np.savez(study.folder(key) / "predictions.npz", labels=true.astype(np.int16), predicted=predicted)


def judged(study: Any) -> list[Experiment]:
    frame = collect(study.root, [f"{run['stage']}/{run['name']}" for run in study.runs])
    return experiments(frame, "finetune")


def test_counts_are_those_of_scikit_learn(empty_study: Any) -> None:
    labels = np.arange(60) % 4  # class 4 has no image
    told = [RNG.integers(0, 5, 60) for _ in range(2)]
    for seed, predicted in enumerate(told):
        add(empty_study, "scratch", seed, labels, predicted)
    (one,) = judged(empty_study)
    found = confusions(one, empty_study.folder("finetune"), 5)
    for counts, predicted in zip(found, told, strict=True):
        assert counts.tolist() == confusion_matrix(labels, predicted, labels=range(5)).tolist()


def test_a_pair_at_the_largest_share_without_auxiliary_tasks(empty_study: Any) -> None:
    labels = np.repeat([0, 1], 50)
    right = {"pretrained": (45, 40), "scratch": (30, 25)}  # of class 0, by seed; class 1 is always right
    for init, counts in right.items():
        for seed, count in enumerate(counts):
            predicted = labels.copy()
            predicted[count:50] = 1
            add(empty_study, init, seed, labels, predicted)
            add(empty_study, init, seed, labels, labels, labels=0.1)
            add(empty_study, init, seed, labels, labels, auxiliary="drloc")
    section = by_class({"finetune": judged(empty_study)}, empty_study.root / "results", lambda data: ["owl", "elk"])
    (table,) = section.tables
    assert table.head == ["class", "test images", "pretrained, %", "95 % interval", "scratch, %", "95 % interval"]
    assert [row[:3] for row in table.rows] == [["owl", "50", "85.0 ± 7.1"], ["elk", "50", "100.0 ± 0.0"]]
    assert table.rows[0][4] == "55.0 ± 7.1"
    assert "50 test images alone leave" in table.notes[-1], "seeds do not know how few images a class has"
    assert len(section.charts) == 2 and "right, in %: owl 85, elk 100" in section.charts[0][1]
    assert "pretrained" in section.charts[0][0] and "scratch" in section.charts[1][0]


def test_many_classes_are_told_by_their_commonest_confusions(empty_study: Any) -> None:
    labels = np.repeat(np.arange(25), 4)
    predicted = labels.copy()
    predicted[8:11] = 7  # three of the four of class 2
    predicted[0] = 24
    add(empty_study, "scratch", 0, labels, predicted)
    names = [f"bird {k}" for k in range(25)]
    section = by_class({"finetune": judged(empty_study)}, empty_study.root / "results", lambda data: names)
    every, confused = section.tables
    assert not section.charts and every.rows[2][2:] == ["25.0", "4.6 – 69.9 *"]  # Wilson of 1 in 4
    assert confused.rows == [["bird 2", "bird 7", "1", "75.0"], ["bird 0", "bird 24", "1", "25.0"]]


def test_predictions_of_another_run_are_refused(empty_study: Any) -> None:
    add(empty_study, "scratch", 0, np.arange(10) % 2, np.arange(10) % 2)
    file = empty_study.folder(empty_study.keys("finetune")[0]) / "predictions.npz"
    np.savez(file, labels=np.zeros(10, np.int16), predicted=np.ones(10, np.int16))
    with pytest.raises(Problem) as problem:
        by_class({"finetune": judged(empty_study)}, empty_study.root / "results", lambda data: ["a", "b"])
    assert problem.value.id == "R-115" and str(file) in problem.value.what


def test_runs_that_kept_nothing_have_no_section(study: Any) -> None:
    assert not by_class({"finetune": judged(study)}, study.root / "results", lambda data: ["0"] * 10)
