"""A run's two folders. `results/<stage>/<run>` is small, complete and for ever; `state/<stage>/<run>` is what a killed
run continues from. Every file is written to a temporary beside it, flushed, and renamed; result.json comes last and its
presence means done. A lease (lease.py) keeps a second writer out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import sandglass
from sandglass.errors import Exit, Problem
from sandglass.lease import Lease, alive
from sandglass.study import Run


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
        self.held: Lease | None = None

    def done(self, deep: bool = False) -> bool:
        """Whether the result is there and whole: every file it lists has its size (`deep`: and its sha256)."""
        return self.result.is_file() and self._whole(self.result, deep)

    def _whole(self, result: Path, deep: bool) -> bool:
        for name, facts in read_json(result)["files"].items():
            file = self.results / name
            if (
                not file.is_file()
                or file.stat().st_size != facts["bytes"]
                or (deep and sha256(file) != facts["sha256"])
            ):
                return False
        return True

    def restore(self) -> bool:
        """Put back a result.json that is gone although the run is whole.

        Snakemake removes a job's outputs before it starts it again, also when the job had finished and only the news
        was lost.
        """
        kept = self.state / self.result.name
        if not kept.is_file() or not self._whole(kept, deep=True):
            return False
        write_json(self.result, read_json(kept))
        return True

    def begin(self, **derived: Any) -> None:
        """Write run.json: what was asked, and with what it is computed."""
        run = self.run
        self.check()
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
        self.check()
        whole = {"format": 1, "rows": rows, "files": listed, **facts}
        write_json(self.state / self.result.name, whole)
        write_json(self.result, whole)
        (self.state / "status.json").unlink(missing_ok=True)
        for name in ("checkpoints", "metrics.jsonl", "system.jsonl"):  # what a finished run will not need again
            gone = self.state / name
            shutil.rmtree(gone, ignore_errors=True) if gone.is_dir() else gone.unlink(missing_ok=True)

    def log(self, text: str) -> None:
        """Add to state/<stage>/<run>/log.txt, which holds all attempts; Snakemake's own log holds the last one."""
        self.state.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError), (self.state / "log.txt").open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    def failed(self, problem: Problem) -> None:
        """Leave the reason in status.json: an exit code alone does not survive the scheduler."""
        self.log(problem.screen())
        with contextlib.suppress(OSError):
            write_json(self.state / "status.json", problem.record())

    def failure(self) -> Problem | None:
        """Why the last attempt ended, if it did with a problem."""
        file = self.state / "status.json"
        return Problem(**read_json(file)) if file.exists() else None

    def status(self) -> str:
        """done | running | stopped | failed (exit code) | waiting."""
        if self.done():
            return "done"
        if self.result.exists():
            return "damaged"
        if alive(self.state / "lease.json"):
            return "running"
        if (problem := self.failure()) is None:
            left = any((self.state / name).exists() for name in ("checkpoints", "lease.json"))
            return "stopped" if left else "waiting"
        return "stopped" if problem.exit == Exit.RESUMABLE else f"failed ({int(problem.exit)})"

    def lease(self) -> Lease:
        """Hold the run against a second writer. Raises Problem R-107 (77) if somebody else has it."""
        self.held = Lease(self.state / "lease.json", self.run.key)
        return self.held

    def check(self) -> None:
        """Before a write: Problem R-107 (77) if the run was taken over meanwhile."""
        if self.held:
            self.held.check()


def versions() -> dict[str, str]:
    """What computed this, for the record."""
    found = {"sandglass": sandglass.__version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in (
        "torch",
        "torchvision",
        "timm",
        "lightly",
        "numpy",
        "Pillow",
        "snakemake",
        "mlflow",
        "dvc",
        "pyautoattack",
    ):
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
