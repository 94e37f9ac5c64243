"""What each step is given: images whose turn it is, in the views that were drawn for them, on the device.

An epoch's order and all that is random in its views are drawn at its beginning, from (seed, epoch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from sandglass import distributed
from sandglass.data.feed import Feed, sent
from sandglass.data.loader import Batch, Clock, epoch_order, step_generator
from sandglass.engine.task import Task
from sandglass.views.recipes import draw_views, located_views

Source = Callable[[Clock], Iterable[Batch]]  # a step's clock -> this process's parts of its batch, made one by one


class Batches:
    """The source of a training's batches, each in `parts` for every process. Steps are asked for in their order."""

    def __init__(self, task: Task, device: torch.device, parts: int = 1) -> None:
        self.task, self.device, self.parts = task, device, parts
        self.feed = Feed(task.split, device)
        self.sizes = torch.from_numpy(task.split.sizes)[task.index].to(device)
        self.epoch = -1

    def __call__(self, clock: Clock) -> Iterator[Batch]:
        within = clock.step % clock.steps_per_epoch
        if clock.epoch != self.epoch:
            self._begin(clock.epoch, within, clock.steps_per_epoch)
        for k, which in enumerate(self.own[within]):
            yield self._part(clock, which, distributed.rank() * self.parts + k)

    def _begin(self, epoch: int, first: int, steps: int) -> None:
        """An epoch, from its step `first` on."""
        task, (recipe, settings) = self.task, *self.task.views.items()
        order = epoch_order(len(task.index), task.seed, epoch).split(task.train["batch_size"])[:steps]
        self.own = [self._shares(batch) for batch in order]  # places in the task's index
        generator = step_generator(task.seed, epoch, 0, "views")
        self.drawn = draw_views(recipe, settings, self.sizes, task.size, generator, task.index)
        self.images = self.feed.images(task.index[which] for shares in self.own[first:] for which in shares)
        self.epoch = epoch

    def _shares(self, batch: Tensor) -> list[Tensor]:
        """This process's parts of a batch."""
        count, first = distributed.processes() * self.parts, distributed.rank() * self.parts
        return [
            batch[k * len(batch) // count : (k + 1) * len(batch) // count] for k in range(first, first + self.parts)
        ]

    def _part(self, clock: Clock, which: Tensor, rank: int) -> Batch:
        rows = self.task.index[which]
        views, places = located_views(self.drawn, next(self.images), sent(which, self.device))
        labels = sent(torch.from_numpy(self.task.split.labels[rows.numpy()]), self.device)
        drawing = step_generator(self.task.seed, clock.epoch, clock.step % clock.steps_per_epoch, "loss")
        batch = Batch(views, labels, rows, drawing, rank, distributed.processes() * self.parts, clock, places)
        drops = int(torch.randint(2**62, (), generator=batch.generator))
        torch.manual_seed(drops + rank)  # drop-path and dropout
        return batch
