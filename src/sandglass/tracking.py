"""Run folders -> MLflow, while runs are active or later; the folders stay the truth.

Jobs never talk to MLflow. One follower process for each working folder, kept single by a file lock, reads what jobs
write and mirrors it: a slow, locked or absent server cannot slow or fail a run, and a dozen jobs that start on an empty
folder cannot break the store. Publishing is idempotent: how far a run has been mirrored is written in MLflow itself,
and a point written twice is one point, because its time stamp is a function of its place in the run.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sandglass.errors import Exit, Problem
from sandglass.runs import RunFolder, read_json
from sandglass.study import STAGES, Run

POLL_SECONDS = 2.0
IDLE_SECONDS = 5.0  # a follower leaves when nothing has been active for so long
RETRY_SECONDS = 10.0  # between attempts at a store that is locked or cannot be reached
PATIENCE_SECONDS = 90.0  # and when nothing is active, it leaves after so long
_BATCH = 1000  # MLflow's limit of metrics a call
_STORE = ("mlflow", "sqlalchemy", "requests", "urllib3", "sqlite3")  # whose errors are the store's
_ENDED = {"done": "FINISHED", "stopped": "KILLED", "waiting": "KILLED"}  # else it failed


def uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or a database in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _local(root)


def _local(root: Path) -> str:
    return f"sqlite:///{root.resolve() / 'mlflow.db'}"


def _lock(root: Path, name: str) -> FileLock:
    """`follower`: there is one. `mlflow`: somebody is writing to MLflow just now, a follower or `sandglass publish`."""
    (root / "state").mkdir(parents=True, exist_ok=True)
    return FileLock(root / "state" / f"{name}.lock")


# ------------------------------------------------------------------------------------------ who mirrors, and when


@contextlib.contextmanager
def mirrored(root: Path) -> Iterator[None]:
    """Inside, a follower is there. It never waits for MLflow and never fails because of it.

    A job of a cluster starts none: two nodes that write one SQLite file on a shared file system break it. There the
    process that submits the jobs starts it.
    """
    if "SLURM_JOB_ID" not in os.environ:
        with contextlib.suppress(OSError):
            start(root)
    yield


def start(root: Path, pid: int | None = None) -> None:
    """Start a follower: for as long as runs are active, or as the process `pid` lives."""
    if os.environ.get("SANDGLASS_TRACKING") == "off":
        return
    if pid is None:
        try:
            _lock(root, "follower").acquire(blocking=False).lock.release()
        except Timeout:
            return  # there is one
    (root / "state").mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "sandglass.tracking", str(root.resolve()), *([str(pid)] if pid else [])]
    with (root / "state" / "mlflow.log").open("ab") as log:
        subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def follow(root: Path, pid: int | None = None) -> None:
    """Mirror while runs are active and IDLE_SECONDS longer; with `pid`, until that process is gone.

    Returns at once if somebody else follows; with `pid`, takes over when they leave.
    """
    alive = _watched(pid) if pid else lambda: False
    while True:
        try:
            with _lock(root, "follower").acquire(blocking=False):
                return _follow(root, alive)
        except Timeout:
            if not alive():
                return
            time.sleep(POLL_SECONDS)


def _follow(root: Path, alive: Callable[[], bool]) -> None:
    os.nice(10)  # training comes first
    mirror: _Mirror | None = None
    quiet = time.monotonic()
    while True:
        more, began = alive(), time.monotonic()  # asked before looking, so that the last look comes after the end
        active, pause, patience = _active(root), POLL_SECONDS, IDLE_SECONDS
        try:
            with _lock(root, "mlflow"):
                mirror = mirror or _Mirror(root)
                active |= mirror.update()
        except Exception as error:  # whatever it is, the next look may fare better, and `sandglass publish` explains it
            _say(f"{type(error).__name__}: {_first_line(error)}; trying again")
            mirror, pause, patience = None, RETRY_SECONDS, PATIENCE_SECONDS
        if active or more:
            quiet = time.monotonic()
        if time.monotonic() - quiet >= patience:
            return
        time.sleep(max(pause, time.monotonic() - began))  # ten thousand folders do not keep a core busy


def _active(root: Path) -> bool:
    """Whether any run is being written, by anyone who shares the folder."""
    for lease in root.glob("state/*/*/lease.json"):
        run = Run(lease.parts[-3], lease.parts[-2], None, {}, (), {"study": ""})
        with contextlib.suppress(FileNotFoundError, Problem):
            if RunFolder(root, run).status() == "running":
                return True
    return False


def _watched(pid: int) -> Callable[[], bool]:
    """Whether the process that has this number now is still there."""
    import psutil

    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return lambda: False
    return lambda: process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def publish(root: Path, wait_seconds: float = 120.0) -> int:
    """Bring MLflow up to date once. Returns the number of runs there.

    Raises Problem N-110 (69) when the store cannot be reached or stays locked; nothing is lost then.
    """
    try:
        with _lock(root, "mlflow").acquire(timeout=wait_seconds):
            mirror = _Mirror(root)
            mirror.update()
            return len(mirror.known)
    except Timeout:
        what = "another process is publishing this folder"
        raise Problem("N-110", Exit.NETWORK, what, fix="wait for it", kept="all run folders") from None
    except Exception as error:
        if not _of_the_store(error):
            raise
        why, fix = _first_line(error), "check MLFLOW_TRACKING_URI, then `sandglass publish`"
        what = "cannot write to MLflow"
        raise Problem("N-110", Exit.NETWORK, what, where=uri(root), why=why, fix=fix, kept="all run folders") from None


def _of_the_store(error: Exception) -> bool:
    return type(error).__module__.split(".")[0] in _STORE


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _say(text: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)


# ------------------------------------------------------------------------------------------ what is mirrored


class _Mirror:
    """What MLflow has of a working folder."""

    def __init__(self, root: Path) -> None:
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nobody outside learns what is computed here
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # seconds; MLflow's own 120, eight times over,
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # keep a person waiting for a quarter of an hour
        import mlflow

        if uri(root) == _local(root):
            _make_store(root)
        self.root, self.client = root, mlflow.MlflowClient(tracking_uri=uri(root))
        # Runs have the same key wherever they are computed, so on a server the folder tells whose they are.
        self.folder = "." if uri(root) == _local(root) else f"{getpass.getuser()}:{root.resolve()}"
        self.experiments: dict[str, str] = {}
        self.known: dict[str, dict[str, Any]] = {}  # run key -> id, start, tags, status, as MLflow has them

    def update(self) -> bool:
        """Mirror every run folder; whether anything was written. A damaged one stops the others only at the end."""
        wrote, problems = False, []
        for stage in STAGES:
            for file in sorted((self.root / "results" / stage).glob("*/run.json")):
                try:
                    wrote |= self.one(file)
                except FileNotFoundError:
                    pass  # being replaced just now
                except Problem as problem:
                    problems.append(problem)
        if problems:
            raise problems[0]
        return wrote

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
        if self.rewritten(folder, there):
            self.client.delete_run(there["id"])
            there = self.find(facts, run)
        if stamp and there["tags"].get("sandglass.result") == stamp:
            return False
        done = state == "done"
        wrote = self.curves(folder, there, whole=done)
        wrote |= self.machine(folder, there, whole=done)
        if done:
            self.result(folder, there)
        wrote |= self.status(folder, there, "RUNNING" if state == "running" else _ENDED.get(state, "FAILED"))
        if done:  # last: without this tag, it is all done again
            self.tag(there, "sandglass.result", stamp)
        return wrote or done

    def rewritten(self, folder: RunFolder, there: dict[str, Any]) -> bool:
        """Whether the run was begun anew, or continues from before what is mirrored: then it gets a new history."""
        for name, tag in (("metrics.jsonl", "sandglass.bytes"), ("system.jsonl", "sandglass.system_bytes")):
            files = [at / name for at in (folder.state, folder.results) if (at / name).exists()]
            if files and not any(_goes_on(file, int(there["tags"].get(tag, 0))) for file in files):
                return True
        return False

    def status(self, folder: RunFolder, there: dict[str, Any], status: str) -> bool:
        if there["status"] == status:
            return False
        if status == "RUNNING":
            self.client.update_run(there["id"], status=status)
        else:
            last = folder.result if folder.result.exists() else folder.state / "system.jsonl"
            ended = last.stat().st_mtime if last.exists() else time.time()
            self.client.set_terminated(there["id"], status, int(1000 * ended))
        there["status"] = status
        return True

    # -------------------------------------------------------------------- experiments and runs

    def experiment(self, name: str) -> str:
        if name not in self.experiments:
            found = self.client.get_experiment_by_name(name)
            if found:
                self.experiments[name] = found.experiment_id
            else:
                local = "MLFLOW_TRACKING_URI" not in os.environ
                place = (self.root / "mlruns" / name).resolve().as_uri() if local else None
                self.experiments[name] = self.client.create_experiment(name, artifact_location=place)
                self.client.set_experiment_tag(self.experiments[name], "mlflow.experimentKind", _KIND)
        return self.experiments[name]

    def find(self, facts: dict[str, Any], run: Run) -> dict[str, Any]:
        """The MLflow run of a run folder; made if there is none."""
        experiments = [e.experiment_id for e in self.client.search_experiments()]
        query = f"tags.`sandglass.run` = '{run.key}' and tags.`sandglass.folder` = '{self.folder}'"
        found = self.client.search_runs(experiments, query, max_results=1)
        if found:
            info, tags = found[0].info, dict(found[0].data.tags)
        else:
            tags = self.tags(facts, run)
            began = int(1000 * datetime.fromisoformat(facts["started"]).timestamp())
            experiment = self.experiment(facts["study"])
            info = self.client.create_run(experiment, began, tags, run_name=_title(run)).info
        there = {"id": info.run_id, "start": info.start_time, "tags": tags, "status": info.status}
        if "sandglass.bytes" not in tags:
            self.describe(there, facts, run)
        self.known[run.key] = there
        return there

    def tags(self, facts: dict[str, Any], run: Run) -> dict[str, str]:
        """What a person filters and groups by, and how the folder is found again."""
        tags = {"stage": run.stage, **{key: str(value) for key, value in run.columns.items()}}
        if run.seed is not None:
            tags["seed"] = str(run.seed)
        tags |= {
            "sandglass.run": run.key,
            "sandglass.folder": self.folder,
            "sandglass.needs": ", ".join(run.needs)[:5000],
            "mlflow.user": getpass.getuser(),
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": f"sandglass {run.stage} {run.name}",  # the command that makes it
            "mlflow.source.git.commit": facts["git"].get("commit", ""),
        }
        parent = next((key for key in reversed(run.needs) if not key.startswith("data/")), None)
        if parent and run.stage != "report" and (above := self.known.get(parent)):
            tags["mlflow.parentRunId"] = above["id"]
        return tags

    def describe(self, there: dict[str, Any], facts: dict[str, Any], run: Run) -> None:
        """Settings, data, and the study's question. The tag comes last: without it, it is done again."""
        from mlflow.entities import Param

        known = self.client.get_run(there["id"]).data.params
        given = _flat(run.settings | {"seed": run.seed, **facts["derived"]})
        params = [Param(key[:250], str(value)[:6000]) for key, value in given.items() if key[:250] not in known]
        for i in range(0, len(params), 100):
            self.client.log_batch(there["id"], params=params[i : i + 100])
        self.dataset(there["id"], run)
        if run.stage == "report":
            page = (self.root / "results" / run.folder / "index.html").resolve()
            experiment = self.experiment(facts["study"])
            link = f"#/experiments/{experiment}/runs/{there['id']}/artifacts/index.html"
            note = f"{run.settings['about']}\n\n[Report]({link}), on disk `{page}`."
            self.client.set_experiment_tag(experiment, "mlflow.note.content", note.strip())
        self.tag(there, "sandglass.bytes", "0")

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
            data = Dataset(facts["name"], facts["fingerprint"][:8], "local", source, profile=profile)
            self.client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", run.stage)])])

    # -------------------------------------------------------------------- numbers and files

    def curves(self, folder: RunFolder, there: dict[str, Any], whole: bool) -> bool:
        """Log what is new in metrics.jsonl: all of a finished run's rows, else those that a checkpoint confirms."""
        confirmed = None
        if not whole:
            manifest = folder.state / "checkpoints" / "manifest.json"
            confirmed = read_json(manifest)[0]["metrics_bytes"] if manifest.exists() else 0
        file = (folder.results if whole else folder.state) / "metrics.jsonl"
        rows, end = _new_rows(file, int(there["tags"]["sandglass.bytes"]), confirmed)
        self.points(
            there,
            [
                (_metric(key), value, row["step"], row["step"])
                for row in rows
                for key, value in row.items()
                if key != "step"
            ],
        )
        return self.reached(there, "sandglass.bytes", end)

    def machine(self, folder: RunFolder, there: dict[str, Any], whole: bool) -> bool:
        """Log what is new of the samples of the machine, where MLflow looks for system metrics."""
        file = (folder.results if whole else folder.state) / "system.jsonl"
        rows, end = _new_rows(file, int(there["tags"].get("sandglass.system_bytes", 0)))
        self.points(
            there,
            [
                (f"system/{key}", value, 1000 * row["seconds"], row["seconds"])
                for row in rows
                for key, value in row.items()
                if key != "seconds"
            ],
        )
        return self.reached(there, "sandglass.system_bytes", end)

    def points(self, there: dict[str, Any], points: list[tuple[str, float, float, float]]) -> None:
        """Points are (name, value, milliseconds since the start, step)."""
        from mlflow.entities import Metric

        metrics = [Metric(name, value, there["start"] + int(ms), int(step)) for name, value, ms, step in points]
        for i in range(0, len(metrics), _BATCH):
            self.client.log_batch(there["id"], metrics=metrics[i : i + _BATCH])

    def reached(self, there: dict[str, Any], tag: str, end: int) -> bool:
        """Note how far a file is mirrored; whether that is news."""
        if end <= int(there["tags"].get(tag, 0)):
            return False
        self.tag(there, tag, str(end))
        return True

    def result(self, folder: RunFolder, there: dict[str, Any]) -> None:
        """Log the numbers of result.json, the files a person looks for, and a page of the run."""
        result = read_json(folder.result)
        self.points(there, [(_name(row), row["value"], 0, 0) for row in result["rows"] if row["value"] is not None])
        for file in sorted(folder.results.glob("*")):
            if file.is_file() and folder.run.stage != "data" and not file.name.startswith("."):
                place = "model" if file.name in ("model.safetensors", "config.json") else None
                self.client.log_artifact(there["id"], str(file), place)
        if folder.run.stage not in ("data", "report"):  # the report is a page already
            from sandglass.report import one

            with tempfile.TemporaryDirectory() as draft:
                page = Path(draft, "report.html")
                page.write_text(one.page(folder.results, _title(folder.run)))
                self.client.log_artifact(there["id"], str(page))
        self.tag(there, "attempts", str(result.get("attempts", 1)))

    def tag(self, there: dict[str, Any], name: str, value: str) -> None:
        self.client.set_tag(there["id"], name, value)
        there["tags"][name] = value


