"""Seeds are grouped, told apart and compared only with what differs in nothing else."""

from typing import Any

import pytest

from sandglass.report.collect import collect
from sandglass.report.experiments import (
    Experiment,
    against,
    common,
    compared,
    experiments,
    label,
    panels,
    strength,
    telling,
)
from sandglass.report.finding import finding


def keys(study: Any) -> list[str]:
    return [f"{run['stage']}/{run['name']}" for run in study.runs]


@pytest.fixture
def demo(study: Any) -> dict[str, list[Experiment]]:
    frame = collect(study.root, keys(study))
    return {stage: experiments(frame, stage) for stage in ("pretrain", "probe", "finetune", "attack")}


def test_counts_and_values(demo: dict[str, list[Experiment]]) -> None:
    assert {stage: len(some) for stage, some in demo.items()} == {"pretrain": 1, "probe": 4, "finetune": 8, "attack": 8}
    for one in demo["finetune"]:
        assert list(one.values("top1").index) == [0, 1, 2] and one.images("top1") == 360
    one = demo["attack"][0]
    assert one.epsilons()[:3] == [0, 0.25, 0.5] and strength(demo["attack"]) == 1.0
    assert list(one.values("robust_top1", 0.0)) == list(one.values("clean_top1", 8.0))
    assert len(one.values("robust_top1", 3.0)) == 0 and one.seed == 0 and len(one.runs) == 3


def test_validation_and_missing_numbers_are_not_results(empty_study: Any) -> None:
    for seed, split, value in ((0, "val", 0.9), (0, "test", 0.8), (1, "test", None)):
        rows = [{"metric": "top1", "value": value, "split": split, "n": 5 if split == "val" else 10}]
        empty_study.add("probe", "p", seed, {"data set": "d", "probe": "knn"}, rows)
    (one,) = experiments(collect(empty_study.root, keys(empty_study)), "probe")
    assert one.values("top1").to_dict() == {0: 0.8}
    assert one.images("top1") == 10  # of the test split
    ((about, text),) = finding({"probe": [one]})  # an accuracy, and nothing to set beside it
    assert about == "No comparison" and text.startswith("1 setting judged")


def test_only_the_columns_that_tell_are_told(demo: dict[str, list[Experiment]]) -> None:
    assert telling(demo["probe"]) == ["probe", "init"]  # objective and views follow from init
    assert telling(demo["finetune"]) == ["init", "auxiliary"]
    assert telling(demo["pretrain"]) == []
    assert common(demo["probe"], ["probe", "init"]) == (
        "data set digits, backbone hourglass_tiny, objective byol, views simclr"
    )
    assert label(demo["finetune"][3], ["label fraction", "auxiliary"]) == "10 %, drloc + masked_embedding"


def test_panels(demo: dict[str, list[Experiment]]) -> None:
    found = [(panel, [name for name, _ in lines]) for panel, lines in panels(demo["finetune"], ("auxiliary",))]
    tasks = ["none", "drloc", "masked_embedding", "drloc + masked_embedding"]
    assert found == [("scratch", tasks), ("pretrained", tasks)]


def test_comparisons_differ_in_one_thing(demo: dict[str, list[Experiment]]) -> None:
    pairs = against(demo["finetune"], "auxiliary", "none")
    assert len(pairs) == 6 and all(one.ids["init"] == base.ids["init"] for one, base in pairs.items())
    pairs = against(demo["finetune"], "init", "scratch")
    assert len(pairs) == 4 and all(one.ids["auxiliary"] == base.ids["auxiliary"] for one, base in pairs.items())
    pairs = against(demo["probe"], "init", "random")
    assert sorted(one.ids["probe"] for one in pairs) == ["knn", "linear"]


def sweep(study: Any, weights: tuple[float, ...], plain: tuple[float, ...]) -> list[Experiment]:
    """Finetuned with a task at these weights and at plain learning rates without; accuracy 0.5 + weight."""
    columns = {"data set": "d", "backbone": "b", "init": "scratch", "labels": 1.0}
    for seed in (0, 1):
        for weight in weights:
            settings = {"auxiliary": {"drloc": {"weight": weight}}, "train": {"lr": 1.0}}
            rows = [{"metric": "top1", "value": 0.5 + weight + 0.01 * seed, "split": "test"}]
            study.add("finetune", "m", seed, columns | {"auxiliary": "drloc"}, rows, settings=settings)
        for lr in plain:
            rows = [{"metric": "top1", "value": 0.5 + 0.01 * seed, "split": "test"}]
            study.add("finetune", "m", seed, columns | {"auxiliary": "none"}, rows, settings={"train": {"lr": lr}})
    return experiments(collect(study.root, keys(study)), "finetune")


def test_a_sweep_of_the_task_is_compared_to_the_one_run_without(empty_study: Any) -> None:
    some = sweep(empty_study, (0.1, 0.2), (1.0,))
    found = {}
    for one, base in against(some, "auxiliary", "none").items():
        test = compared(one, base, "top1", paired=True)
        found[one.ids["setting"]] = test and round(test.difference, 9)
    assert found == {"drloc weight 0.1": 0.1, "drloc weight 0.2": 0.2}


def test_an_ambiguous_base_is_no_base(empty_study: Any) -> None:
    assert against(sweep(empty_study, (0.1,), (1.0, 2.0)), "auxiliary", "none") == {}


def test_pairs_are_of_seeds_that_both_have(empty_study: Any) -> None:
    columns = {"data set": "d", "backbone": "b", "init": "scratch", "labels": 1.0}
    for task, values in (("drloc", {0: 0.9, 1: 0.7, 5: 0.1}), ("none", {1: 0.6, 0: 0.5})):
        for seed, value in values.items():
            rows = [{"metric": "top1", "value": value, "split": "test"}]
            empty_study.add("finetune", "m", seed, columns | {"auxiliary": task}, rows)
    some = experiments(collect(empty_study.root, keys(empty_study)), "finetune")
    ((one, base),) = against(some, "auxiliary", "none").items()
    test = compared(one, base, "top1", paired=True)
    assert test and test.n == (2, 2) and test.difference == pytest.approx((0.4 + 0.1) / 2)
    assert compared(one, base, "top5", paired=True) is None
