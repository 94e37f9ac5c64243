"""Progress of a long run: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

LOG_SECONDS = 10.0  # between lines in a log


class Progress:
    """Use as a context; `show(step, values)` as often as you like."""

    def __init__(self, title: str, total: int, say: Callable[[str], None]) -> None:
        self.title, self.total, self.say = title, total, say
        self.last, self.began = 0.0, time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def show(self, step: int, values: dict[str, float]) -> None:
        loss = f"loss {values['loss']:.4f}" if "loss" in values else ""
        if sys.stderr.isatty():
            self.bar = self.bar or self._bar()
            self.bar.update(self.bar.task_ids[0], completed=step, description=f"{self.title}  {loss}")
        elif step == self.total or time.monotonic() - self.last > LOG_SECONDS:
            self.last = time.monotonic()
            self.say(f"{self.title}: step {step} of {self.total}  {loss}  {self.last - self.began:.0f} s")

    def _bar(self) -> Any:
        """Made at the first step: of several processes, only one shows."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bar = Bar(*columns, console=Console(stderr=True), transient=True)
        bar.add_task(self.title, total=self.total)
        bar.start()
        return bar
