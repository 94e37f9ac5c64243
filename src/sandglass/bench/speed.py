"""How fast one training step is when its views come from memory, from lightly, or from our own reading and views.

There is one run of the real loop, `engine.train`; what feeds it changes every few steps, so that all feeds meet the
same weights, the same clock rate and the same neighbours. The clock is read where the loop asks for its next batch.
Between their turns lightly's own loop has its own, on its own data and on views in memory.

    fraction of the ceiling    time with views in memory / time with ours, per image
    speed-up                   time with lightly's / time with ours
    gain                       lightly's step on views in memory / our step on views in memory

What is out of reach is measured too: an input cannot be faster than views in memory, nor a step than its convolutions
and linear maps alone (kernels.py), which have a turn as well.
The first step of a turn is not counted, nor is the first round. Clock `cpu`: CPU seconds of this process on one thread,
for a machine that others use too; `wall`: seconds, with all cores. A GPU is waited for before the clock is read.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sandglass.backbones.grid import build
from sandglass.bench import anchor, kernels
from sandglass.bench.cases import Case
from sandglass.bench.ratios import Ratio, Target
from sandglass.config import Engine, Pretrain, resolve
from sandglass.data.loader import Batch, Clock, Split, step_generator
from sandglass.engine.batches import Batches, Source
from sandglass.engine.task import Task
from sandglass.engine.train import train
from sandglass.engine.written_out import written_out
from sandglass.errors import Exit, Problem
from sandglass.objectives import OBJECTIVES
from sandglass.views import RECIPES
from sandglass.views.recipes import for_size

OURS, LIGHTLY, MEMORY = "ours", "lightly", "memory"  # fed to our step
SHIPPED, SHIPPED_MEMORY = "lightly as shipped", "lightly's step on memory"
KERNELS = "convolutions and linear maps"  # of our step, and nothing else
RESIDENT = 4  # batches of views that are kept
OTHERS = 25  # % of all cores that others may use before CPU seconds are counted

Turn = Callable[[], AbstractContextManager[Source]]


@dataclass(frozen=True)
class Machine:
    """Where and how it is measured."""

    device: torch.device
    clock: str  # cpu or wall
    threads: int
    workers: int  # of lightly's loader

    def now(self) -> float:
        """Seconds."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self.clock == "cpu" else time.perf_counter()


def machine(clock: str) -> Machine:
    """`auto`: CPU seconds where others use the machine, which is watched for two seconds of doing nothing; else, and on
    a GPU, the wall clock. (The load average still has this command's predecessors in it.)"""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cores = len(os.sched_getaffinity(0))
    if clock not in ("auto", "cpu", "wall"):
        raise Problem("P-122", Exit.USAGE, f"no clock '{clock}'", fix="cpu, wall or auto")
    if clock == "auto":
        others = device.type == "cpu" and psutil.cpu_percent(interval=2) > OTHERS
        clock = "cpu" if others else "wall"
    return Machine(device, clock, *((1, 0) if clock == "cpu" else (cores, cores)))


@dataclass
class Measured:
    """Milliseconds per image of each feed, one value a round; and what the case is."""

    case: Case
    at: Machine
    times: dict[str, list[float]]
    parameters: int
    flops: int  # of an image's share of a step
    peak_memory_gib: float

    def ratio(self, above: str, below: str) -> Ratio:
        return Ratio.of(self.times[above], self.times[below])

    @property
    def targets(self) -> list[Target]:
        """Those of the case that this clock can judge."""
        case, wall = self.case, self.at.clock == "wall"
        wanted = [
            ("fraction of the ceiling", MEMORY, OURS, case.fraction),
            ("gain of the step over lightly's defaults", SHIPPED_MEMORY, MEMORY, case.gain),
            ("speed over lightly's input on our step", LIGHTLY, OURS, wall and case.over_step),
            ("speed over lightly as shipped", SHIPPED, OURS, wall and case.over_shipped),
        ]
        bound = {OURS: MEMORY, MEMORY: KERNELS}  # what no input, and what no step, could beat
        return [
            Target(
                f"{case.name}: {what}",
                self.ratio(above, below),
                least,
                bound=self.ratio(above, bound[below]),
                bound_is=bound[below],
            )
            for what, above, below, least in wanted
            if least
        ]

    def rows(self, peak: float) -> Iterator[dict[str, Any]]:
        """A row per feed; `peak` FLOP/s is what the device reaches in a large product. A disputed ratio stays empty."""
        for feed, times in self.times.items():
            milliseconds = median(times)
            fraction = self.ratio(MEMORY, feed)
            flops = self.flops * 1000 / milliseconds
            yield {
                "case": self.case.name,
                "net": self.case.backbone,
                "params_M": round(self.parameters / 1e6, 2),
                "size": self.case.size,
                "batch": self.case.batch,
                "feed": feed,
                "workers": self.at.workers if feed in (LIGHTLY, SHIPPED) else 0,
                "clock": self.at.clock,
                "threads": self.at.threads,
                "rounds": len(times),
                "ms_per_image": milliseconds,
                "img_per_s": 1000 / milliseconds,
                "ceiling_img_per_s": 1000 / median(self.times[MEMORY]),
                "fraction_median": fraction.value,
                "fraction_min": min(fraction.rounds),
                "fraction_max": max(fraction.rounds),
                "ceiling_gain": self.ratio(SHIPPED_MEMORY, MEMORY).value,
                "most_gain": self.ratio(SHIPPED_MEMORY, KERNELS).value,
                "speedup_vs_anchor": self.ratio(LIGHTLY, feed).value,
                "speedup_vs_anchor_as_shipped": self.ratio(SHIPPED, feed).value,
                "model_tflops": flops / 1e12,
                "share_of_peak": flops / peak,
                "peak_memory_MB": self.peak_memory_gib * 1024,
            }


