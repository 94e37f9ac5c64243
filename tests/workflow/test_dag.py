"""The whole DAG on a toy study, and what reruns when something changes."""

import json
import re
from pathlib import Path

import pytest

from .conftest import TOY

RUNS = 1 + 2 + 8 + 8 + 8 + 1


def executed(done) -> int:
    """Jobs that Snakemake ran, or would run, besides the target rules."""
    text = done.stdout + done.stderr
    if "Nothing to be done" in text:
        return 0
    table = re.search(r"job +count\n-+ +-+\n(.*?)total", text, re.S)
    assert table, text
    rows = [line.split() for line in table[1].strip().splitlines()]
    return sum(int(count) for name, count in rows if name != "all" and not name.startswith("phase_"))


@pytest.fixture(scope="module")
def built(tmp_path_factory, repo):
    """The toy study, built once; the tests below change params.yaml and put it back."""
    import os
    import subprocess

    from .conftest import BIN

    folder = tmp_path_factory.mktemp("toy")
    for name in ("Snakefile", "workflow", "profiles", "slurm", "envs"):
        (folder / name).symlink_to(repo / name)
    (folder / "params.yaml").write_text(TOY)
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["snakemake", "--cores", "all"], cwd=folder, env=env, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert executed(done) == RUNS
    return folder


def test_every_run_left_a_whole_folder_and_the_plan_knows(built, command):
    rows = json.loads(command(built, "sandglass", "plan", "--json").stdout)
    assert len(rows) == RUNS and all(row["done"] for row in rows)
    for row in rows:
        assert (built / "results" / row["result"]).is_file()
    lines = command(built, "sandglass", "status").stdout.splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [
        ["data", "1 done"],
        ["pretrain", "2 done"],
        ["probe", "8 done"],
        ["finetune", "8 done"],
        ["attack", "8 done"],
        ["report", "1 done"],
    ]


def test_the_report_and_the_table_are_there(built):
    page = (built / "results" / "report" / "toy" / "index.html").read_text()
    assert "</html>" in page and "Linear probe" in page
    header = (built / "results" / "report" / "toy" / "results.csv").read_text().splitlines()[0]
    columns = "stage,data set,backbone,objective,views,auxiliary,init,label fraction,attack,epsilon,seed,metric,value"
    assert header.startswith(columns)


def test_a_second_call_has_nothing_to_do(built, command):
    assert "Nothing to be done" in command(built, "snakemake", "--cores", "all").stderr


def test_touching_everything_changes_nothing(built, command):
    for file in (built / "results").rglob("*"):
        file.touch()
    (built / "params.yaml").touch()
    assert executed(command(built, "snakemake", "-n")) == 0


def test_no_memory_of_snakemake_changes_nothing(built, command):
    import shutil

    shutil.rmtree(built / ".snakemake")
    assert executed(command(built, "snakemake", "-n")) == 0


@pytest.mark.parametrize(
    ("old", "new", "jobs"),
    [
        ("views: plain\n      epochs: 2", "views: plain\n      epochs: 3", 8 + 8 + 1),
        ("epsilons: [0.0, 1.0, 8.0]", "epsilons: [0.0, 2.0]", 8 + 1),
        ("seeds: [0, 1]", "seeds: [0, 1, 2]", 1 + 4 + 4 + 4 + 1),
        ("probe: [knn, linear]", "probe: [knn]", 1),
        ("objective: byol, epochs: 2", "objective: byol, epochs: 3", 2 + 4 + 4 + 4 + 1),
        ("checkpoint_minutes: 0", "checkpoint_minutes: 3", 0),
    ],
    ids=["finetune value", "attack value", "added seed", "removed probe", "pretrain value", "engine value"],
)
def test_a_change_reruns_exactly_what_it_touches(built, command, old, new, jobs):
    assert old in TOY
    try:
        (built / "params.yaml").write_text(TOY.replace(old, new))
        assert executed(command(built, "snakemake", "-n")) == jobs
    finally:
        (built / "params.yaml").write_text(TOY)
    assert executed(command(built, "snakemake", "-n")) == 0, "a value put back finds its old results"


