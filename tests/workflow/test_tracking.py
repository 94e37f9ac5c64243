"""MLflow is a mirror: complete and readable when it is there; raced, locked, slow, down or late, and no run notices."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from sandglass import stages, tracking
from sandglass.config import load
from sandglass.runs import RunFolder, read_json
from sandglass.study import plan

SMALL = """\
study: small
engine: {device: cpu, checkpoint_minutes: 0, log_every_steps: 5}
studies:
  small:
    about: Do the digits of a small study survive?
    data: digits
    size: 32
    backbone: toy
    seeds: [0]
    pretrain: {objective: byol, epochs: 2, batch_size: 128, warmup_epochs: 1}
    probe: {probe: knn, init: [pretrained, random]}
    finetune:
      {init: pretrained, auxiliary: drloc, labels: 0.1, views: plain, epochs: 2, batch_size: 32, warmup_epochs: 0}
    attack: {attack: fgsm, images: 64}
    objectives: {byol: {hidden: 32, out: 16}}
    attacks: {fgsm: {epsilons: [0.0, 1.0, 8.0]}}
"""
RUNS = 1 + 1 + 2 + 1 + 1 + 1
LONG = SMALL.replace("objective: byol, epochs: 2", "objective: byol, epochs: 24")
LONG = LONG.replace("checkpoint_minutes: 0,", "checkpoint_minutes: 0.005,")
JOBS = 12
QUIET = {"SANDGLASS_TRACKING": "off"}


def write(root, text):
    (root / "params.yaml").write_text(text)
    return load(root / "params.yaml")


def build(root, *wanted):
    """Compute runs of these stages, or all, in this process and without MLflow."""
    torch.set_num_threads(1)  # small steps, and the machine may be busy
    params = load(root / "params.yaml")
    for run in plan(params):
        if run.stage in (wanted or tracking.STAGES):
            stages.execute(run, params, params.study, root, say=lambda text: None)


def the(root, stage):
    """The run of a stage, and its folder."""
    run = next(run for run in plan(load(root / "params.yaml")) if run.stage == stage)
    return run, RunFolder(root, run)


def begin(root, *words, **environment):
    """`sandglass ...` as a job of its own."""
    env = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "SLURM_JOB_ID")}
    env |= {"OMP_NUM_THREADS": "1", **environment}
    words = [sys.executable, "-m", "sandglass", *words]
    return subprocess.Popen(words, cwd=root, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finished(job, seconds=120):
    assert job.wait(timeout=seconds) == 0, job.stderr.read()


def until(true, job=None, seconds=90, pause=0.1):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert job is None or job.poll() is None, job.stderr.read()
        assert time.monotonic() < end
        time.sleep(pause)
    return found


def client(root):
    import mlflow

    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")


def mirrored(root):
    """MLflow's runs by key; two of one key are an error."""
    there = client(root)
    runs = there.search_runs([e.experiment_id for e in there.search_experiments()], max_results=1000)
    found = {run.data.tags["sandglass.run"]: run for run in runs}
    assert len(found) == len(runs), "a run is there twice"
    return found


def mirrored_run(root, key):
    """The run as a reader sees it while others write; None when it is not there yet."""
    if not (root / "mlflow.db").exists():
        return None
    try:
        return mirrored(root).get(key)
    except Exception as error:
        assert "locked" in str(error), error
        return None


def history(root, run, metric):
    return [(point.step, point.value) for point in client(root).get_metric_history(run.info.run_id, metric)]


def logged(folder, metric):
    rows = [json.loads(line) for line in (folder.results / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row[metric]) for row in rows if metric in row]


def followers(root):
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "sandglass.tracking" in words and any(word.startswith(str(root)) for word in words):
            found.append(process)
    return found


