"""One writer at a time. A lease is a file that names its holder (machine, boot, process, scheduler job) and is touched
while the holder lives, so that whoever finds it can tell a live holder from a dead one, on this machine or another.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from sandglass import slurm
from sandglass.errors import Exit, Problem

HEARTBEAT_SECONDS = 15.0
LEASE_SECONDS = 90.0  # a lease of another machine without a heartbeat for so long is void


class Lease:
    """Use as a context. Raises Problem R-107 (77) when somebody else holds it, and from `check` when it was lost."""

    def __init__(self, file: Path, what: str) -> None:
        self.file, self.what, self.token = file, what, uuid.uuid4().hex
        self._stop = threading.Event()

    def __enter__(self) -> Lease:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._take()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._heart.join()
        if self.ours():
            with contextlib.suppress(OSError):
                self.file.unlink()

    def ours(self) -> bool:
        """Whether the file still names this holder."""
        found = read(self.file)
        return found is not None and found["token"] == self.token

    def check(self) -> None:
        """To be called before every write: a process that was away for long may have been taken for dead."""
        if not self.ours():
            why = "it did not answer for long and was taken for dead"
            raise Problem("R-107", Exit.REFUSED, f"{self.what} was taken over by another process", why=why)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                if self.ours():
                    self.file.touch()

    def _take(self) -> None:
        draft = self.file.with_name(f".{self.file.stem}.{self.token}.tmp")
        draft.write_text(json.dumps(_me() | {"token": self.token}))
        end = time.monotonic() + LEASE_SECONDS
        try:
            while True:
                try:
                    os.link(draft, self.file)  # fails if it is there, and is never seen half-written
                    return
                except FileExistsError:
                    pass
                if (theirs := read(self.file)) is None:
                    continue
                if not alive(self.file) or _given_up(theirs):
                    bury(self.file, theirs["token"])
                elif _ending(theirs) and time.monotonic() < end:
                    time.sleep(1)
                else:
                    raise Problem(
                        "R-107",
                        Exit.REFUSED,
                        f"{self.what} is being written by another process",
                        where=f"host {theirs['host']}, pid {theirs['pid']}"
                        + (f", job {theirs['job']}" * bool(theirs["job"])),
                        fix="wait for it, or stop it; `sandglass status` shows it",
                        kept="nothing changed",
                    )
        finally:
            draft.unlink(missing_ok=True)


def read(file: Path) -> dict[str, Any] | None:
    """The holder that a lease names; None if there is no lease."""
    try:
        return dict(json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except ValueError:  # a power cut: nobody can hold what names nobody, so its heartbeat decides
        return {"host": "", "boot": "", "pid": 0, "pid_started": None, "job": "", "driver": "", "token": "damaged"}


def alive(file: Path) -> bool:
    """Whether the holder may still write: known exactly on the same machine, by its heartbeat elsewhere."""
    holder = read(file)
    if holder is None:
        return False
    if holder["host"] == socket.gethostname():
        return holder["boot"] == _boot() and _pid_started(holder["pid"]) == holder["pid_started"] is not None
    try:
        return time.time() - file.stat().st_mtime < LEASE_SECONDS
    except FileNotFoundError:
        return False


def bury(file: Path, token: str) -> None:
    """Remove a dead holder's lease. A new holder's, which may be there by now, is put back."""
    grave = file.with_name(f".{file.stem}.{uuid.uuid4().hex}.dead")
    with contextlib.suppress(FileNotFoundError, FileExistsError):
        file.rename(grave)
        if (moved := read(grave)) and moved["token"] != token:
            os.link(grave, file)
    grave.unlink(missing_ok=True)


def _me() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": os.getpid(),
        "pid_started": _pid_started(os.getpid()),
        "job": slurm.this_job(),
        "driver": os.environ.get("SANDGLASS_DRIVER", ""),
    }


def _given_up(holder: dict[str, Any]) -> bool:
    """Whether SLURM has given up the job of a holder on another machine: no need to wait for its heart to stop."""
    if not holder["job"] or holder["host"] == socket.gethostname():
        return False
    if holder["job"] == slurm.this_job():
        return True  # an earlier start of this very job, on a node that was lost
    return slurm.job_state(holder["job"]) not in (None, "RUNNING", "COMPLETING", "SUSPENDED")


def _ending(holder: dict[str, Any]) -> bool:
    """Whether a live holder is on its way out: its job was cancelled, preempted or requeued."""
    if holder["job"] and holder["job"] == slurm.this_job():
        return bool(holder["pid"] != os.getpid())
    return slurm.job_state(holder["job"]) not in (None, "RUNNING", "SUSPENDED")


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _pid_started(pid: int) -> float | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None