def measure(case: Case, split: Split, at: Machine, rounds: int, steps: int) -> Measured:
    """All feeds in turns: `rounds` rounds that count and one before them, `steps` steps that count in every turn, of
    which the case has several in a round."""
    torch.set_num_threads(at.threads)
    torch.manual_seed(0)
    task = _task(case, split, at.device)
    resident = _resident(task, at.device)
    flops = _flops(task, resident[0])
    alone = _foreign(case, split, resident, steps, at) | {KERNELS: _kernels(task, resident[0], steps, at)}
    turns = _Turns(_feeds(case, task, resident, steps, at), alone, steps, at)
    count = case.turns * (1 + rounds)
    task.index = _repeated(split, turns.steps_of(count) * case.batch)  # one epoch: nothing else happens between turns
    with tempfile.TemporaryDirectory() as state:
        engine = Engine(checkpoint_minutes=1e6, log_every_steps=1 + steps)  # every turn has one step that logs
        outcome = train(task, Path(state), engine, lambda text: None, turns)
    images = case.turns * steps * case.batch
    times = {name: [1000 * t / images for t in _by_round(seconds, case.turns)] for name, seconds in turns.spent.items()}
    parameters = sum(p.numel() for p in task.encoder.parameters())
    return Measured(case, at, times, parameters, flops, outcome.cost.allocated_gib)


def _by_round(seconds: list[float], turns: int) -> list[float]:
    """The sums of so many turns each, but for the first round, which warms up."""
    return [sum(seconds[i : i + turns]) for i in range(turns, len(seconds), turns)]


class _Turns:
    """The feed that the loop is given: others' turns, one after another, timed."""

    def __init__(
        self, feeds: dict[str, Turn], foreign: dict[str, Callable[[], float]], steps: int, at: Machine
    ) -> None:
        self.feeds, self.foreign, self.steps, self.at = feeds, foreign, steps, at
        self.spent: dict[str, list[float]] = {name: [] for name in (*feeds, *foreign)}
        self.turn = ExitStack()
        self.name, self.began = "", 0.0
        self.last: list[Batch] = []

    def steps_of(self, count: int) -> int:
        """Steps of the loop for so many turns of each, and the request that ends the last of them."""
        return count * len(self.feeds) * (1 + self.steps) + 1

    def __call__(self, clock: Clock) -> Iterable[Batch]:
        count, within = divmod(clock.step, 1 + self.steps)
        if within == 0:
            if count:
                self.spent[self.name].append(self.at.now() - self.began)
            self.turn.close()
            if clock.step + 1 == clock.steps:
                return self.last
            if count % len(self.feeds) == 0:
                for name, run in self.foreign.items():
                    self.spent[name].append(run())
            self.name = list(self.feeds)[count % len(self.feeds)]
            self.source = self.turn.enter_context(self.feeds[self.name]())
        if within == 1:
            self.began = self.at.now()
        self.last = list(self.source(clock))
        return self.last


def _feeds(case: Case, task: Task, resident: list[Batch], steps: int, at: Machine) -> dict[str, Turn]:
    """What feeds our step."""
    settings = for_size(resolve(RECIPES, "byol", {}), case.size)
    images = anchor.PilImages(task.split, anchor.transform(settings, case.size, None))
    numbers = itertools.count()

    def in_memory(clock: Clock) -> Iterator[Batch]:
        generator = step_generator(task.seed, 0, clock.step, "loss")
        yield replace(resident[clock.step % RESIDENT], clock=clock, generator=generator)

    @contextmanager
    def by_memory() -> Iterator[Source]:
        yield in_memory

    @contextmanager
    def by_lightly() -> Iterator[Source]:
        with anchor.batches(images, case.batch, 1 + steps, at.workers, at.device) as made:

            def next_batch(clock: Clock) -> Iterator[Batch]:
                views, labels = next(made)
                generator = step_generator(task.seed, 0, clock.step, "loss")
                yield Batch(views, labels, torch.arange(case.batch), generator, clock=clock)

            yield next_batch

    @contextmanager
    def by_us() -> Iterator[Source]:
        """The steps that count are an epoch of their own, whose views are drawn in the first of them."""
        ours = Batches(replace(task, index=_repeated(task.split, steps * case.batch)), at.device)
        before, epoch = 2 * next(numbers) * steps, 2 * steps

        def counted(clock: Clock) -> Iterator[Batch]:
            within = clock.step % (1 + steps)
            yield from ours(Clock(before + (within and steps + within - 1), before + epoch, steps))

        yield counted

    return {MEMORY: by_memory, LIGHTLY: by_lightly, OURS: by_us}