@pytest.fixture
def place(tmp_path):
    """A folder with the small study; no follower outlives the test."""
    write(tmp_path, SMALL)
    yield tmp_path
    for process in followers(tmp_path):
        process.kill()
        process.wait(timeout=10)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The small study, built without MLflow and then published."""
    root = tmp_path_factory.mktemp("published")
    write(root, SMALL)
    build(root)
    assert tracking.publish(root) == RUNS
    return root


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder in which pretraining was killed (SIGKILL) mid-way; nothing is published yet."""
    root = tmp_path_factory.mktemp("killed")
    write(root, LONG)
    build(root, "data")
    _, folder = the(root, "pretrain")
    manifest, samples = folder.state / "checkpoints" / "manifest.json", folder.state / "system.jsonl"
    job = begin(root, "pretrain", **QUIET)
    try:
        until(lambda: manifest.exists() and read_json(manifest)[0]["metrics_bytes"] and samples.stat().st_size, job)
    finally:
        job.kill()
    assert job.wait() == -signal.SIGKILL and not folder.done()
    return root


@pytest.fixture
def interrupted(killed, tmp_path):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    return tmp_path


# ------------------------------------------------------------------------------------------ what a person finds


def test_every_run_is_in_the_experiment_of_its_study(published):
    found, runs = mirrored(published), plan(load(published / "params.yaml"))
    assert set(found) == {run.key for run in runs}
    experiments = {run.info.experiment_id for run in found.values()}
    (experiment,) = [client(published).get_experiment(id) for id in experiments]
    assert experiment.name == "small"
    assert "Do the digits of a small study survive?" in experiment.tags["mlflow.note.content"]
    assert "results/report/small/index.html" in experiment.tags["mlflow.note.content"]
    report = found[next(run.key for run in runs if run.stage == "report")].info.run_id
    link = f"[Report](#/experiments/{experiment.experiment_id}/runs/{report}/artifacts/index.html)"
    assert link in experiment.tags["mlflow.note.content"]
    assert "index.html" in [file.path for file in client(published).list_artifacts(report)]
    for run in runs:
        assert found[run.key].info.status == "FINISHED"
        assert found[run.key].info.end_time >= found[run.key].info.start_time


def test_names_can_be_read(published):
    names = {run.info.run_name for run in mirrored(published).values()}
    assert names == {
        "data digits",
        "pretrain byol baseline toy seed 0",
        "probe knn pretrained byol toy seed 0",
        "probe knn random toy seed 0",
        "finetune drloc pretrained byol 10% toy seed 0",
        "attack fgsm drloc pretrained byol 10% toy seed 0",
        "report small",
    }


def test_tags_filter_and_group(published):
    (experiment,) = {run.info.experiment_id for run in mirrored(published).values()}
    wanted = {
        "stage": "finetune",
        "data set": "digits",
        "backbone": "toy",
        "objective": "byol",
        "views": "plain",
        "init": "pretrained",
        "auxiliary": "drloc",
        "labels": "0.1",
        "seed": "0",
        "attempts": "1",
    }
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items())
    (run,) = client(published).search_runs([experiment], query)
    assert run.data.tags["sandglass.run"] == the(published, "finetune")[0].key
    assert run.data.tags["mlflow.source.name"] == f"sandglass finetune {the(published, 'finetune')[0].name}"


def test_runs_lie_below_what_they_came_from(published):
    found = mirrored(published)
    above = {key.partition("/")[0]: run.data.tags.get("mlflow.parentRunId") for key, run in found.items()}
    ids = {key.partition("/")[0]: run.info.run_id for key, run in found.items()}
    assert above["finetune"] == ids["pretrain"] and above["attack"] == ids["finetune"]
    assert above["pretrain"] is None and above["data"] is None


def test_the_data_set_is_an_input(published):
    run, _ = the(published, "finetune")
    info = read_json(published / "results" / "data" / run.need("data") / "info.json")
    (given,) = mirrored(published)[run.key].inputs.dataset_inputs
    assert given.dataset.name == "digits" and info["fingerprint"].startswith(given.dataset.digest)
    assert json.loads(given.dataset.profile)["counts"] == info["counts"]
    assert {tag.key: tag.value for tag in given.tags} == {"mlflow.data.context": "finetune"}


def test_settings_and_numbers_are_those_of_the_folder(published):
    for run in plan(load(published / "params.yaml")):
        folder, there = RunFolder(published, run), mirrored(published)[run.key].data
        for row in read_json(folder.result)["rows"]:
            strength = f"/epsilon_{row['epsilon']:g}_255" if "epsilon" in row else ""
            assert there.metrics[f"{row['split']}/{row['metric']}{strength}"] == row["value"]
        if run.seed is not None:
            assert there.params["seed"] == "0" and there.params["size"] == "32"
    run, folder = the(published, "finetune")
    assert mirrored(published)[run.key].data.params["train.batch_size"] == "32"
    for metric in ("loss", "lr", "drloc/loss", "val_top1"):
        assert history(published, mirrored(published)[run.key], metric) == logged(folder, metric) != []


