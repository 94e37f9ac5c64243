"""What a person sees in `mlflow ui`, in a real Chromium on a really built study. Pictures: build/screenshots/."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from urllib.parse import quote

import psutil
import pytest
import torch

from sandglass import stages, tracking
from sandglass.config import load
from sandglass.study import plan

from .chromium import Chromium

pytestmark = pytest.mark.browser

STUDY = """\
study: digits_in_view
engine: {device: cpu, checkpoint_minutes: 1, log_every_steps: 5}
studies:
  digits_in_view:
    about: Does a page show what was asked?
    data: digits
    size: 32
    backbone: toy
    seeds: [0, 1]
    pretrain: {objective: byol, epochs: 12, batch_size: 128, warmup_epochs: 1}
    finetune:
      init: pretrained
      auxiliary: [none, drloc]
      labels: 0.3
      views: plain
      epochs: 12
      batch_size: 32
      lr_per_256: 1e-2
      warmup_epochs: 1
    objectives: {byol: {hidden: 32, out: 16}}
"""
FINETUNED = [
    f"finetune {words} 30% toy seed {seed}" for words in ("pretrained byol", "drloc pretrained byol") for seed in (0, 1)
]
PRETRAINED = [f"pretrain byol baseline toy seed {seed}" for seed in (0, 1)]
RUNS = 1 + 2 + 4 + 1


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The study, built and published."""
    root = tmp_path_factory.mktemp("study")
    (root / "params.yaml").write_text(STUDY)
    torch.set_num_threads(1)  # small steps, and the machine may be busy
    params = load(root / "params.yaml")
    for run in plan(params):
        stages.execute(run, params, params.study, root, say=lambda text: None)
    assert tracking.publish(root) == RUNS
    return root


@pytest.fixture(scope="module")
def server(study):
    """`mlflow ui` as the README starts it, on a free port: its process and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", "sqlite:///mlflow.db", "--port", str(port)]
    with (study / "ui.log").open("wb") as log:
        process = subprocess.Popen(
            [*words, "--workers", "1"], cwd=study, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        )  # fmt: skip
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 90
    try:
        while not answers(f"{address}/health"):
            assert process.poll() is None and time.monotonic() < end, (study / "ui.log").read_text()
            time.sleep(0.3)
        yield process, address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def ids(study):
    """The experiment and its runs by name."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=tracking.uri(study))
    experiment = client.get_experiment_by_name("digits_in_view").experiment_id
    return experiment, {run.info.run_name: run.info.run_id for run in client.search_runs([experiment])}


@pytest.fixture
def look(browser, server, repo):
    """look(name, page, words...) -> the text of a page once it says these words; the picture is kept."""

    def go(name, page, *words):
        browser.open(f"{server[1]}/#{page}{'&' if '?' in page else '?'}workflowType=machine_learning")
        browser.wait(*words)
        browser.close_assistant()
        text = browser.wait(*words)
        browser.picture(repo / "build" / "screenshots" / f"mlflow-{name}.png")
        return text

    return go


def found(stage):
    """A search for the runs of a stage, best first: sorted so, they are not folded below what they came from."""
    search, order = quote(f"tags.stage = '{stage}'"), quote("metrics.`test/top1`")
    return f"searchFilter={search}&orderByKey={order}&orderByAsc=false"


def test_list_of_runs(look, ids):
    experiment, _ = ids
    words = ("Does a page show what was asked?", "data digits", "report digits_in_view", *PRETRAINED)
    look("runs", f"/experiments/{experiment}/runs", f"{RUNS} matching runs", *words)
    text = look(
        "finetuned", f"/experiments/{experiment}/runs?{found('finetune')}", "4 matching runs", "digits (", *FINETUNED
    )
    assert "pretrain byol" not in text


def test_compare_view_with_curves(look, browser, ids):
    experiment, _ = ids
    page = f"/experiments/{experiment}/runs?compareRunsMode=CHART&{found('finetune')}"
    text = look("compare", page, "drloc/loss", "drloc/over_chance", "Step", "4 matching runs", *FINETUNED)
    assert "No charts in this section" not in text
    assert browser.run("document.querySelectorAll('.scatterlayer .trace .js-line').length") >= 4, "lines are drawn"


def test_compare_two_runs_side_by_side(look, ids):
    experiment, runs = ids
    chosen = quote(json.dumps([runs[name] for name in (FINETUNED[0], FINETUNED[2])]))
    page = f"/compare-runs?runs={chosen}&experiments={quote(json.dumps([experiment]))}"
    shown = ("auxiliary.drloc.", "drloc/over_chance", "feature_std")  # of the metrics MLflow draws the first twenty
    text = look("two", page, "Comparing 2 Runs", FINETUNED[0], FINETUNED[2], *shown)
    assert "train.batch_size" in text


def test_artefacts_of_a_run(look, ids):
    experiment, runs = ids
    name = "finetune drloc pretrained byol 30% toy seed 0"
    page = f"/experiments/{experiment}/runs/{runs[name]}/artifacts/report.html"
    words = ("What the network saw", "Final numbers", "drloc/loss", "train.batch_size", "data_fingerprint")
    text = look("artefacts", page, "model", "views.npz", *words)
    assert text.count(name) >= 2, "on MLflow's page and on the run's"


def test_a_run_says_where_it_comes_from(look, ids):
    experiment, runs = ids
    name = FINETUNED[0]
    text = look("run", f"/experiments/{experiment}/runs/{runs[name]}", name, "Finished", "Parent run", PRETRAINED[0])
    assert "test/top1" in text


def test_system_metrics_have_their_tab(look, ids):
    experiment, runs = ids
    page = f"/experiments/{experiment}/runs/{runs[PRETRAINED[0]]}/system-metrics"
    look("system", page, "cpu_utilization_percentage", "network_receive_megabytes", "Time")


def test_the_server_is_for_this_machine_only(server):
    process, address = server
    listening = {
        connection.laddr.ip
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for connection in one.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    stranger = urllib.request.Request(f"{address}/api/2.0/mlflow/experiments/search", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(stranger, timeout=10)