def test_a_removed_result_is_made_again_alone(built, command):
    import shutil

    victim = next((built / "results" / "probe").iterdir())
    rows = (victim / "result.json").read_text()
    shutil.rmtree(victim)
    done = command(built, "snakemake", "--cores", "all")
    assert executed(done) == 1 + executed_report(done)
    again = json.loads((victim / "result.json").read_text())["rows"]
    assert again == json.loads(rows)["rows"], "the same run gives the same numbers"


def executed_report(done) -> int:
    """Whether Snakemake made the page again too, as it does for what lies below a job that ran."""
    return int(bool(re.search(r"^report +1", done.stdout + done.stderr, re.M)))


def test_models_load_with_timm(built):
    import timm
    from safetensors.torch import load_file

    from sandglass.backbones import grid  # noqa: F401 - registers our names with timm

    for stage, classes in (("pretrain", 0), ("finetune", 10)):
        folder = next((built / "results" / stage).iterdir())
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        assert model.num_classes == classes
        for name, value in load_file(folder / "model.safetensors").items():
            assert model.state_dict()[name].equal(value)


def test_export_copies_a_model_and_keeps_what_is_there(built, command, tmp_path):
    run = next((built / "results" / "finetune").iterdir()).name
    command(built, "sandglass", "export", run, str(tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors").is_file()
    again = command(built, "sandglass", "export", run, str(tmp_path / "out"), check=False)
    assert again.returncode == 73 and "nothing changed" in again.stderr


def test_every_run_is_in_mlflow_with_curves_and_parents(built, command):
    import mlflow

    command(built, "sandglass", "publish")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{built / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "toy"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    by_key = {run.data.tags["sandglass.run"]: run for run in runs}
    planned = {
        f"{row['stage']}/{row['run']}" for row in json.loads(command(built, "sandglass", "plan", "--json").stdout)
    }
    assert planned <= set(by_key) and len(by_key) == len(runs), "each run once"
    assert all(by_key[key].info.status == "FINISHED" for key in planned)
    key = next(key for key in planned if key.startswith("finetune/") and "pretrained" in key)
    run = by_key[key]
    rows = [json.loads(line) for line in (built / "results" / key / "metrics.jsonl").read_text().splitlines()]
    logged = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in logged] == [(r["step"], r["loss"]) for r in rows if "loss" in r]
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.data.tags["stage"] == "pretrain"
    assert run.data.params["train.epochs"] == "2" and "test/top1" in run.data.metrics
    assert [d.dataset.name for d in run.inputs.dataset_inputs] == ["digits"]
    assert {f.path for f in client.list_artifacts(run.info.run_id, "model")} == {
        "model/config.json",
        "model/model.safetensors",
    }


def test_publishing_twice_changes_nothing(built, command):
    import sqlite3

    def counts():
        with sqlite3.connect(built / "mlflow.db") as store:
            return [
                store.execute(f"select count(*) from {table}").fetchone()[0]
                for table in ("runs", "metrics", "params", "tags")
            ]

    command(built, "sandglass", "publish")
    before = counts()
    command(built, "sandglass", "publish")
    assert counts() == before


def test_stage_verb_refuses_what_is_not_ready(workplace, command):
    done = command(workplace, "sandglass", "pretrain", check=False)
    assert done.returncode == 66 and "error R-110" in done.stderr and "Traceback" not in done.stderr


def test_mistyped_params_are_one_screen_from_every_entry(workplace, command):
    (workplace / "params.yaml").write_text(TOY.replace("epochs: 2", "epoch: 2", 1))
    for words in (["sandglass", "plan"], ["snakemake", "-n"]):
        done = command(workplace, *words, check=False)
        text = done.stdout + done.stderr
        assert done.returncode != 0 and "did you mean epochs" in text and "Traceback" not in text, text


def test_lint_is_clean(workplace, command):
    done = command(workplace, "snakemake", "--lint", check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_slurm_profile_is_found_and_plans(workplace, command):
    done = command(workplace, "snakemake", "--profile", "slurm", "-n")
    assert executed(done) == RUNS
    assert Path(workplace / "slurm" / "config.yaml").is_file()