_KIND = "custom_model_development"  # of an experiment: its page opens with runs, not with traces


def _make_store(root: Path) -> None:
    """A database that appears whole: whoever opened it half made, `mlflow ui` too, would break it for good."""
    import mlflow

    store, draft = root / "mlflow.db", root / "state" / "mlflow.db.tmp"
    if not store.exists():
        draft.unlink(missing_ok=True)
        mlflow.MlflowClient(tracking_uri=f"sqlite:///{draft.resolve()}").search_experiments()
        draft.replace(store)


def _run_of(facts: dict[str, Any]) -> Run:
    keys = ("stage", "name", "seed", "settings", "columns")
    return Run(needs=tuple(facts["needs"]), **{key: facts[key] for key in keys})


def _title(run: Run) -> str:
    """A run's name for people: what differs most comes first, because columns are narrow."""
    say = {**run.columns, "labels": _share(run.columns.get("labels", 1.0))}
    words = {
        "data": ("data set",),
        "pretrain": ("objective", "views", "backbone"),
        "probe": ("probe", "init", "objective", "labels", "backbone"),
        "finetune": ("auxiliary", "init", "objective", "labels", "backbone"),
        "attack": ("attack", "auxiliary", "init", "objective", "labels", "backbone"),
        "report": ("study",),
    }[run.stage]
    told = [str(say[key]) for key in words if say.get(key) not in (None, "", "none")]
    return " ".join([run.stage, *told, *([f"seed {run.seed}"] if run.seed is not None else [])])


def _share(labels: float) -> str:
    return f"{100 * labels:g}%" if labels != 1 else ""


def _goes_on(file: Path, start: int) -> bool:
    """Whether a file of lines has one that ends at `start`, as the file that was read so far had."""
    with file.open("rb") as text:
        text.seek(max(0, start - 1))
        return start == 0 or text.read(1) == b"\n"


def _new_rows(file: Path, start: int, end: int | None = None) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a file between two places, and where they end."""
    if not file.exists():
        return [], start
    with file.open("rb") as text:
        text.seek(start)
        found = text.read(-1 if end is None else max(0, end - start))
    found = found[: found.rfind(b"\n") + 1]
    return [json.loads(line) for line in found.splitlines()], start + len(found)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def _metric(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _name(row: dict[str, Any]) -> str:
    """The metric's name of a row of a result."""
    epsilon = f"/epsilon_{row['epsilon']:g}_255" if row.get("epsilon") is not None else ""
    return _metric(f"{row.get('split', 'result')}/{row['metric']}{epsilon}")


if __name__ == "__main__":
    follow(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