def test_every_training_has_its_page_among_the_artefacts(published, tmp_path):
    import mlflow

    for stage, words in {
        "pretrain": ("byol", "What the network saw", "loss"),
        "finetune": ("drloc", "What the network saw", "val_top1", "train.batch_size"),
        "attack": ("fgsm", "ε 8/255", "accuracy by strength of attack"),
        "probe": ("map of the test images",),
    }.items():
        key = the(published, stage)[0].key
        uri = f"runs:/{mirrored(published)[key].info.run_id}/report.html"
        file = mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path), tracking_uri=tracking.uri(published))
        text = Path(file).read_text()
        for word in (*words, mirrored(published)[key].info.run_name, "<svg"):
            assert word in text, (stage, word)
        assert "<script" not in text and 'src="http' not in text


def test_timm_loads_the_model_from_the_artefacts(published, tmp_path):
    import mlflow
    import timm
    from safetensors.torch import load_file

    import sandglass.backbones  # noqa: F401 (registers ours with timm)

    for stage in ("pretrain", "finetune"):
        run, folder = the(published, stage)
        uri = f"runs:/{mirrored(published)[run.key].info.run_id}/model"
        place = mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path), tracking_uri=tracking.uri(published))
        loaded = timm.create_model(f"local-dir:{place}", pretrained=True).state_dict()
        trained = load_file(folder.results / "model.safetensors")
        assert loaded.keys() == trained.keys()
        assert all(torch.equal(loaded[name], trained[name]) for name in trained)


def test_no_artefact_is_a_pickle(published):
    import pickletools
    import zipfile

    files = [file for file in (published / "mlruns").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".html", ".csv", ".json", ".jsonl", ".npz", ".npy", ".safetensors"}
    for file in files:
        if file.suffix == ".npz":
            assert all(name.endswith(".npy") for name in zipfile.ZipFile(file).namelist())
        with pytest.raises(ValueError):  # not even one by another name
            list(pickletools.genops(file.read_bytes()))


def test_publishing_again_changes_nothing(published):
    def dump():
        with sqlite3.connect(published / "mlflow.db") as store:
            return "\n".join(store.iterdump())

    before = dump()
    assert tracking.publish(published) == RUNS
    assert dump() == before


def test_points_written_twice_are_one_point(published, tmp_path):
    """A follower killed between writing and noting how far it got must not leave duplicates."""
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    run, folder = the(tmp_path, "pretrain")
    id = mirrored(tmp_path)[run.key].info.run_id
    for tag, value in {"sandglass.bytes": "0", "sandglass.system_bytes": "0", "sandglass.result": ""}.items():
        client(tmp_path).set_tag(id, tag, value)
    tracking.publish(tmp_path)
    assert history(tmp_path, mirrored(tmp_path)[run.key], "loss") == logged(folder, "loss") != []


