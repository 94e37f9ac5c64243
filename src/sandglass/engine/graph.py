"""The whole step as one CUDA graph, which the host launches at once instead of kernel by kernel.

What was recorded runs no Python when it is played again: it reads the batch from memory that stays where it is, and
rates and the state of the generator from the device. So it is for objectives that say they are `static`; auxiliary
tasks are, but for what they ask of the batch, which is noted before and asked again for every batch. Momentum targets
follow after it, as ever. Until the libraries are warm, steps are made as usual, on a stream beside.

Nothing of this has been run on a GPU yet. `make gpu-check` compares it there with steps made as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sandglass import distributed
from sandglass.config import Engine
from sandglass.data.loader import Batch
from sandglass.engine.step import Seen, Step

WARM = 3  # steps

Record = Callable[[Callable[[], Seen]], Callable[[], Seen]]
Question = Callable[[Batch], float | Tensor]


def recordable(step: Step, engine: Engine, device: torch.device) -> bool:
    """Whether each step is the same operations, in one process, on a GPU."""
    alone = distributed.processes() == 1 and engine.accumulate == 1 and not engine.checkpointing
    return engine.graph and device.type == "cuda" and alone and step.objective.static


def on_gpu(run: Callable[[], Seen]) -> Callable[[], Seen]:
    """`run`, recorded and not yet run."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        seen = run()

    def play() -> Seen:
        graph.replay()
        return seen

    return play


@dataclass(frozen=True)
class _Noting(Batch):
    """A batch that notes, in their order, the questions whose answers depend on the step."""

    questions: list[Question] = field(default_factory=list)

    def drawn(self, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        self.questions.append(lambda batch: batch.drawn(draw))
        return super().drawn(draw)

    def now(self, value: Callable[[float], float]) -> float | Tensor:
        self.questions.append(lambda batch: batch.now(value))
        return super().now(value)


@dataclass(frozen=True)
class _Still(Batch):
    """A batch in memory that stays: to the same questions, in the same order, it has the answers on the device."""

    answers: Iterator[Tensor] = field(default_factory=lambda: iter(()))

    def drawn(self, draw: Any) -> Tensor:
        return next(self.answers)

    def now(self, value: Any) -> Tensor:
        return next(self.answers)


class Recorded:
    """Takes the place of a Step. What it returns is overwritten by the next call."""

    def __init__(self, step: Step, record: Record = on_gpu) -> None:
        self.step, self.record, self.calls = step, record, 0
        self.questions: list[Question] = []
        self.play: Callable[[], Seen] | None = None

    def __call__(self, batches: Iterable[Batch]) -> Seen:
        (batch,) = batches
        self.calls += 1
        if self.calls <= WARM:
            noting = _Noting(**vars(batch))
            seen = self._beside(noting)
            self.questions = noting.questions
            return replace(seen, batch=batch)
        answers = (torch.as_tensor(ask(batch)) for ask in self.questions)
        found = [*batch.views, batch.labels, *answers]
        if self.play is None:
            self.memory = [x.to(batch.labels.device, copy=True) for x in found]
            views, (labels, *kept) = self.memory[: len(batch.views)], self.memory[len(batch.views) :]
            still = replace(batch, views=views, labels=labels)
            self.play = self.record(lambda: self.step([_Still(**vars(still), answers=iter(kept))]))
        for own, new in zip(self.memory, found, strict=True):
            own.copy_(new, non_blocking=True)
        return replace(self.play(), rows=batch.index)

    def _beside(self, batch: Batch) -> Seen:
        if batch.labels.device.type != "cuda":
            return self.step([batch])
        own = torch.cuda.current_stream()
        beside = torch.cuda.Stream()
        beside.wait_stream(own)
        with torch.cuda.stream(beside):
            seen = self.step([batch])
        own.wait_stream(beside)
        return seen
