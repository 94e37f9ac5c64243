"""The whole step as one CUDA graph, which the host launches at once instead of kernel by kernel.

What was recorded runs no Python when it is played again: it reads the batch from memory that stays where it is, and
rates and the state of the generator from the device. So it is for objectives that say they are `static`; momentum
targets follow after it, as ever. Until the libraries are warm, steps are made as usual, on a stream beside.

Nothing of this has been run on a GPU yet. `make gpu-check` compares it there with steps made as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from sandglass import distributed
from sandglass.config import Engine
from sandglass.data.loader import Batch
from sandglass.engine.step import Seen, Step

WARM = 3  # steps

Record = Callable[[Callable[[], Seen]], Callable[[], Seen]]


def recordable(step: Step, engine: Engine, device: torch.device) -> bool:
    """Whether each step is the same operations, in one process, on a GPU."""
    alone = distributed.processes() == 1 and engine.accumulate == 1 and not engine.checkpointing
    return engine.graph and device.type == "cuda" and alone and step.objective.static and not step.auxiliaries


def on_gpu(run: Callable[[], Seen]) -> Callable[[], Seen]:
    """`run`, recorded and not yet run."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        seen = run()

    def play() -> Seen:
        graph.replay()
        return seen

    return play


class Recorded:
    """Takes the place of a Step. What it returns is overwritten by the next call."""

    def __init__(self, step: Step, record: Record = on_gpu) -> None:
        self.step, self.record, self.calls = step, record, 0
        self.play: Callable[[], Seen] | None = None

    def __call__(self, batches: Iterable[Batch]) -> Seen:
        (batch,) = batches
        self.calls += 1
        if self.calls <= WARM:
            return self._beside(batch)
        if self.play is None:
            views, labels = [view.clone() for view in batch.views], batch.labels.clone()
            self.still = still = replace(batch, views=views, labels=labels)
            self.play = self.record(lambda: self.step([still]))
        for own, new in zip((*self.still.views, self.still.labels), (*batch.views, batch.labels), strict=True):
            own.copy_(new)
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
