"""The plan is a pure function of the settings; a run's name is what it computes."""

import subprocess
import sys
from pathlib import Path

import pytest

from sandglass.config import load
from sandglass.errors import Problem
from sandglass.study import plan

BASE = """\
study: tiny
studies:
  tiny:
    data: digits
    size: 32
    backbone: toy
    seeds: [0, 1]
    pretrain: {objective: byol, epochs: 2}
    probe: {probe: [knn, linear], init: [pretrained, random]}
    finetune: {init: [scratch, pretrained], auxiliary: [none, drloc], epochs: 3}
    attack: {attack: fgsm}
"""


@pytest.fixture
def planned(tmp_path):
    def make(text: str = BASE, study: str | None = None):
        file = tmp_path / "params.yaml"
        file.write_text(text)
        return plan(load(file), study)

    return make


def names(runs, stage=None):
    return {run.name for run in runs if stage in (None, run.stage)}


def test_counts_and_order(planned):
    runs = planned()
    counts = {stage: len(names(runs, stage)) for stage in ("data", "pretrain", "probe", "finetune", "attack", "report")}
    assert counts == {"data": 1, "pretrain": 2, "probe": 8, "finetune": 8, "attack": 8, "report": 1}
    seen = set()
    for run in runs:
        assert set(run.needs) <= seen, f"{run.key} comes before what it needs"
        seen.add(run.key)


def test_a_probe_can_be_asked_with_several_shares_of_the_labels(planned):
    runs = planned(
        BASE.replace("probe: {probe: [knn, linear]", "probe: {labels: [0.01, 0.1, 1.0], probe: [knn, linear]")
    )
    probes = [run for run in runs if run.stage == "probe"]
    assert len(names(probes)) == 24 and all(run.settings["labels"] == run.columns["labels"] for run in probes)
    assert {run.name for run in probes if run.columns["labels"] == 1.0} == names(planned(), "probe")


def test_same_settings_same_names(planned):
    assert planned() == planned()


def test_a_value_renames_only_what_it_touches(planned):
    before, after = planned(), planned(BASE.replace("epochs: 3", "epochs: 4"))
    for stage in ("data", "pretrain", "probe"):
        assert names(before, stage) == names(after, stage)
    for stage in ("finetune", "attack", "report"):
        assert not names(before, stage) & names(after, stage)


def test_a_pretraining_value_reaches_all_below_but_not_random_or_scratch(planned):
    before, after = planned(), planned(BASE.replace("epochs: 2", "epochs: 5"))
    kept = names(before) & names(after)
    for run in before:
        independent = run.stage == "data" or run.columns.get("init") in ("random", "scratch")
        assert (run.name in kept) == (independent and run.stage not in ("pretrain", "report"))


def test_values_that_do_not_change_a_result_are_not_in_the_name(planned):
    engine = "engine: {device: cpu, checkpoint_minutes: 1, log_every_steps: 3}\n"
    assert names(planned()) == names(planned(engine + BASE))


def test_an_added_seed_adds_runs_and_renames_none_but_the_report(planned):
    before, after = planned(), planned(BASE.replace("[0, 1]", "[0, 1, 2]"))
    assert {n for n in names(before) if not n.startswith("tiny-")} <= names(after)


def test_idea_settings_reach_only_runs_that_use_them(planned):
    before, after = planned(), planned(BASE + "auxiliary: {drloc: {weight: 0.3}}\n")
    for run in before:
        uses = run.stage == "report" or "drloc" in str(run.columns.get("auxiliary", ""))
        assert (run.name in names(after)) != uses


def test_lists_sweep_and_a_native_list_does_not(planned):
    swept = planned(BASE + "    auxiliary: {drloc: {weight: [0.1, 0.2, 0.3]}}\n")
    assert len(names(swept, "finetune")) == 4 + 3 * 4
    grid = planned(BASE + "    attacks: {fgsm: {epsilons: [0.0, 1.0]}}\n")
    assert len(names(grid, "attack")) == 8


def test_exclusions_take_what_depends_on_them(planned):
    runs = planned(BASE + "    exclude: [{stage: finetune, init: scratch}, {stage: probe, probe: knn}]\n")
    assert {run.columns["init"] for run in runs if run.stage in ("finetune", "attack")} == {"pretrained"}
    assert {run.columns["probe"] for run in runs if run.stage == "probe"} == {"linear"}


def test_runs_are_shared_between_studies(planned):
    text = BASE + BASE[BASE.index("  tiny:") :].replace("  tiny:", "  other:").replace("seeds: [0, 1]", "seeds: [1]")
    assert names(planned(text, "other")) - names(planned(text, "tiny")) == {planned(text, "other")[-1].name}


