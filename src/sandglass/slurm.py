"""What SLURM is asked and told, through its own commands. Without SLURM every answer is empty."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

SETTLE_SECONDS = 120.0  # KillWait and an epilog; a cancelled job may take so long to be gone


def this_job() -> str:
    """The id of the job that this process runs in, or ''. It stays the same when SLURM requeues the job."""
    return os.environ.get("SLURM_JOB_ID", "")


def job_state(job: str) -> str | None:
    """RUNNING, COMPLETING, ...; 'GONE' for a job that SLURM has forgotten; None if nobody can be asked."""
    if not job:
        return None
    try:
        words = ["squeue", "--noheader", "--states", "all", "--jobs", job, "--format", "%T"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode:
        return "GONE" if "Invalid job id" in done.stderr else None
    return done.stdout.split()[0] if done.stdout.split() else "GONE"


def seconds_left() -> float | None:
    """Until this job's time limit; None outside a job, or without a limit.

    Newer versions say it in the environment; squeue knows it everywhere ([days-]hours:minutes:seconds).
    """
    if end := os.environ.get("SLURM_JOB_END_TIME"):
        return float(end) - time.time()
    left = _lines("squeue", "--noheader", "--jobs", this_job(), "--format", "%L") if this_job() else []
    return _seconds(left[0]) if left else None


def _seconds(text: str) -> float | None:
    """SLURM's [days-]hours:minutes:seconds as a number; None for UNLIMITED and the like."""
    days, _, clock = text.strip().rpartition("-")
    try:
        seconds = 0
        for part in clock.split(":"):
            seconds = 60 * seconds + int(part)
        return float(86400 * int(days or 0) + seconds)
    except ValueError:
        return None


def jobs_of(root: Path) -> list[str]:
    """This user's jobs that Snakemake submitted from a folder: pending, running and ending ones."""
    rows = [line.split("|", 2) for line in _lines("squeue", "--me", "--noheader", "--format", "%A|%Z|%k")]
    return [job for job, folder, about in rows if Path(folder) == root.resolve() and about.startswith("rule_")]


def cancel(root: Path) -> int:
    """Stop the jobs that a folder has in the queue and wait until they are gone; how many there were.

    A training saves its state on the way out.
    """
    jobs = jobs_of(root)
    if jobs:
        _lines("scancel", *jobs)
        end = time.monotonic() + SETTLE_SECONDS
        while jobs_of(root) and time.monotonic() < end:
            time.sleep(1)
    return len(jobs)


def _lines(*words: str) -> list[str]:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []
