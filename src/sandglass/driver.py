"""The process that runs the DAG, and what it owes to the one before it.

A driver that dies (SIGKILL, a login node that restarts) leaves Snakemake's lock and jobs that nobody watches. Its lease
tells it from a driver that lives: then the next one clears the lock, lets the jobs that were left save and stop, and
their runs go on as its own jobs. The person types the same command again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from sandglass import lease, slurm, tracking
from sandglass.errors import Exit, Problem
from sandglass.runs import RunFolder
from sandglass.study import Run

_held: list[lease.Lease] = []  # for as long as this process is a driver


def prepare(root: Path, runs: Iterable[Run]) -> None:
    """Before Snakemake looks at the folder: the lock of a dead driver goes, and every result that is there is whole.

    Snakemake goes by result.json alone, and DVC would record a damaged folder as the new truth. Raises Problem R-113
    (65) for results whose other files are missing or cut.
    """
    damaged = [run for run in runs if run.stage != "report" and (root / "results" / run.result).exists()]
    damaged = [run for run in damaged if not RunFolder(root, run).done()]
    if damaged:
        raise Problem(
            "R-113",
            Exit.CONTENT,
            f"{len(damaged)} of the results are not whole",
            where="\n".join(f"results/{run.folder}" for run in damaged[:6]) + "\n..." * (len(damaged) > 6),
            why="files that result.json lists are missing or have another size",
            fix="`dvc checkout` brings recorded results back; or remove these folders to compute them again",
            kept="everything",
        )
    file = _file(root)
    if file.exists() and not lease.alive(file):
        shutil.rmtree(root / ".snakemake" / "locks", ignore_errors=True)


def begin(root: Path) -> None:
    """Become the driver: stop what a dead one left, and start the follower that shows runs in MLflow."""
    file = _file(root)
    if (dead := lease.read(file)) and not lease.alive(file):
        stopped = _stop_processes(root, dead["token"]) + slurm.cancel(root)
        if stopped:
            text = f"a driver died here earlier; {stopped} jobs that it left were stopped, and their runs go on now"
            print(text, file=sys.stderr, flush=True)
    mine = lease.Lease(file, "this folder's workflow")
    _held.append(mine.__enter__())
    os.environ["SANDGLASS_DRIVER"] = mine.token  # jobs inherit it and write it in their leases
    with contextlib.suppress(OSError):
        tracking.start(root, os.getpid())


def end() -> None:
    """The DAG has ended, well or not."""
    while _held:
        _held.pop().__exit__(None, None, None)


def _stop_processes(root: Path, driver: str) -> int:
    """End the local jobs of a dead driver; a training saves its state on TERM."""
    left = {}
    for file in (root / "state").glob("*/*/lease.json"):
        holder = lease.read(file)
        if holder and holder["driver"] == driver and not holder["job"] and lease.alive(file):
            left[file] = holder["pid"]
    for number, seconds in ((signal.SIGTERM, slurm.SETTLE_SECONDS), (signal.SIGKILL, 5.0)):
        end_at = time.monotonic() + seconds
        for file, pid in left.items():
            if lease.alive(file):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        while any(lease.alive(file) for file in left) and time.monotonic() < end_at:
            time.sleep(0.2)
    return len(left)


def _file(root: Path) -> Path:
    return root / "state" / "driver.json"
