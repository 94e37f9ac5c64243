"""Running the command as a person does, in a folder of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent

TOY = """\
study: toy
engine: {device: cpu, checkpoint_minutes: 0, log_every_steps: 5}
studies:
  toy:
    data: digits
    size: 32
    backbone: toy
    seeds: [0, 1]
    pretrain: {objective: byol, epochs: 2, batch_size: 128, warmup_epochs: 1}
    probe: {probe: [knn, linear], init: [pretrained, random]}
    finetune:
      init: [scratch, pretrained]
      auxiliary: [none, drloc+masked_embedding]
      labels: 0.1
      views: plain
      epochs: 2
      batch_size: 32
      warmup_epochs: 0
    attack: {attack: fgsm, images: 64}
    objectives: {byol: {hidden: 32, out: 16}}
    auxiliary: {masked_embedding: {preset: sound}, drloc: {preset: sound}}
    attacks: {fgsm: {epsilons: [0.0, 1.0, 8.0]}}
"""


@pytest.fixture
def command():
    """command(folder, "snakemake", ...) -> the finished process, with this environment's programs first."""

    def run(folder: Path, *words: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
        env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **environment}
        env.pop("MLFLOW_TRACKING_URI", None) if "MLFLOW_TRACKING_URI" not in environment else None
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=1200)
        assert not check or done.returncode == 0, f"{words} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def workplace(tmp_path, repo):
    """A folder with the repository's workflow and the toy study as its params.yaml."""
    for name in ("Snakefile", "workflow", "profiles", "slurm", "envs", "dvc.yaml"):
        (tmp_path / name).symlink_to(repo / name)
    (tmp_path / "params.yaml").write_text(TOY)
    return tmp_path
