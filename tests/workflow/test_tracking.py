"""MLflow is a mirror: it can be raced, down or late, and no run notices."""

import json
import os
import subprocess
import sys
import time

from sandglass.config import load
from sandglass.study import plan

JOBS = 8


def test_eight_jobs_together_on_an_empty_folder(workplace, command):
    command(workplace, "sandglass", "data", SANDGLASS_TRACKING="off")
    text = (workplace / "params.yaml").read_text()
    (workplace / "params.yaml").write_text(text.replace("seeds: [0, 1]", "seeds: [0, 1, 2, 3]"))
    runs = [r for r in plan(load(workplace / "params.yaml")) if r.stage == "probe" and r.columns["init"] == "random"]
    assert len(runs) == JOBS
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("MLFLOW_TRACKING_URI", None)
    words = [sys.executable, "-m", "sandglass", "probe"]
    jobs = [subprocess.Popen([*words, run.name], cwd=workplace, env=env, stderr=subprocess.PIPE) for run in runs]
    assert [job.wait(timeout=300) for job in jobs] == [0] * JOBS
    command(workplace, "sandglass", "publish")
    found = mirrored(workplace)
    assert {run.key for run in runs} <= set(found)
    for run in runs:
        rows = json.loads((workplace / "results" / run.result).read_text())["rows"]
        assert found[run.key].info.status == "FINISHED"
        for row in rows:
            assert found[run.key].data.metrics[f"{row['split']}/{row['metric']}"] == row["value"]


def mirrored(folder):
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=1000)
    return {run.data.tags["sandglass.run"]: run for run in runs if "sandglass.run" in run.data.tags}


def test_metrics_appear_while_a_run_is_training(workplace, command):
    text = (
        (workplace / "params.yaml").read_text().replace("objective: byol, epochs: 2", "objective: byol, epochs: 4000")
    )
    (workplace / "params.yaml").write_text(text)
    command(workplace, "sandglass", "data", SANDGLASS_TRACKING="off")
    run = next(r for r in plan(load(workplace / "params.yaml")) if r.stage == "pretrain")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("MLFLOW_TRACKING_URI", None)
    words = [sys.executable, "-m", "sandglass", "pretrain", run.name]
    job = subprocess.Popen(words, cwd=workplace, env=env, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 90
        found = None
        while not (found and "loss" in found.data.metrics):
            assert job.poll() is None and time.monotonic() < end
            time.sleep(1)
            if (workplace / "mlflow.db").exists():
                try:
                    found = mirrored(workplace).get(run.key)
                except Exception as error:  # the store is being made just now
                    assert "no such table" in str(error) or "locked" in str(error), error
        assert found.info.status == "RUNNING"
    finally:
        job.terminate()
    assert job.wait(timeout=60) == 75
    time.sleep(2)
    command(workplace, "sandglass", "publish")
    assert mirrored(workplace)[run.key].info.status == "KILLED"


def test_an_unreachable_server_fails_publishing_only(workplace, command):
    closed = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    command(workplace, "sandglass", "data", **closed)
    done = command(workplace, "sandglass", "publish", check=False, **closed)
    assert done.returncode == 69 and "error N-110" in done.stderr and "Traceback" not in done.stderr, done.stderr
    command(workplace, "sandglass", "publish")
    assert len(mirrored(workplace)) == 1, "what was missed is completed later"


def test_points_written_twice_are_one_point(workplace, command):
    """A follower killed between writing points and noting how far it got must not leave duplicates."""
    from sandglass import tracking

    command(workplace, "sandglass", "data", SANDGLASS_TRACKING="off")
    run = next(r for r in plan(load(workplace / "params.yaml")) if r.stage == "pretrain")
    command(workplace, "sandglass", "pretrain", run.name, SANDGLASS_TRACKING="off")
    command(workplace, "sandglass", "publish")
    there = mirrored(workplace)[run.key]
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=tracking.uri(workplace))
    before = client.get_metric_history(there.info.run_id, "loss")
    client.set_tag(there.info.run_id, "sandglass.bytes", "0")
    client.set_tag(there.info.run_id, "sandglass.result", "")
    command(workplace, "sandglass", "publish")
    after = client.get_metric_history(there.info.run_id, "loss")
    assert [(m.step, m.value) for m in before] == [(m.step, m.value) for m in after] and before
