"""The study of the thesis is complete: each of its 229 printed numbers is answered by a run of every seed, twice."""

from collections import Counter

import pytest

from sandglass.config import load
from sandglass.report import published
from sandglass.report.thesis import EPSILON, place, reading
from sandglass.study import plan

OPTIMISATIONS = {"thesis", "sound"}


@pytest.fixture(scope="module")
def params(repo):
    return load(repo / "params.yaml")


@pytest.fixture(scope="module")
def runs(params):
    return plan(params, "thesis_cifar")


def by_place(runs):
    """(data set, model, setting, optimisation) -> the finetunings there."""
    packed = {run.key: run.settings for run in runs if run.stage == "data"}
    found = {}
    for run in runs:
        if run.stage == "finetune":
            where = place(run.settings, packed[f"data/{run.need('data')}"])
            found.setdefault((*where, run.columns["optimisation"]), []).append(run)
    return found


def test_every_published_number_has_its_runs_and_no_run_answers_nothing(params, runs):
    trained, used = by_place(runs), set()
    attacks = {}
    for run in runs:
        if run.stage == "attack":
            attacks.setdefault(run.need("finetune"), []).append(run)
    rows = published.answers(params.studies["thesis_cifar"].published).to_dict("records")
    for row in rows:
        for optimisation in OPTIMISATIONS:
            some = trained[row["data set"], row["model"], row["setting"], optimisation]
            assert [run.seed for run in some] == params.studies["thesis_cifar"].seeds, row
            used |= {run.key for run in some}
            if row["metric"] == "robust_top1":
                for run in some:
                    readings = Counter(reading(attack.settings["attack"]) for attack in attacks[run.name])
                    assert readings.pop("") == 2, "PGD and the signs of masking"
                    assert sorted(readings.values()) == [1, 1, 1, 1], "two spaces of epsilon, clipped or not"
    assert len(rows) == 229
    assert used == {run.key for run in runs if run.stage == "finetune"}
    assert all(run.columns["data set"] == "cifar10" for some in attacks.values() for run in some)


def test_protocol_is_the_printed_one(runs):
    seen = Counter()
    for run in runs:
        if run.stage == "finetune" and run.columns["optimisation"] == "thesis":
            train = run.settings["train"]
            assert (train["epochs"], train["batch_size"]) == (100, 128)
            assert train["optimizer"] == "adam" and train["lr_per_256"] * 128 / 256 == pytest.approx(1e-4)
            assert train["weight_decay"] == 0 and train["schedule"] == "constant" and train["warmup_epochs"] == 0
            assert set(run.settings["views"]) == {"plain"} and run.settings["split"] == "trainval"
            for name, values in run.settings["auxiliary"].items():
                seen[name] += 1
                if name == "drloc":
                    assert values["share_pairs"] and values["reduction"] == "sum" and values["target_scale"] == "h"
                else:
                    assert values["target"] == "attached" and values["divide_by"] == "nominal"
        if run.stage == "finetune" and run.columns["optimisation"] == "sound":
            assert run.settings["split"] == "train", "the weight of a task is chosen by validation images"
            assert set(run.settings["views"]) == {"crop_flip"} and run.settings["train"]["schedule"] == "cosine"
            for name, values in run.settings["auxiliary"].items():
                assert name == "drloc" or values["target"] == "detached"
    assert set(seen) == {"drloc", "masked_embedding"}


def test_a_model_that_the_thesis_does_not_have_has_no_place(runs):
    run = next(run.settings for run in runs if run.stage == "finetune" and run.columns["auxiliary"] == "none")
    packed = {"data": "cifar10"}
    assert place(run, packed) == ("CIFAR-10", "ResNet", "cross-entropy")
    assert place(run | {"backbone": "resnet18"}, packed) is None
    assert place(run, {"data": "stl10"}) is None
    assert place(run, {"data": "mine", "format": "cifar10"}) is not None, "a part of CIFAR-10 under another name"
    assert place(run | {"auxiliary": {"jigsaw": {"weight": 0.1}}}, packed) is None
    assert place(run | {"init": "pretrained"}, packed) is None


def test_reading_names_what_the_thesis_may_have_meant():
    fgsm = {"epsilons": [0.0, EPSILON], "space": "pixel", "clip": False}
    assert reading({"fgsm": fgsm}) == "epsilon in pixel units, not clipped"
    assert (
        reading({"fgsm": fgsm | {"space": "normalised", "clip": True}})
        == "epsilon in normalised units, clipped to [0, 1]"
    )
    assert reading({"fgsm": fgsm | {"epsilons": [8.0]}}) == "" and reading({"pgd": fgsm}) == ""
