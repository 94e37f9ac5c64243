"""Whole runs by two processes, started as a person starts them."""

import json
import os
import shutil
import signal
import subprocess
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from .conftest import BIN

TOY = """\
study: toy
engine: {device: cpu, checkpoint_minutes: 0, log_every_steps: 5}
studies:
  toy:
    data: digits
    size: 32
    backbone: toy
    seeds: [0]
    pretrain: {objective: byol, epochs: 2, batch_size: 128, warmup_epochs: 1}
    finetune:
      init: pretrained
      auxiliary: drloc+masked_embedding
      labels: 0.1
      epochs: 3
      batch_size: 32
      warmup_epochs: 0
    objectives: {byol: {hidden: 32, out: 16}}
    auxiliary: {masked_embedding: {preset: sound}}
"""
LONG = TOY.replace("epochs: 2", "epochs: 60")
TORCHRUN = ("torchrun", "--standalone", "--nproc-per-node", "2", "-m", "sandglass")
OFF = {"SANDGLASS_TRACKING": "off"}


@pytest.fixture(scope="module")
def packed(tmp_path_factory, repo):
    folder = tmp_path_factory.mktemp("packed")
    (folder / "params.yaml").write_text(TOY)
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **OFF}
    subprocess.run(["sandglass", "data"], cwd=folder, env=env, check=True, capture_output=True)
    return folder


@pytest.fixture
def place(packed, tmp_path):
    def make(name, text=TOY):
        shutil.copytree(packed, tmp_path / name)
        (tmp_path / name / "params.yaml").write_text(text)
        return tmp_path / name

    return make


def result(folder, stage):
    (found,) = (folder / "results" / stage).iterdir()
    return found


def test_two_processes_end_where_one_does(place, command):
    one, two = place("one"), place("two")
    for stage in ("pretrain", "finetune"):
        command(one, "sandglass", stage, **OFF)
        command(two, *TORCHRUN, stage, **OFF)
        a, b = (load_file(result(folder, stage) / "model.safetensors") for folder in (one, two))
        for name in a:  # float32 adds in another order, and twenty steps carry that on
            torch.testing.assert_close(a[name], b[name], rtol=1e-2, atol=2e-3)
        logs = [(result(folder, stage) / "metrics.jsonl").read_text().splitlines() for folder in (one, two)]
        rows = [[json.loads(line) for line in log] for log in logs]
        assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
        for mine, theirs in zip(*rows, strict=True):
            if "loss" in mine:
                assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        facts = json.loads((result(two, stage) / "run.json").read_text())["derived"]
        assert facts["processes"] == 2


def start(folder, *words):
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **OFF}
    return subprocess.Popen(words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def workers(launcher):
    """The training processes under torchrun, by rank."""
    found = {}
    for child in psutil.Process(launcher.pid).children(recursive=True):
        if "sandglass" in " ".join(child.cmdline()):
            found[int(child.environ()["RANK"])] = child
    return found


def wait_for_a_checkpoint(folder, process, after=0):
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, process.stdout.read()
        for manifest in (folder / "state" / "pretrain").glob("*/checkpoints/manifest.json"):
            if json.loads(manifest.read_text())[0]["step"] > after:
                return json.loads(manifest.read_text())[0]["step"]
        time.sleep(0.1)
    raise AssertionError("no checkpoint")


def test_one_process_asked_to_stop_stops_both_at_the_same_step(place):
    folder = place("stopped", LONG)
    launcher = start(folder, *TORCHRUN, "pretrain")
    wait_for_a_checkpoint(folder, launcher)
    workers(launcher)[1].send_signal(signal.SIGTERM)  # not the one that writes
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode != 0 and "state saved" in output
    status = next((folder / "state" / "pretrain").glob("*/status.json"))
    assert json.loads(status.read_text())["exit"] == 75


def test_a_process_that_dies_ends_the_other_and_the_run_goes_on_later(place, command):
    folder = place("died", TOY.replace("epochs: 2", "epochs: 5"))
    launcher = start(folder, *TORCHRUN, "pretrain")
    step = wait_for_a_checkpoint(folder, launcher)
    began = time.monotonic()
    workers(launcher)[1].kill()
    launcher.communicate(timeout=120)
    assert launcher.returncode != 0 and time.monotonic() - began < 60
    done = command(folder, "sandglass", "pretrain", **OFF)  # one process goes on with what two began
    assert int(done.stdout.split("resumed at step ")[1].split()[0]) >= step
    calm = place("calm", TOY.replace("epochs: 2", "epochs: 5"))
    command(calm, "sandglass", "pretrain", **OFF)
    a, b = (load_file(result(where, "pretrain") / "model.safetensors") for where in (folder, calm))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=2e-2, atol=5e-3)


def test_a_batch_that_cannot_be_shared_is_one_screen(place, command):
    folder = place("odd", TOY.replace("batch_size: 128", "batch_size: 127"))
    done = command(folder, *TORCHRUN, "pretrain", check=False, **OFF)
    assert done.returncode != 0 and "error T-111 (exit 78)" in done.stderr and "multiple" in done.stderr


def test_snakemake_starts_a_training_on_several_processes_of_this_machine(repo, place, command):
    folder = place("snakemake")
    for name in ("Snakefile", "workflow", "profiles"):
        (folder / name).symlink_to(repo / name)
    words = ("--cores", "2", "--set-resources", "pretrain:tasks=2", "--", "phase_pretrain")
    command(folder, "snakemake", *words, **OFF)
    facts = json.loads((result(folder, "pretrain") / "run.json").read_text())["derived"]
    assert facts["processes"] == 2