def _foreign(
    case: Case, split: Split, resident: list[Batch], steps: int, at: Machine
) -> dict[str, Callable[[], float]]:
    """lightly's own loop on its own data and on views in memory; each call is a turn and returns its seconds."""
    encoder = build(case.backbone, case.size, 0, [0.0] * 3, [1.0] * 3, case.arguments)
    heads = resolve(OBJECTIVES, "byol", case.heads)
    usual = encoder.model.to(memory_format=torch.contiguous_format)  # `build` gives ours channels last
    model = anchor.Shipped(usual, encoder.width, heads["hidden"], heads["out"]).to(at.device)
    settings = for_size(resolve(RECIPES, "byol", {}), case.size)
    images = anchor.PilImages(split, anchor.transform(settings, case.size, anchor.IMAGENET))

    def turn(batches: Iterator[Any]) -> float:
        began = 0.0
        for step, ((x0, x1), _) in enumerate(itertools.islice(batches, 1 + steps)):
            model.step(x0, x1)
            if step == 0:
                began = at.now()
        return at.now() - began

    def shipped() -> float:
        with anchor.batches(images, case.batch, 1 + steps, at.workers, at.device) as made:
            return turn(made)

    def on_memory() -> float:
        return turn(itertools.cycle((batch.views, batch.labels) for batch in resident))

    return {SHIPPED: shipped, SHIPPED_MEMORY: on_memory}


def _task(case: Case, split: Split, device: torch.device) -> Task:
    """BYOL in bfloat16 with the optimiser of its family."""
    encoder = build(case.backbone, case.size, 0, split.info["mean"], split.info["std"], case.arguments).to(device)
    objective = OBJECTIVES.get("byol")(encoder, resolve(OBJECTIVES, "byol", case.heads), 0).to(device)
    settings = Pretrain(batch_size=case.batch, epochs=1, warmup_epochs=0.0, precision="bfloat16").model_dump()
    index = torch.arange(len(split))
    return Task(encoder, objective, {}, split, index, {"byol": {}}, case.size, settings, seed=0)


def _resident(task: Task, device: torch.device) -> list[Batch]:
    """Batches whose views are made and on the device."""
    batches = Batches(replace(task, index=_repeated(task.split, RESIDENT * task.train["batch_size"])), device)
    return [batch for step in range(RESIDENT) for batch in batches(Clock(step, RESIDENT, RESIDENT))]


def _repeated(split: Split, count: int) -> Tensor:
    """So many rows of a split, from its first on and again."""
    return torch.arange(count) % len(split)


def _flops(task: Task, batch: Batch) -> int:
    """Multiplications and additions of an image's share of a step, in convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        _pass(task, batch)
    return counter.get_total_flops() // len(batch.index)


def _kernels(task: Task, batch: Batch, steps: int, at: Machine) -> Callable[[], float]:
    """The seconds of `steps` steps of which nothing is left but convolutions and linear maps; each call is a turn."""
    alone = kernels.alone(lambda: _pass(task, batch, half=True))

    def turn() -> float:
        alone()
        began = at.now()
        for _ in range(steps):
            alone()
        return at.now() - began

    return turn


def _pass(task: Task, batch: Batch, half: bool = False) -> None:
    """Forward and backward of a step, which leave nothing."""
    device = batch.labels.device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=half), written_out(half and device == "cpu"):
        features = task.objective.features(task.encoder, batch)
        loss = task.objective.loss(task.encoder, features, batch)["loss"]
    loss.backward()
    task.encoder.zero_grad(set_to_none=True)
    task.objective.zero_grad(set_to_none=True)


def peak_flops(at: Machine) -> float:
    """FLOP/s of a large matrix product in bfloat16 on this device, by this clock: the best of five."""
    torch.set_num_threads(at.threads)
    side = 8192 if at.device.type == "cuda" else 1024
    a = torch.randn(side, side, dtype=torch.bfloat16, device=at.device)
    best = float("inf")
    for _ in range(6):
        began = at.now()
        a @ a
        best = min(best, at.now() - began)
    return 2 * side**3 / best
