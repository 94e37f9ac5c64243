"""What the rest of a study costs, against numbers worked by hand."""

import json

import pytest

from sandglass.forecast import fill, forecast, show
from sandglass.runs import RunFolder, write_json
from sandglass.study import Run


def training(name, epochs=10, seed=0, hidden=512, **train):
    settings = {"data": "digits", "size": 32, "backbone": "toy", "objective": {"byol": {"hidden": hidden}}}
    settings["train"] = {"epochs": epochs, "batch_size": 64, "lr_per_256": 1e-3} | train
    return Run("pretrain", name, seed, settings, (), {})


def finish(root, run, minutes, device="cpu", started="2026-01-01T00:00:00+0000", **derived):
    folder = RunFolder(root, run)
    folder.begin(device=device, **derived)
    about = json.loads((folder.results / "run.json").read_text())
    write_json(folder.results / "run.json", about | {"started": started})
    folder.finish([], minutes=minutes)


def test_the_median_of_runs_like_it_scaled_by_epochs(tmp_path):
    for seed, minutes in enumerate((10.0, 11.0, 15.0)):
        finish(tmp_path, training(f"a{seed}", seed=seed), minutes)
    estimate = forecast(tmp_path, [training("b", epochs=20, seed=7, lr_per_256=0.5)])["pretrain/b"]
    assert (estimate.minutes, estimate.least, estimate.most, estimate.runs) == (22.0, 20.0, 30.0, 3)
    assert estimate.same and estimate.device == "cpu"


def test_nothing_is_guessed_of_another_size_batch_or_stage(tmp_path):
    finish(tmp_path, training("a"), 10.0)
    other = training("size")
    other.settings["size"] = 64
    probe = Run("probe", "p", 0, {"data": "digits", "size": 32, "backbone": "toy", "probe": {"knn": {}}}, (), {})
    unlike = [other, training("batch", batch_size=128), probe]
    found = forecast(tmp_path, unlike)
    assert found == {run.key: None for run in unlike}
    assert show(found).splitlines()[0].startswith("left: unknown") and "min" not in show(found)


def test_other_values_of_an_objective_serve_only_where_the_same_ones_were_not_measured(tmp_path):
    finish(tmp_path, training("a", hidden=512), 10.0)
    finish(tmp_path, training("b", hidden=64), 2.0)
    found = forecast(tmp_path, [training("c", seed=1, hidden=64), training("d", hidden=2048)])
    assert found["pretrain/c"].minutes == 2.0 and found["pretrain/c"].same
    assert found["pretrain/d"].minutes == pytest.approx(6.0) and not found["pretrain/d"].same
    assert "1 by runs that differ in values" in show(found)


def test_of_two_devices_the_one_used_last_counts(tmp_path):
    finish(tmp_path, training("slow"), 60.0, started="2026-01-02T00:00:00+0000")
    finish(tmp_path, training("fast"), 1.0, device="H100", started="2026-01-03T00:00:00+0000", processes=2)
    estimate = forecast(tmp_path, [training("new", seed=3)])["pretrain/new"]
    assert (estimate.minutes, estimate.device) == (1.0, "2 x H100")


def test_hours_are_added_over_runs_and_a_damaged_folder_is_passed_over(tmp_path):
    finish(tmp_path, training("a"), 90.0)
    finish(tmp_path, training("bad"), 1.0)
    (tmp_path / "results/pretrain/bad/result.json").write_text("{")
    text = show(forecast(tmp_path, [training(f"n{seed}", seed=seed) for seed in (1, 2)]))
    assert text.splitlines()[0] == "left: about 3.0 h of computing, one run after another"
    assert "2 runs  about 3.0 h, from 1 finished like each on cpu" in text


def test_unknown_trainings_are_measured_once_for_each_kind_and_scaled_by_epochs(tmp_path):
    finish(tmp_path, training("a"), 10.0)
    known, longer = training("known", seed=1), training("longer", epochs=30, batch_size=128)
    runs = [known, training("batch", batch_size=128), longer]
    probe = Run("probe", "p", 0, {"data": "digits", "size": 32, "backbone": "toy", "probe": {"knn": {}}}, (), {})
    asked = []

    def measure(run):
        asked.append(run.name)
        return 0.5, "H100"

    before = forecast(tmp_path, [*runs, probe])
    found = fill(before, [*runs, probe], measure)
    assert asked == ["batch"], "the longer one is of its kind, a probe is no training"
    assert [found[run.key].minutes for run in runs] == [10.0, 5.0, 15.0] and found["probe/p"] is None
    assert (found[longer.key].runs, found[longer.key].device) == (0, "H100")
    assert "from 1 finished like each and steps measured now on H100, cpu" in show(found)
    assert "--measure" in show(before) and "--measure" not in show(found)
