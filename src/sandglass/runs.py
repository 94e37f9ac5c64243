"""A run's two folders. `results/<stage>/<run>` is small, complete and for ever; `state/<stage>/<run>` is what a killed
run continues from. Every file is written to a temporary beside it, flushed, and renamed; result.json comes last and its
presence means done. A lease keeps a second writer out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import sandglass
from sandglass.errors import Exit, Problem
from sandglass.study import Run

HEARTBEAT_SECONDS = 15.0
LEASE_SECONDS = 90.0  # a lease of another machine without a heartbeat for so long is void


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a whole file or nothing: temporary in the same folder, flush, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises Problem R-101 (65) for a file that is not JSON."""
    try:
        return json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise Problem(
            "R-101", Exit.CONTENT, f"{path} is damaged", why=str(error), fix=f"remove {path.parent} and run again"
        ) from None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class RunFolder:
    """Where one run writes. `root` holds results/ and state/."""

    def __init__(self, root: Path, run: Run, study: str = "") -> None:
        self.run = run
        self.study = study  # the one that asked for it first; runs are shared between studies
        self.root = root
        self.results = root / "results" / run.folder
        self.state = root / "state" / run.stage / run.name
        self.result = root / "results" / run.result

    def done(self, deep: bool = False) -> bool:
        """Whether the result is there and whole: every file it lists has its size (`deep`: and its sha256)."""
        if not self.result.is_file():
            return False
        for name, facts in read_json(self.result)["files"].items():
            file = self.results / name
            if (
                not file.is_file()
                or file.stat().st_size != facts["bytes"]
                or (deep and sha256(file) != facts["sha256"])
            ):
                return False
        return True

    def begin(self, **derived: Any) -> None:
        """Write run.json: what was asked, and with what it is computed."""
        run = self.run
        write_json(
            self.results / "run.json",
            {
                "study": self.study,
                "stage": run.stage,
                "name": run.name,
                "seed": run.seed,
                "settings": run.settings,
                "needs": list(run.needs),
                "columns": run.columns,
                "derived": derived,
                "versions": versions(),
                "git": git_state(self.root),
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            },
        )

    def finish(self, rows: list[dict[str, Any]], **facts: Any) -> None:
        """Write result.json, last. `rows` are tidy numbers; every other file is listed with its sha256."""
        if (samples := self.state / "system.jsonl").exists():
            write_atomic(self.results / samples.name, samples.read_bytes())
        files = [file for file in sorted(self.results.rglob("*")) if file.is_file() and not file.name.startswith(".")]
        listed = {
            str(file.relative_to(self.results)): {"bytes": file.stat().st_size, "sha256": sha256(file)}
            for file in files
            if file != self.result and not (file.name.startswith("result") and file.suffix == ".json")
        }
        write_json(self.result, {"format": 1, "rows": rows, "files": listed, **facts})
        write_json(self.state / "status.json", {"exit": 0, "text": "done"})
        for name in ("checkpoints", "metrics.jsonl", "system.jsonl"):  # what a finished run will not need again
            gone = self.state / name
            shutil.rmtree(gone, ignore_errors=True) if gone.is_dir() else gone.unlink(missing_ok=True)

    def status(self) -> str:
        """done | running | stopped | failed (exit code) | waiting."""
        if self.done():
            return "done"
        if self.result.exists():
            return "damaged"
        lease = self.state / "lease.json"
        if lease.exists() and _alive(read_json(lease), lease):
            return "running"
        file = self.state / "status.json"
        if not file.exists():
            return "stopped" if self.state.exists() else "waiting"
        code = read_json(file)["exit"]
        return "stopped" if code == Exit.RESUMABLE else f"failed ({code})"

    @contextlib.contextmanager
    def lease(self) -> Iterator[None]:
        """Hold the run against a second writer. Raises Problem R-107 (77) if somebody else has it."""
        self.state.mkdir(parents=True, exist_ok=True)
        file = self.state / "lease.json"
        mine = {
            "host": socket.gethostname(),
            "boot": _boot(),
            "pid": os.getpid(),
            "pid_started": _pid_started(os.getpid()),
            "job": os.environ.get("SLURM_JOB_ID", ""),
            "token": uuid.uuid4().hex,
        }
        self._take(file, mine)
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                with contextlib.suppress(OSError):
                    file.touch()

        heart = threading.Thread(target=beat, daemon=True)
        heart.start()
        try:
            yield
        finally:
            stop.set()
            heart.join()
            with contextlib.suppress(OSError, Problem):
                if read_json(file)["token"] == mine["token"]:
                    file.unlink()

    def _take(self, file: Path, mine: dict[str, Any]) -> None:
        draft = file.with_name(f".lease.{mine['token']}.tmp")
        draft.write_text(json.dumps(mine))
        try:
            for _ in range(3):
                try:
                    os.link(draft, file)  # fails if it is there, and is never seen half-written
                    return
                except FileExistsError:
                    pass
                with contextlib.suppress(FileNotFoundError):
                    theirs = read_json(file)
                    if _alive(theirs, file):
                        raise Problem(
                            "R-107",
                            Exit.REFUSED,
                            f"{self.run.key} is being written by another process",
                            where=f"host {theirs['host']}, pid {theirs['pid']}"
                            + (f", job {theirs['job']}" * bool(theirs["job"])),
                            fix="wait for it, or stop it; `sandglass status` shows it",
                            kept="nothing changed",
                        )
                    # Of several that find a dead lease, one rename succeeds; the others meet its new lease.
                    file.replace(file.with_name(f".lease.{theirs['token']}.dead"))
                    file.with_name(f".lease.{theirs['token']}.dead").unlink(missing_ok=True)
            raise Problem("R-107", Exit.REFUSED, f"{self.run.key}: the lease changes hands too fast", fix="try again")
        finally:
            draft.unlink(missing_ok=True)


def _alive(lease: dict[str, Any], file: Path) -> bool:
    """Whether the holder of a lease may still write: known exactly on the same machine, by heartbeat elsewhere."""
    if lease["host"] == socket.gethostname():
        return bool(lease["boot"] == _boot() and _pid_started(lease["pid"]) == lease["pid_started"] is not None)
    return time.time() - file.stat().st_mtime < LEASE_SECONDS


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


def versions() -> dict[str, str]:
    """What computed this, for the record."""
    found = {"sandglass": sandglass.__version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in ("torch", "torchvision", "timm", "lightly", "numpy", "Pillow", "snakemake", "mlflow", "dvc"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def git_state(root: Path) -> dict[str, Any]:
    """The commit of the working copy and whether it had changes; empty outside git."""

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    return {"commit": commit, "changed": bool(git("status", "--porcelain", "--untracked-files=no"))} if commit else {}
