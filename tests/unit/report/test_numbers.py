"""The small files for `dvc metrics` and `dvc plots`, against the numbers in the folders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sandglass.report import numbers
from sandglass.report.collect import collect
from sandglass.report.experiments import experiments


def written(study: Any, folder: Path, without: str = "nothing") -> Path:
    keys = [f"{run['stage']}/{run['name']}" for run in study.runs]
    frame = collect(study.root, [key for key in keys if without not in key])
    stages = {stage: experiments(frame, stage) for stage in dict.fromkeys(frame["stage"])}
    numbers.write(study.root / "results", stages, folder)
    return folder


@pytest.fixture(scope="module")
def folder(study: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(study, tmp_path_factory.mktemp("numbers"))


def results(study: Any, stage: str, metric: str, epsilon: float | None = None, **columns: str) -> list[float]:
    """Straight from the folders, in order of the plan."""
    found = []
    for run in study.runs:
        if run["stage"] == stage and all(run["columns"].get(key) == value for key, value in columns.items()):
            rows = json.loads((study.folder(f"{stage}/{run['name']}") / "result.json").read_text())["rows"]
            rows = [r for r in rows if r.get("split") != "val"]
            found += [r["value"] for r in rows if r["metric"] == metric and r.get("epsilon") == epsilon]
    return found


def test_metrics_are_the_means_over_seeds(folder: Path, study: Any) -> None:
    means = json.loads((folder / "metrics.json").read_text())
    probe = results(study, "probe", "top1", probe="linear", init="random")
    assert len(probe) == 3 and means["probe"]["linear/random"] == {"top1": pytest.approx(np.mean(probe))}
    tuned = results(study, "finetune", "top1", init="pretrained", auxiliary="drloc")
    assert means["finetune"]["pretrained/drloc"] == {"top1": pytest.approx(np.mean(tuned))}
    robust = results(study, "attack", "robust_top1", 1.0, init="pretrained", auxiliary="none")
    assert means["attack"]["fgsm/pretrained/none"] == {"robust_top1_1_255": pytest.approx(np.mean(robust))}


def test_accuracy_has_a_row_for_every_seed(folder: Path, study: Any) -> None:
    table = pd.read_csv(folder / "accuracy.csv")
    rows = table[table["experiment"] == "probe/knn/pretrained"]
    assert rows["seed"].tolist() == [0, 1, 2]
    assert rows["accuracy"].tolist() == pytest.approx(results(study, "probe", "top1", probe="knn", init="pretrained"))
    means = json.loads((folder / "metrics.json").read_text())
    assert set(table["experiment"]) == {f"{stage}/{name}" for stage, some in means.items() for name in some}


def test_a_curve_is_the_mean_over_seeds(folder: Path, study: Any) -> None:
    files = [study.folder(key) / "metrics.jsonl" for key in study.keys("pretrain")]
    tables = [pd.DataFrame(json.loads(line) for line in file.read_text().splitlines()) for file in files]
    curve = pd.read_csv(folder / "curves" / "pretrain-byol.csv")
    assert curve["epoch"].tolist() == tables[0]["epoch"].tolist()
    assert curve["loss"].tolist() == pytest.approx(np.mean([table["loss"] for table in tables], axis=0).tolist())


def test_rows_keep_their_names_and_old_curves_go_when_the_study_shrinks(study: Any, tmp_path: Path) -> None:
    before = json.loads((written(study, tmp_path) / "metrics.json").read_text())
    assert (tmp_path / "curves" / "finetune-scratch-none.csv").exists()
    after = json.loads((written(study, tmp_path, without="scratch") / "metrics.json").read_text())
    kept = {name for name in before["finetune"] if "scratch" not in name}
    assert set(after["finetune"]) == kept != set(before["finetune"])
    assert all(after["finetune"][name] == before["finetune"][name] for name in kept)
    assert not list((tmp_path / "curves").glob("*scratch*")) and list((tmp_path / "curves").glob("*pretrained*"))