def test_unknown_study_is_named(planned):
    with pytest.raises(Problem, match="unknown study"):
        planned(BASE, "tinny")


def test_stem_experiment_is_a_study(planned):
    text = """\
study: stem
studies:
  stem:
    data: digits
    size: 32
    backbone: hourglass_tiny_r
    seeds: [0]
    pretrain: {objective: [byol, supervised], backbone: resnet_toy, epochs: 1}
    finetune: {init: [scratch, stem-random, stem-frozen, stem-tuned], epochs: 1}
"""
    runs = [run for run in planned(text) if run.stage == "finetune"]
    kinds = sorted((run.columns["init"], run.columns["objective"]) for run in runs)
    assert kinds == [
        ("scratch", "none"),
        ("stem-frozen", "byol"),
        ("stem-frozen", "supervised"),
        ("stem-random", "none"),
        ("stem-tuned", "byol"),
        ("stem-tuned", "supervised"),
    ]


def test_planning_imports_no_torch(repo: Path):
    code = "import sys; from sandglass.cli import app; app(['plan'], standalone_mode=False)"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=repo, check=True, capture_output=True)


def test_an_optimisation_brings_its_values_and_the_preset_of_its_name(planned):
    """TRAIN and PRESETS of the objective's file; what a study says itself goes first, and a sweep keeps both apart."""
    text = BASE.replace("pretrain: {objective: byol, epochs: 2}", "pretrain: {optimisation: [blog, cnn], epochs: 2}")
    runs = {run.columns["optimisation"]: run for run in planned(text) if run.stage == "pretrain"}
    assert runs["blog"].settings["objective"]["byol"]["momentum_end"] == 0.99
    assert runs["cnn"].settings["objective"]["byol"]["momentum_end"] == 1.0
    assert runs["blog"].settings["train"]["optimizer"] == "sgd" and runs["cnn"].settings["train"]["optimizer"] == "lars"
    assert {run.settings["train"]["epochs"] for run in runs.values()} == {2}
    own = planned(text + "    objectives: {byol: {momentum_end: 0.95}}\n")
    assert {run.settings["objective"]["byol"]["momentum_end"] for run in own if run.stage == "pretrain"} == {0.95}
    judged = [run for run in planned(text) if run.stage == "probe" and run.columns["init"] == "pretrained"]
    assert {run.columns["optimisation"] for run in judged} == {"blog", "cnn"}


def test_an_optimisation_that_the_objective_does_not_name_is_refused(planned):
    with pytest.raises(Problem, match="byol names no optimisation 'blgo'") as caught:
        planned(BASE.replace("objective: byol, epochs: 2", "objective: byol, optimisation: blgo"))
    assert caught.value.id == "C-122" and "did you mean blog?" in caught.value.fix


def test_finetuning_by_name_brings_its_values_and_the_presets_of_its_tasks(planned):
    runs = planned(BASE.replace("finetune: {", "finetune: {optimisation: [thesis, sound], "))
    tuned = [run for run in runs if run.columns.get("auxiliary") == "drloc" and run.stage == "finetune"]
    kinds = {run.columns["optimisation"]: run.settings for run in tuned}
    assert kinds["thesis"]["train"]["optimizer"] == "adam" and kinds["sound"]["train"]["optimizer"] == "adamw"
    assert (
        kinds["thesis"]["auxiliary"]["drloc"]["share_pairs"] and not kinds["sound"]["auxiliary"]["drloc"]["share_pairs"]
    )
    assert (kinds["thesis"]["split"], kinds["sound"]["split"]) == ("trainval", "train")


def test_a_setting_of_an_idea_excludes_its_runs_and_what_stands_on_them(planned):
    text = BASE + "    auxiliary: {drloc: {weight: [0.1, 0.2, 0.3]}}\n"
    some = planned(text + "    exclude: [{drloc.weight: [0.1, 0.3]}, {stage: attack, drloc.weight: 0.2}]\n")
    weights = {
        run.settings["auxiliary"]["drloc"]["weight"] for run in some if "drloc" in run.settings.get("auxiliary", {})
    }
    assert weights == {0.2}
    assert not [run for run in some if run.stage == "attack" and run.columns["auxiliary"] == "drloc"]
    assert [run for run in some if run.stage == "attack"], "those without the task stay"


def test_a_column_that_does_not_exist_excludes_nothing_unsaid(planned):
    with pytest.raises(Problem, match="1 mistake") as caught:
        planned(BASE + "    exclude: [{drloc.wieght: 0.1}]\n")
    assert "drloc.weight" in caught.value.where
