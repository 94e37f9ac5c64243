"""What a driver that starts finds of one that died, and what repeated attempts repeat."""

import json
import os
import shutil
import signal
import subprocess
import time

import psutil
import pytest

from .conftest import BIN, TOY
from .test_dag import executed

LONG = TOY.replace("seeds: [0, 1]", "seeds: [0]").replace("objective: byol, epochs: 2", "objective: byol, epochs: 16")
SNAKEMAKE = ("snakemake", "--cores", "2", "--", "phase_pretrain")


def start(folder, *words):
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "SANDGLASS_TRACKING": "off"}
    return subprocess.Popen(words, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def checkpoint(folder):
    for manifest in (folder / "state" / "pretrain").glob("*/checkpoints/manifest.json"):
        return json.loads(manifest.read_text())[0]["step"]
    return 0


def until(condition, seconds=90):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def trainers(folder):
    """Live processes that train in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and "sandglass pretrain" in " ".join(process.cmdline()).replace("-m ", ""):
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if "python" in process.name() or "sandglass" in process.name()]


@pytest.fixture
def calm(workplace, command, tmp_path_factory):
    """The files of the same pretraining, undisturbed."""
    (workplace / "params.yaml").write_text(LONG)
    folder = tmp_path_factory.mktemp("calm")
    (folder / "params.yaml").write_text(LONG)
    for stage in ("data", "pretrain"):
        command(folder, "sandglass", stage, SANDGLASS_TRACKING="off")
    return next((folder / "results" / "pretrain").iterdir())


def test_a_killed_driver_is_followed_by_the_same_command(calm, workplace, command):
    driver = start(workplace, *SNAKEMAKE)
    step = until(lambda: checkpoint(workplace))
    orphans = trainers(workplace)
    driver.kill()
    driver.wait()
    assert orphans and all(orphan.is_running() for orphan in orphans), "the training outlives its driver"
    assert list((workplace / ".snakemake" / "locks").iterdir())
    done = command(workplace, *SNAKEMAKE, SANDGLASS_TRACKING="off")
    assert "a driver died here earlier; 1 jobs" in done.stderr
    assert not any(orphan.is_running() for orphan in orphans)
    log = next((workplace / "state" / "pretrain").glob("*/log.txt")).read_text()
    assert int(log.split("resumed at step ")[1].split()[0]) >= step and log.count("begins on") == 2
    ours = next((workplace / "results" / "pretrain").iterdir())
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (ours / name).read_bytes() == (calm / name).read_bytes(), name
    assert not (workplace / "state" / "driver.json").exists() and trainers(workplace) == []


def test_a_lock_of_a_living_driver_is_respected(workplace, command):
    (workplace / "params.yaml").write_text(LONG.replace("epochs: 16", "epochs: 1000"))
    driver = start(workplace, *SNAKEMAKE)
    try:
        until(lambda: checkpoint(workplace))
        second = command(workplace, *SNAKEMAKE, check=False)
        assert second.returncode != 0 and "lock" in second.stderr.lower()
        assert len({p.pid for p in trainers(workplace)}) >= 1 and driver.poll() is None
        assert executed(command(workplace, "snakemake", "-n", "--", "phase_pretrain")) == 1, "looking is allowed"
    finally:
        driver.send_signal(signal.SIGINT)  # it waits for the training
        for training in trainers(workplace):
            training.terminate()
        driver.wait(timeout=120)
    until(lambda: not trainers(workplace))


def test_a_finished_run_whose_news_was_lost_is_not_computed_again(workplace, command):
    (workplace / "params.yaml").write_text(TOY.replace("seeds: [0, 1]", "seeds: [0]"))
    command(workplace, *SNAKEMAKE, SANDGLASS_TRACKING="off")
    ours = next((workplace / "results" / "pretrain").iterdir())
    before = {file.name: file.stat().st_mtime_ns for file in ours.iterdir() if file.name != "result.json"}
    (ours / "result.json").unlink()
    assert executed(command(workplace, *SNAKEMAKE, SANDGLASS_TRACKING="off")) == 1
    assert {file.name: file.stat().st_mtime_ns for file in ours.iterdir() if file.name != "result.json"} == before
    shutil.rmtree(ours)
    command(workplace, *SNAKEMAKE, SANDGLASS_TRACKING="off")
    assert (ours / "model.safetensors").stat().st_mtime_ns != before["model.safetensors"], "a removed run is"


def test_a_lasting_error_is_attempted_once_and_mended_by_the_next_command(workplace, command):
    wrong = TOY.replace("warmup_epochs: 1}", "warmup_epochs: 0, lr_per_256: 1e30, optimizer: sgd, clip_norm: 0}")
    (workplace / "params.yaml").write_text(wrong.replace("seeds: [0, 1]", "seeds: [0]"))
    done = command(workplace, *SNAKEMAKE[:3], "--retries", "2", "--", "phase_pretrain", check=False)
    assert done.returncode != 0
    assert (done.stdout + done.stderr).count("Error in rule pretrain") == 3
    assert "error T-103 (exit 76)" in next((workplace / "logs" / "pretrain").iterdir()).read_text(), (
        "the last one says why"
    )
    log = next((workplace / "state" / "pretrain").glob("*/log.txt"))
    assert log.read_text().count("begins on") == 1, "only the first one trained"
    assert "failed (76)" in command(workplace, "sandglass", "status").stdout
    again = command(workplace, *SNAKEMAKE, check=False)
    assert again.returncode != 0 and log.read_text().count("begins on") == 2, "a person's new try is a first attempt"