def test_a_result_that_was_removed_and_made_anew_is_mirrored_anew(published, tmp_path):
    """Its samples of the machine are others, so where the old ones ended is no place to go on from."""
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    run, folder = the(tmp_path, "probe")
    (folder.results / "system.jsonl").unlink(missing_ok=True)
    folder.state.mkdir(parents=True, exist_ok=True)
    for loads in ([10.0, 20.0], [12.34, 55.5, 66.6]):
        rows = [{"seconds": 1.0 + k, "cpu_utilization_percentage": load} for k, load in enumerate(loads)]
        (folder.state / "system.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.utime(folder.result)
        assert tracking.publish(tmp_path) == RUNS
        seen = history(tmp_path, mirrored(tmp_path)[run.key], "system/cpu_utilization_percentage")
        assert [value for _, value in seen] == loads


# ------------------------------------------------------------------------------------------ interrupted runs


def test_a_run_killed_and_resumed_is_one_run(interrupted):
    run, folder = the(interrupted, "pretrain")
    tracking.publish(interrupted)
    first = mirrored(interrupted)[run.key]
    assert first.info.status == "KILLED" and history(interrupted, first, "loss")
    sampled = len((folder.state / "system.jsonl").read_text().splitlines())
    finished(begin(interrupted, "pretrain", **QUIET))
    assert tracking.publish(interrupted) == 2
    last = mirrored(interrupted)[run.key]
    assert last.info.run_id == first.info.run_id and last.info.status == "FINISHED"
    assert last.data.tags["attempts"] == "2"
    assert history(interrupted, last, "loss") == logged(folder, "loss")
    assert len({step for step, _ in logged(folder, "loss")}) == len(logged(folder, "loss")), "each step once"
    samples_of_the_machine(interrupted, folder, last, more_than=sampled)


def samples_of_the_machine(root, folder, there, more_than):
    """They go on after the kill, and are where MLflow shows system metrics."""
    rows = [json.loads(line) for line in (folder.results / "system.jsonl").read_text().splitlines()]
    seconds = [row["seconds"] for row in rows]
    assert len(rows) > more_than > 0 and seconds == sorted(set(seconds))
    for name in rows[0].keys() - {"seconds"}:
        points = client(root).get_metric_history(there.info.run_id, f"system/{name}")
        assert [point.value for point in points] == [row[name] for row in rows], name
        assert [point.timestamp - there.info.start_time for point in points] == [int(1000 * s) for s in seconds]
    assert all(0 <= row["cpu_utilization_percentage"] <= 100 for row in rows)
    assert all(0 < row["system_memory_usage_megabytes"] < psutil.virtual_memory().total / 1e6 for row in rows)


def test_a_run_begun_anew_has_one_history(interrupted):
    run, folder = the(interrupted, "pretrain")
    tracking.publish(interrupted)
    first = mirrored(interrupted)[run.key]
    shutil.rmtree(folder.state)
    shutil.rmtree(folder.results)
    job = begin(interrupted, "pretrain", **QUIET)
    until(lambda: (folder.state / "metrics.jsonl").exists(), job)
    job.kill()
    job.wait()
    tracking.publish(interrupted)
    second = mirrored(interrupted)[run.key]
    assert second.info.run_id != first.info.run_id
    assert client(interrupted).get_run(first.info.run_id).info.lifecycle_stage == "deleted"


def test_curves_appear_during_training_and_nobody_publishes(place):
    write(place, LONG.replace("epochs: 24", "epochs: 4000"))
    run, _ = the(place, "pretrain")
    build(place, "data")
    job = begin(place, "pretrain")
    try:
        found = until(lambda: (r := mirrored_run(place, run.key)) and "loss" in r.data.metrics and r, job, pause=1)
        assert found.info.status == "RUNNING"
    finally:
        job.terminate()
    assert job.wait(timeout=60) == 75
    until(lambda: not followers(place))
    assert mirrored(place)[run.key].info.status == "KILLED"
    assert "Traceback" not in (place / "state" / "mlflow.log").read_text()


# ------------------------------------------------------------------------------------------ trouble


def test_twelve_jobs_together_on_an_empty_folder(place):
    write(place, SMALL.replace("seeds: [0]", f"seeds: {list(range(JOBS))}"))
    build(place, "data")
    runs = [r for r in plan(load(place / "params.yaml")) if r.stage == "probe" and r.columns["init"] == "random"]
    assert len(runs) == JOBS
    jobs = [begin(place, "probe", run.name) for run in runs]
    for job in jobs:
        finished(job, seconds=300)
    assert tracking.publish(place) == 1 + JOBS
    found = mirrored(place)
    for run in runs:
        assert found[run.key].info.status == "FINISHED"
        for row in read_json(place / "results" / run.result)["rows"]:
            assert found[run.key].data.metrics[f"{row['split']}/{row['metric']}"] == row["value"]
    assert "Traceback" not in (place / "state" / "mlflow.log").read_text()


def test_an_unreachable_server_fails_publishing_only(place, command):
    closed = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    command(place, "sandglass", "data", **closed)
    done = command(place, "sandglass", "publish", check=False, **closed)
    assert done.returncode == 69 and "error N-110" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert tracking.publish(place) == len(mirrored(place)) == 1, "what was missed is completed later"


def test_a_server_that_never_answers_holds_nobody_up(place, command):
    build(place, "data")
    with socket.create_server(("127.0.0.1", 0)) as server:
        calls, held = [], []

        def accept():
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return
                calls.append(time.monotonic())

        threading.Thread(target=accept, daemon=True).start()
        mute = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server.getsockname()[1]}"}
        job = begin(place, "pretrain", **mute)
        until(lambda: calls or job.poll() is not None)
        finished(job)
        until(lambda: calls)
        assert [process.status() for process in followers(place)], "the follower, and nobody else, still waits"
        for process in followers(place):
            process.kill()
            process.wait(timeout=10)
        quick = mute | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        done = command(place, "sandglass", "publish", check=False, **quick)
        assert done.returncode == 69 and "error N-110" in done.stderr, done.stderr
    assert tracking.publish(place) == len(mirrored(place)) == 2


