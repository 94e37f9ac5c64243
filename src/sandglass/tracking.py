"""Run folders -> MLflow, while runs are active or later; the folders stay the truth.

Jobs never talk to MLflow. One follower process for each working folder, kept single by a file lock, reads what jobs
write and mirrors it: a slow, locked or absent server cannot slow or fail a run, and eight jobs that start on an empty
folder cannot break the store. Publishing is idempotent: how far a run has been mirrored is written in MLflow itself,
and a point written twice is one point, because its time stamp is a function of its step.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sandglass.errors import Exit, Problem
from sandglass.runs import RunFolder, read_json
from sandglass.study import STAGES, Run

POLL_SECONDS = 2.0
IDLE_SECONDS = 5.0  # a follower leaves when nothing has been active for so long
_BATCH = 1000  # MLflow's limit of metrics a call


def uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or a database in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _local(root)


def _local(root: Path) -> str:
    return f"sqlite:///{root.resolve() / 'mlflow.db'}"


def _make_store(root: Path) -> None:
    """A database that appears whole: whoever opened it half made, `mlflow ui` too, would break it for good."""
    import mlflow

    store, draft = root / "mlflow.db", root / "state" / "mlflow.db.tmp"
    if not store.exists():
        draft.unlink(missing_ok=True)
        mlflow.MlflowClient(tracking_uri=f"sqlite:///{draft.resolve()}").search_experiments()
        draft.replace(store)


def _lock(root: Path) -> FileLock:
    (root / "state").mkdir(parents=True, exist_ok=True)
    return FileLock(root / "state" / "mlflow.lock")


@contextlib.contextmanager
def mirrored(root: Path) -> Iterator[None]:
    """Inside, a follower is there. It never waits for MLflow and never fails because of it."""
    with contextlib.suppress(OSError):
        _start_follower(root)
    yield


def _start_follower(root: Path) -> None:
    if os.environ.get("SANDGLASS_TRACKING") == "off":
        return
    try:
        _lock(root).acquire(blocking=False).lock.release()
    except Timeout:
        return  # there is one
    with (root / "state" / "mlflow.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "sandglass.tracking", str(root.resolve())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def follow(root: Path) -> None:
    """Mirror until nothing has been active for IDLE_SECONDS. Returns at once if somebody else follows."""
    try:
        with _lock(root).acquire(blocking=False):
            mirror, quiet = _Mirror(root), time.monotonic()
            while time.monotonic() - quiet < IDLE_SECONDS:
                if mirror.update():
                    quiet = time.monotonic()
                time.sleep(POLL_SECONDS)
    except Timeout:
        return


def publish(root: Path, wait_seconds: float = 120.0) -> int:
    """Bring MLflow up to date once. Returns the number of runs there.

    Raises Problem N-110 (69) when the store cannot be reached or stays locked; nothing is lost then.
    """
    try:
        with _lock(root).acquire(timeout=wait_seconds):
            mirror = _Mirror(root)
            mirror.update()
            return len(mirror.known)
    except Timeout:
        what = "another process is publishing this folder"
        raise Problem("N-110", Exit.NETWORK, what, fix="wait for it", kept="all run folders") from None
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("mlflow", "sqlalchemy", "requests", "urllib3", "sqlite3"):
            raise
        why, fix = str(error).splitlines()[0], "check MLFLOW_TRACKING_URI, then `sandglass publish`"
        what = "cannot write to MLflow"
        raise Problem("N-110", Exit.NETWORK, what, where=uri(root), why=why, fix=fix, kept="all run folders") from None


class _Mirror:
    """What MLflow has of a working folder."""

    def __init__(self, root: Path) -> None:
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        import mlflow

        if uri(root) == _local(root):
            _make_store(root)
        self.root, self.client = root, mlflow.MlflowClient(tracking_uri=uri(root))
        self.experiments: dict[str, str] = {}
        self.known: dict[str, dict[str, Any]] = {}  # run key -> id, start, tags as MLflow has them

    def update(self) -> bool:
        """Mirror every run folder; whether anything was written or is active."""
        active = False
        for stage in STAGES:
            for file in sorted((self.root / "results" / stage).glob("*/run.json")):
                with contextlib.suppress(FileNotFoundError):  # being replaced just now
                    active |= self.one(file)
        return active

    def one(self, file: Path) -> bool:
        facts = read_json(file)
        run = _run_of(facts)
        folder = RunFolder(self.root, run)
        there = self.known.get(run.key)
        stamp = str(folder.result.stat().st_mtime_ns) if folder.result.exists() else ""
        if there and stamp and there["tags"].get("sandglass.result") == stamp:
            return False
        state = folder.status()
        there = there or self.find(facts, run)
        if stamp and there["tags"].get("sandglass.result") == stamp:
            return False
        wrote = self.curves(folder, there, whole=state == "done")
        status = {"done": "FINISHED", "running": "RUNNING", "stopped": "KILLED"}.get(state, "FAILED")
        if state == "done":
            self.result(folder, facts, there, stamp)
            wrote = True
        if there.get("status") != status:
            self.client.update_run(there["id"], status=status)
            there["status"] = status
            if status == "FINISHED":
                self.client.set_terminated(there["id"], status)
        return wrote or state == "running"

    def find(self, facts: dict[str, Any], run: Run) -> dict[str, Any]:
        """The MLflow run of a run folder; made if there is none."""
        from mlflow.entities import Param, RunTag

        experiment = self.experiment(facts["study"])
        found = self.client.search_runs([experiment], f"tags.`sandglass.run` = '{run.key}'", max_results=1)
        if found:
            info, tags = found[0].info, dict(found[0].data.tags)
        else:
            parent = next((key for key in reversed(run.needs) if not key.startswith("data/")), None)
            tags = {
                "sandglass.run": run.key,
                "sandglass.stage": run.stage,
                "sandglass.needs": ", ".join(run.needs)[:5000],
                "git.commit": facts["git"].get("commit", ""),
            }
            if parent and run.stage != "report" and (above := self.known.get(parent)):
                tags["mlflow.parentRunId"] = above["id"]
            info = self.client.create_run(experiment, run_name=f"{run.stage} {run.name}", tags=tags).info
            given = _flat(run.settings | {"seed": run.seed, **facts.get("derived", {})})
            params = [Param(key[:250], str(value)[:6000]) for key, value in given.items()]
            self.client.log_batch(info.run_id, params=params, tags=[RunTag("sandglass.bytes", "0")])
            self.dataset(info.run_id, run)
        self.known[run.key] = {"id": info.run_id, "start": info.start_time, "tags": tags, "status": info.status}
        return self.known[run.key]

    def experiment(self, name: str) -> str:
        if name not in self.experiments:
            found = self.client.get_experiment_by_name(name)
            if found:
                self.experiments[name] = found.experiment_id
            else:
                local = "MLFLOW_TRACKING_URI" not in os.environ
                place = (self.root / "mlruns" / name).resolve().as_uri() if local else None
                self.experiments[name] = self.client.create_experiment(name, artifact_location=place)
        return self.experiments[name]

    def dataset(self, run_id: str, run: Run) -> None:
        """Name the packed data as the run's input."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        for key in run.needs if run.stage != "report" else ():
            info = self.root / "results" / key / "info.json"
            if not key.startswith("data/") or not info.exists():
                continue
            facts = read_json(info)
            source = json.dumps({"uri": f"results/{key}"})
            profile = json.dumps({"counts": facts["counts"]})
            data = Dataset(facts["name"], facts["fingerprint"][:36], "local", source, profile=profile)
            self.client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", run.stage)])])

    def curves(self, folder: RunFolder, there: dict[str, Any], whole: bool) -> bool:
        """Log what is new in metrics.jsonl: all of a finished run's rows, else those that a checkpoint confirms."""
        from mlflow.entities import Metric, RunTag

        live = folder.state / "metrics.jsonl"
        file = folder.results / "metrics.jsonl" if whole else live
        if not file.exists():
            return False
        confirmed = file.stat().st_size
        if not whole:
            manifest = folder.state / "checkpoints" / "manifest.json"
            confirmed = read_json(manifest)[0]["metrics_bytes"] if manifest.exists() else 0
        done = int(there["tags"].get("sandglass.bytes", 0))
        if confirmed <= done:
            return False
        with file.open("rb") as text:
            text.seek(done)
            rows = [json.loads(line) for line in text.read(confirmed - done).splitlines()]
        points = [
            Metric(_metric(key), value, there["start"] + row["step"], row["step"])
            for row in rows
            for key, value in row.items()
            if key != "step"
        ]
        for i in range(0, len(points), _BATCH):
            self.client.log_batch(there["id"], metrics=points[i : i + _BATCH])
        there["tags"]["sandglass.bytes"] = str(confirmed)
        self.client.log_batch(there["id"], tags=[RunTag("sandglass.bytes", str(confirmed))])
        return True

    def result(self, folder: RunFolder, facts: dict[str, Any], there: dict[str, Any], stamp: str) -> None:
        """Log the numbers of result.json and the files a person looks for."""
        from mlflow.entities import Metric, RunTag

        points = [
            Metric(_result_name(row), row["value"], there["start"], 0) for row in read_json(folder.result)["rows"]
        ]
        for i in range(0, len(points), _BATCH):
            self.client.log_batch(there["id"], metrics=points[i : i + _BATCH])
        for file in sorted(folder.results.glob("*")):
            if file.is_file() and folder.run.stage != "data" and not file.name.startswith("."):
                place = "model" if file.name in ("model.safetensors", "config.json") else None
                self.client.log_artifact(there["id"], str(file), place)
        there["tags"]["sandglass.result"] = stamp
        self.client.log_batch(there["id"], tags=[RunTag("sandglass.result", stamp)])


def _run_of(facts: dict[str, Any]) -> Run:
    keys = ("stage", "name", "seed", "settings", "columns")
    return Run(needs=tuple(facts["needs"]), **{key: facts[key] for key in keys})


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def _metric(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _result_name(row: dict[str, Any]) -> str:
    epsilon = f"/epsilon_{row['epsilon']:g}_255" if row.get("epsilon") is not None else ""
    return _metric(f"{row.get('split', 'result')}/{row['metric']}{epsilon}")


if __name__ == "__main__":
    follow(Path(sys.argv[1]))
