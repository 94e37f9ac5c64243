"""A place to type `snakemake --profile slurm` in, and the clusters that it meets."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .slurm import Slurm, running, until

TRAINING = """\
study: toy
engine: {device: cpu, checkpoint_minutes: 0, log_every_steps: 5}
studies:
  toy:
    data: digits
    size: 32
    backbone: toy
    seeds: [0]
    pretrain: {objective: byol, epochs: 25, batch_size: 128, warmup_epochs: 1}
    objectives: {byol: {hidden: 32, out: 16}}
"""
SHORTER = {  # of the shipped profile, only what a person waits for
    "status-checks: 20": "status-checks: 2",
}


class Place:
    """A folder with the repository's workflow, the shipped profile with shorter waits, and one study."""

    def __init__(self, root: Path, repo: Path, cluster: Slurm, params: str = TRAINING, **profile: str) -> None:
        self.root, self.cluster = root, cluster
        for name in ("Snakefile", "workflow", "profiles", "envs"):
            (root / name).symlink_to(repo / name)
        (root / "params.yaml").write_text(params)
        text = (repo / "slurm" / "config.yaml").read_text()
        for old, new in {**SHORTER, **profile}.items():
            assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in slurm/config.yaml"
            text = text.replace(old, new)
        (root / "slurm").mkdir()
        (root / "slurm" / "config.yaml").write_text(text)

    def call(self, *words: str) -> str:
        """What a command prints that ends by itself."""
        return subprocess.run(
            words, cwd=self.root, env=self.cluster.environment, stdout=subprocess.PIPE, check=True, text=True
        ).stdout

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """What a person types, with what more they type, in the background; driver.log grows."""
        with (self.root / "driver.log").open("ab") as log:
            line = ["snakemake", "--profile", "slurm", *words]
            return subprocess.Popen(line, cwd=self.root, env=self.cluster.environment, stdout=log, stderr=log)

    def finish(self, driver: subprocess.Popen[bytes], code: int = 0, seconds: float = 1100) -> None:
        """The command ends by itself, with this exit code, and leaves neither a job nor a process."""
        assert driver.wait(seconds) == code, f"exit {driver.returncode}\n{self.said()[-6000:]}"
        assert not [job for job in self.jobs() if job["state"] in ("PENDING", "RUNNING", "COMPLETING")], self.jobs()
        until(
            lambda: not self.cluster.processes(str(self.root)), 100, "the end of the last process (MLflow's follower)"
        )

    def said(self) -> str:
        return (self.root / "driver.log").read_text(errors="replace")

    def jobs(self, rule: str = "") -> list[dict[str, str]]:
        """Every job that SLURM has had from this folder, the earliest first."""
        rows = self.cluster("squeue", "-h", "-r", "-t", "all", "-S", "V,i", "-o", "%i|%T|%k|%D|%N|%Z").splitlines()
        keys = ("id", "state", "comment", "nodes", "on", "folder")
        jobs = [dict(zip(keys, row.split("|"), strict=True)) for row in rows]
        return [job for job in jobs if job["folder"] == str(self.root) and job["comment"].startswith(f"rule_{rule}")]

    def running(self, rule: str) -> dict[str, str]:
        (job,) = [job for job in self.jobs(rule) if job["state"] == "RUNNING"]
        return job

    def results(self, stage: str) -> list[Path]:
        return sorted(self.root.glob(f"results/{stage}/*/result*.json"))

    def training(self) -> Path:
        """The folder of the one pretrain run."""
        (result,) = self.results("pretrain")
        return result.parent

    def log(self) -> str:
        """What the one pretrain run said, in all its attempts."""
        (file,) = self.root.glob("state/pretrain/*/log.txt")
        return file.read_text()

    def has_saved(self) -> bool:
        """Whether the pretrain run has a checkpoint to go on from."""
        return any(self.root.glob("state/pretrain/*/checkpoints/manifest.json"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Slurm]:
    """SLURM without accounting."""
    with running() as slurm:
        yield slurm


@pytest.fixture(scope="session")
def accounted() -> Iterator[Slurm]:
    """SLURM with accounting in MariaDB."""
    with running(accounting=True) as slurm:
        yield slurm