def test_a_locked_store_holds_nobody_up_and_is_completed_when_free(place):
    build(place, "data")
    tracking.publish(place)
    run, _ = the(place, "pretrain")
    log = place / "state" / "mlflow.log"
    store = sqlite3.connect(place / "mlflow.db", isolation_level=None)
    store.execute("BEGIN EXCLUSIVE")
    try:
        finished(begin(place, "pretrain"))
        until(lambda: "locked; trying again" in log.read_text() or "database is locked" in log.read_text())
        assert followers(place), "it waits"
    finally:
        store.execute("ROLLBACK")
        store.close()
    found = until(lambda: (r := mirrored_run(place, run.key)) and r.info.status == "FINISHED" and r, pause=1)
    assert "loss" in found.data.metrics
    assert "Traceback" not in log.read_text()


def test_a_damaged_folder_does_not_keep_the_others_out(published, tmp_path, command):
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    (tmp_path / "mlflow.db").unlink()
    (the(tmp_path, "pretrain")[1].results / "run.json").write_text("{")
    done = command(tmp_path, "sandglass", "publish", check=False)
    assert done.returncode == 65 and "error R-101" in done.stderr, done.stderr
    assert len(mirrored(tmp_path)) == RUNS - 1


# ------------------------------------------------------------------------------------------ clusters and servers


def test_a_job_of_a_cluster_starts_no_follower(place, command):
    command(place, "sandglass", "data", SLURM_JOB_ID="7")
    assert not followers(place) and not (place / "mlflow.db").exists()
    assert not (place / "state" / "mlflow.log").exists()


def test_the_follower_of_a_driver_stays_as_long_as_the_driver(place):
    driver = subprocess.Popen(["sleep", "600"])
    try:
        tracking.start(place, driver.pid)
        until(lambda: (place / "mlflow.db").exists())
        time.sleep(tracking.IDLE_SECONDS + tracking.POLL_SECONDS)  # nothing is active, and it stays
        assert followers(place)
        finished(begin(place, "data", SLURM_JOB_ID="7"))
        (run, _) = the(place, "data")
        until(lambda: (found := mirrored_run(place, run.key)) and found.info.status == "FINISHED", pause=1)
    finally:
        driver.kill()
        driver.wait()
    until(lambda: not followers(place), seconds=30)
    assert "Traceback" not in (place / "state" / "mlflow.log").read_text()


def test_a_run_on_another_node_lives_by_its_heartbeat(interrupted):
    run, folder = the(interrupted, "pretrain")
    lease = folder.state / "lease.json"
    lease.write_text(json.dumps(read_json(lease) | {"host": "node7"}))
    tracking.publish(interrupted)
    assert mirrored(interrupted)[run.key].info.status == "RUNNING"
    os.utime(lease, (0, 0))
    tracking.publish(interrupted)
    assert mirrored(interrupted)[run.key].info.status == "KILLED"


def test_two_folders_on_one_server_keep_their_own_runs(published, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'server.db'}")
    monkeypatch.setenv("MLFLOW_ARTIFACTS_DESTINATION", str(tmp_path / "artefacts"))
    monkeypatch.chdir(tmp_path)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        shutil.copytree(published / "results" / "data", folder / "results" / "data")
        assert tracking.publish(folder) == 1
    import mlflow

    there = mlflow.MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    runs = there.search_runs([e.experiment_id for e in there.search_experiments()])
    assert len(runs) == 2 and len({run.data.tags["sandglass.run"] for run in runs}) == 1
