"""What the run folders say of a study's progress: which runs are done, running, stopped or failed, and how far.

Nothing but files is asked, so it works when the driver is dead and on every machine that sees the folder. How fast a
training goes is told by the times of its files, all of one clock: from run.json, written as an attempt begins, to the
last row of metrics.jsonl.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sandglass import lease
from sandglass.errors import Problem
from sandglass.runs import RunFolder, read_json
from sandglass.study import Run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

TAIL_BYTES = 65_536  # of a file whose last line is wanted


@dataclass(frozen=True)
class Look:
    """One run as it is now. `step`, `steps` and `minutes_left` are those of a running training, None otherwise."""

    stage: str
    run: str
    status: str  # RunFolder.status
    step: int | None = None
    steps: int | None = None
    minutes_left: float | None = None
    holder: str = ""  # the machine, and the scheduler's job, of a running one
    failure: str = ""  # the screen of a failed one

    @property
    def key(self) -> str:
        return f"{self.stage}/{self.run}"


def look(root: Path, runs: Iterable[Run], before: Iterable[Look] = ()) -> list[Look]:
    """All `runs` as they are now. Those that were done `before` are not looked at again: nothing undoes them."""
    done = {seen.key: seen for seen in before if seen.status == "done"}
    return [done.get(run.key) or _look(RunFolder(root, run)) for run in runs]


def _look(folder: RunFolder) -> Look:
    run = folder.run
    try:
        status = folder.status()
        if status == "running":
            return Look(run.stage, run.name, status, *_progress(folder), holder=_holder(folder))
        failure = folder.failure() if status.startswith("failed") else None
    except Problem:  # a file of this run that is not JSON must not hide the others
        return Look(run.stage, run.name, "damaged")
    return Look(run.stage, run.name, status, failure=failure.screen() if failure else "")


def _progress(folder: RunFolder) -> tuple[int | None, int | None, float | None]:
    """Step, steps and minutes left of a running training, as far as its files say."""
    about, metrics = folder.results / "run.json", folder.state / "metrics.jsonl"
    try:
        steps = read_json(about)["derived"]["steps"]
        step = json.loads(_tail(metrics).splitlines()[-1])["step"]
        seconds = metrics.stat().st_mtime - about.stat().st_mtime
    except (OSError, Problem, ValueError, KeyError, IndexError):  # not a training, or it has only begun
        return None, None, None
    attempt = _tail(folder.state / "log.txt").rpartition("begins on")[2]
    resumed = re.search(r"resumed at step (\d+)", attempt)
    made = step - (int(resumed[1]) if resumed else 0)
    if made <= 0 or seconds <= 0:
        return step, steps, None
    return step, steps, seconds / made * (steps - step) / 60


def _tail(file: Path) -> str:
    """Whole lines from the end of a file; a line that is being written is left out."""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - TAIL_BYTES))
        return opened.read().rpartition(b"\n")[0].decode(errors="replace")


def _holder(folder: RunFolder) -> str:
    holder = lease.read(folder.state / "lease.json") or {"host": "", "job": ""}
    return holder["host"] + (f", job {holder['job']}" if holder["job"] else "")


# --------------------------------------------------------------------------------------------- for people


def show(seen: Iterable[Look]) -> str:
    """Plain lines: counts of each stage, then every run that is neither done nor waiting."""
    rows = list(seen)
    lines = [f"{stage:<9} {counts}" for stage, counts in _stages(rows)]
    for row in rows:
        if row.status not in ("done", "waiting"):
            lines.append(f"  {row.status:<12} {row.key}" + f"  {_how_far(row)}" * bool(_how_far(row)))
            if row.failure:
                lines.append("    " + row.failure.replace("\n", "\n    "))
    return "\n".join(lines)


def _stages(rows: list[Look]) -> list[tuple[str, str]]:
    """Of each stage how many runs are done, running, ..."""
    found = {row.stage: Counter(other.status for other in rows if other.stage == row.stage) for row in rows}
    return [(stage, ", ".join(f"{n} {status}" for status, n in c.most_common())) for stage, c in found.items()]


def _how_far(row: Look) -> str:
    parts = [f"step {row.step:,} of {row.steps:,}"] if row.step is not None else []
    parts += [f"{_left(row.minutes_left)} left"] if row.minutes_left is not None else []
    return ", ".join([*parts, *([f"on {row.holder}"] if row.holder else [])])


def _left(minutes: float) -> str:
    hours, rest = divmod(round(minutes), 60)
    return f"{hours} h {rest:02} min" if hours else f"{rest} min" if rest else "less than a minute"


def watch(
    root: Path, runs: list[Run], console: Console, seconds: float, wait: Callable[[float], None] = time.sleep
) -> None:
    """Show the runs until all are done: a table that renews itself, or, off a terminal, lines whenever they change."""
    from rich.live import Live

    seen, said = look(root, runs), ""
    with Live(_table(seen), console=console, auto_refresh=False, transient=True) as live:
        while True:
            if console.is_terminal:
                live.update(_table(seen), refresh=True)
            elif (text := show(seen)) != said:
                said = text
                console.out(f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{text}", highlight=False)
            if all(row.status == "done" for row in seen):
                break
            wait(seconds)
            seen = look(root, runs, seen)
    if console.is_terminal:
        console.out(show(seen), highlight=False)


def _table(seen: list[Look]) -> Table:
    """The stages, then the runs that run, then those that a person should look at, as many as fit."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column("stage", width=9)
    table.add_column("run", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("", width=12)
    table.add_column("", ratio=1, min_width=27, no_wrap=True, overflow="ellipsis")  # of a step and the time left
    for stage, counts in _stages(seen):
        done = [row.status == "done" for row in seen if row.stage == stage]
        table.add_row(stage, counts, ProgressBar(total=len(done), completed=sum(done)), f"{sum(done)} of {len(done)}")
    for row in seen:
        if row.status == "running":
            bar = ProgressBar(total=row.steps or 1, completed=row.step or 0) if row.steps else ""
            table.add_row(row.stage, row.run, bar, Text(_how_far(row)))
    for row in seen:
        if row.status not in ("done", "waiting", "running"):
            first = row.failure.partition("\n")[0]
            table.add_row(row.stage, row.run, Text(row.status, "red"), Text(first))
    return table
