"""A run that is killed at any instant continues to the same bits."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOY = """\
study: toy
engine: {device: cpu, checkpoint_minutes: 0, log_every_steps: 3}
studies:
  toy:
    data: digits
    size: 32
    backbone: hourglass_tiny
    seeds: [3]
    pretrain: {objective: byol, epochs: 5, batch_size: 64, warmup_epochs: 1}
    finetune:
      init: pretrained
      auxiliary: drloc+masked_embedding
      labels: 0.3
      epochs: 8
      batch_size: 32
      warmup_epochs: 1
    objectives: {byol: {hidden: 32, out: 16}}
"""
KILLS = 20
FILES = ("model.safetensors", "metrics.jsonl", "config.json")


def campaign(root: Path, stage: str, kills: int) -> int:
    script = Path(__file__).with_name("kill_campaign.py")
    words = [sys.executable, str(script), str(root), str(root / "params.yaml"), stage, str(kills), stage]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The same runs, undisturbed."""
    root = tmp_path_factory.mktemp("calm")
    (root / "params.yaml").write_text(TOY)
    for stage in ("data", "pretrain", "finetune"):
        assert campaign(root, stage, kills=0) == 0
    return root


def result(root: Path, stage: str) -> Path:
    (folder,) = (root / "results" / stage).iterdir()
    return folder


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_killed_twenty_times_ends_bit_equal(calm, tmp_path, stage):
    (tmp_path / "params.yaml").write_text(TOY)
    for need in ("data", "pretrain") if stage == "finetune" else ("data",):
        shutil.copytree(calm / "results" / need, tmp_path / "results" / need)
    assert campaign(tmp_path, stage, KILLS) == KILLS
    ours, theirs = result(tmp_path, stage), result(calm, stage)
    assert ours.name == theirs.name
    for name in FILES:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    assert not (tmp_path / "state" / stage / ours.name / "checkpoints").exists(), "a finished run keeps no checkpoints"


def test_term_saves_and_says_resumable(calm, tmp_path):
    import signal
    import time

    (tmp_path / "params.yaml").write_text(TOY.replace("epochs: 5", "epochs: 80"))
    shutil.copytree(calm / "results" / "data", tmp_path / "results" / "data")
    words = [sys.executable, "-m", "sandglass", "pretrain"]
    process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    manifest = f"state/pretrain/{plan_name(tmp_path)}/checkpoints/manifest.json"
    while not (tmp_path / manifest).exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75, process.stderr.read()
    assert "run again to go on" in process.stderr.read()


def plan_name(root: Path) -> str:
    from sandglass.config import load
    from sandglass.study import plan

    return next(run.name for run in plan(load(root / "params.yaml")) if run.stage == "pretrain")
