"""The loop. Plain PyTorch, the same for pretraining and finetuning, for one process and for several that share a batch
(distributed.py). It makes batches, has steps made of them (step.py), and looks at what those leave every few steps: a
look waits for the device.

All randomness is a function of (seed, epoch, step), that of views of (seed, epoch, image): a run that is killed and
resumed takes the same steps, to the bit, and an image has the same views in a batch of any size.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sandglass import distributed, slurm
from sandglass.config import Engine
from sandglass.data.loader import Clock
from sandglass.engine import checkpoint, optim
from sandglass.engine.batches import Batches, Source
from sandglass.engine.cost import Cost
from sandglass.engine.graph import Recorded, recordable
from sandglass.engine.online import LR_PER_256
from sandglass.engine.progress import Progress
from sandglass.engine.schedule import learning_rate_factor
from sandglass.engine.step import Step, checkpoint_activations, refuse_parts
from sandglass.engine.task import Task
from sandglass.errors import Exit, Problem
from sandglass.runs import write_atomic

LIMIT_MARGIN_SECONDS = 120.0  # before a time limit, for the step at hand, a validation, the save and the way out


@dataclass
class Outcome:
    """What was done."""

    steps: int
    attempts: int
    cost: Cost
    collapsed: bool = False  # at the end, all images had nearly the same representation


def device_of(name: str) -> torch.device:
    """'auto' takes the GPU if there is one. Raises Problem T-101 (78) for cuda without one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise Problem("T-101", Exit.CONFIG, "engine.device is cuda, and no GPU is visible", fix="engine.device: auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def full_batches(images: int, batch_size: int) -> int:
    """Steps of an epoch. Raises Problem T-102 (78) if there is none."""
    if images < batch_size:
        raise Problem(
            "T-102",
            Exit.CONFIG,
            f"0 steps per epoch: batch_size {batch_size} is larger than the {images} training images",
            fix=f"batch_size: {images} or less",
        )
    return images // batch_size


def train(
    task: Task, state: Path, engine: Engine, say: Callable[[str], None] = print, batches: Source | None = None
) -> Outcome:
    """Train from the newest checkpoint in `state`, or from the start, to the end, on `batches` of the task's images.

    Metrics go to state/metrics.jsonl, cut back on resume to what the checkpoint had seen.
    Raises Problem: T-102 (78) no full batch; T-103 (76) non-finite loss; T-104 (76) collapse; T-105 (75) stopped early;
    T-111 (78) a batch that the processes cannot share equally; T-113 and T-114 (78) memory cannot be saved that way.
    """
    settings, device = task.train, next(task.encoder.parameters()).device
    batch_size, epochs = settings["batch_size"], settings["epochs"]
    steps_per_epoch = full_batches(len(task.index), batch_size)
    if batch_size % (distributed.processes() * engine.accumulate):
        what = f"a batch of {batch_size} cannot be shared by {distributed.processes()} processes"
        what += f", each of them in {engine.accumulate} parts" if engine.accumulate > 1 else ""
        raise Problem("T-111", Exit.CONFIG, what, fix="a multiple of their number")
    steps = steps_per_epoch * epochs
    modules = nn.ModuleDict(
        {"encoder": task.encoder, "objective": task.objective, "auxiliary": nn.ModuleDict(task.auxiliaries)}
    )
    if task.online:
        modules["online"] = task.online
    lr, warmup_steps = settings["lr_per_256"] * batch_size / 256, settings["warmup_epochs"] * steps_per_epoch
    scales = {f"model.{prefix}": factor for prefix, factor in task.lr_scales.items()}
    groups = optim.parameter_groups(
        [task.encoder, task.objective, *task.auxiliaries.values()],
        settings["weight_decay"],
        scales,
        task.objective.undecayed_rate,
        settings["decay"] == "everything",
    )
    optimizer = optim.build(groups, settings["optimizer"], lr, settings["momentum"])
    half = _half_precision(settings["precision"], device)
    taught = task.encoder, task.objective, task.auxiliaries
    usual = Step(*taught, optimizer, settings["clip_norm"], half, engine.accumulate)
    make_step: Step | Recorded = Recorded(usual) if recordable(usual, engine, device) else usual
    if engine.checkpointing:
        checkpoint_activations(task.encoder, task.auxiliaries)

    checkpoints, leads = state / "checkpoints", distributed.rank() == 0
    metrics = _Metrics(state / "metrics.jsonl") if leads else None
    step, cost, attempts, save_seconds, collapsed = 0, Cost(), 1, 0.0, False
    if entry := checkpoint.newest(checkpoints):
        saved = checkpoint.load(checkpoints, entry, device)
        modules.load_state_dict(saved["modules"])
        groups = optimizer.state_dict()["param_groups"]  # as they are here, which may be another device
        optimizer.load_state_dict({"state": saved["optimizer"], "param_groups": groups})
        step, cost, attempts = saved["step"], Cost(**saved["cost"]), saved["attempts"] + 1
        collapsed, seen = saved["collapsed"], entry["metrics_bytes"]
        say(f"resumed at step {step} of {steps}")
    else:
        seen = 0
    if metrics:
        metrics.cut(seen)
    distributed.any_of(False)  # nobody writes before everybody has read

    def save() -> None:
        nonlocal save_seconds
        if not metrics:
            return
        task.check()
        tick = time.monotonic()
        whole: dict[str, Any] = {"modules": modules.state_dict(), "optimizer": optimizer.state_dict()["state"]}
        cost.look()
        whole |= {"step": step, "cost": vars(cost), "attempts": attempts, "collapsed": collapsed}
        checkpoint.save(checkpoints, step, whole, metrics_bytes=metrics.flush())
        save_seconds = time.monotonic() - tick

    unchecked: list[tuple[int, Tensor, Tensor]] = []  # step, (loss, gradient norm), ids: read without stalling a GPU
    batches, begun = batches or Batches(task, device, engine.accumulate), -1
    saved_at, deadline = time.monotonic(), _deadline(engine)
    with (
        _stop_requests() as stop,
        distributed.whole_batch_norm(),
        Progress(f"seed {task.seed}", steps, say) as progress,
    ):
        while step < steps:
            epoch = step // steps_per_epoch
            if epoch != begun:
                begun = epoch
                modules.train()
                for module in task.frozen:
                    module.eval()
                if engine.accumulate > 1:
                    refuse_parts(modules, task.objective)
            tick = time.monotonic()
            factor = learning_rate_factor(step, steps, warmup_steps, settings["schedule"])
            optim.set_rates(optimizer, lr, factor)
            seen = make_step(batches(Clock(step, steps, steps_per_epoch)))
            step += 1
            task.objective.after_step(task.encoder, step / steps)
            for auxiliary in task.auxiliaries.values():
                auxiliary.after_step(task.encoder, step / steps)
            if task.online:
                task.online.learn(seen.pooled, seen.labels, LR_PER_256 * batch_size / 256 * factor)
            unchecked.append((step, torch.stack((seen.loss, seen.scalars["gradient_norm"])), seen.rows))

            ends_epoch = step % steps_per_epoch == 0
            due, ending, to_save = distributed.any_of(
                leads and (time.monotonic() - saved_at) / 60 >= engine.checkpoint_minutes,
                stop.is_set() or time.monotonic() >= deadline - 4 * save_seconds,
                leads and ends_epoch and time.monotonic() - saved_at > 1,
            )
            if step % engine.log_every_steps == 0 or ends_epoch or due or ending or device.type == "cpu":
                _refuse_non_finite(unchecked, state, optimizer)
            if step % engine.log_every_steps == 0 or step in (1, steps):
                watched = seen.scalars | task.objective.monitor(seen.features, seen.batch)
                for name, auxiliary in task.auxiliaries.items():
                    told = auxiliary.monitor(seen.features[0].grid)
                    watched |= {f"{name}/{key}": value for key, value in told.items()}
                numbers = [value.float().clone() for value in watched.values()]
                distributed.average(numbers)
                values = dict(zip(watched, torch.stack(numbers).tolist(), strict=True))
                if task.online:
                    values |= task.online.told()
                if metrics:
                    task.check()
                    metrics.write(step, step / steps_per_epoch, values | {"lr": lr * factor})
                    progress.show(step, values)
            cost.spent(epoch, batch_size, time.monotonic() - tick)  # at the latest a log step waits for the GPU
            if metrics and ends_epoch and task.each_epoch and (found := task.each_epoch(epoch + 1)):
                metrics.write(step, epoch + 1, found)
            if ends_epoch:
                collapsed = _collapsed(task, step, steps, epoch + 1)
            if to_save or due or ending or step == steps:
                save()
                saved_at = time.monotonic()
            if ending and step < steps:
                raise Problem(
                    "T-105", Exit.RESUMABLE, f"stopped at step {step} of {steps}; state saved", fix="run again to go on"
                )
    if metrics:
        metrics.flush()
    return Outcome(steps, attempts, cost, collapsed)


def _half_precision(precision: str, device: torch.device) -> bool:
    """bfloat16 autocast: when asked for, or by itself on a GPU that has it."""
    return precision == "bfloat16" or (precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())


def _deadline(engine: Engine) -> float:
    """When to stop by itself, on the monotonic clock: as set, or with a margin before the SLURM job's time limit, at
    most a third of what is left.

    The scheduler's own warning cannot be relied on: it may come late, early, to the wrong process, or not at all.
    """
    now, left = time.monotonic(), slurm.seconds_left()
    asked = now + 60 * engine.deadline_minutes if engine.deadline_minutes is not None else math.inf
    return asked if left is None else min(asked, now + left - min(LIMIT_MARGIN_SECONDS, left / 3))


def _refuse_non_finite(
    unchecked: list[tuple[int, Tensor, Tensor]], state: Path, optimizer: torch.optim.Optimizer
) -> None:
    finite = torch.stack([torch.isfinite(numbers).all() for _, numbers, _ in unchecked]).tolist()
    if not all(finite):
        step, (loss, norm), ids = unchecked[finite.index(False)]
        raise Problem(
            "T-103",
            Exit.DIVERGED,
            f"the loss is {float(loss):g} and its gradient's norm {float(norm):g} at step {step}",
            where=f"images {', '.join(map(str, ids.tolist()[:12]))}{' ...' if len(ids) > 12 else ''} of the split",
            why=f"learning rate {optimizer.param_groups[0]['lr']:.3g}",
            fix="a lower lr_per_256, a longer warmup_epochs, clip_norm, or precision: float32",
            kept=f"the last good checkpoint in {state}",
        )
    unchecked.clear()


def _collapsed(task: Task, step: int, steps: int, epoch: int) -> bool:
    """At the end of an epoch. An objective has two epochs, and its patience, to find its feet; then collapse is told
    back, or raised if it is to stop the run."""
    spread = task.objective.spread()
    patient = epoch < 2 or step < min(task.objective.patience, steps // 5)
    collapsed = not patient and distributed.any_of(spread < task.objective.alarm)[0]
    stops = task.train["on_collapse"] == "stop"
    if collapsed and stops:
        raise Problem(
            "T-106",
            Exit.DIVERGED,
            f"collapse: every image has nearly the same representation at step {step}, the end of epoch {epoch}",
            why=f"{task.objective.measure} is {spread:.3g}, the alarm is at {task.objective.alarm:g}",
            fix=f"{task.objective.remedy}; or pretrain.on_collapse: report, to let it run and be reported",
        )
    for name, auxiliary in task.auxiliaries.items():
        if not distributed.any_of(auxiliary.collapsed())[0]:
            continue
        collapsed = True
        if stops:
            raise Problem(
                "T-104",
                Exit.DIVERGED,
                f"{name} collapsed the grid by step {step}",
                why="its deviation over the batch fell below a tenth of what it was after the first epoch",
                fix=f"auxiliary.{name}.preset: sound, or a smaller weight;\n"
                "or finetune.on_collapse: report, to let it run and be reported",
            )
    return collapsed


class _Metrics:
    """state/metrics.jsonl: one object a line, appended; cut back to a checkpoint on resume."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut(self, size: int) -> None:
        """Go on after `size` bytes, in a new file: a process that was taken for dead may still hold the old one."""
        before = self.path.read_bytes()[:size] if size else b""
        write_atomic(self.path, before)
        self.file = self.path.open("ab")

    def write(self, step: int, epoch: float, values: dict[str, float]) -> None:
        row = {"step": step, "epoch": round(epoch, 4)} | {key: float(f"{value:.7g}") for key, value in values.items()}
        self.file.write(json.dumps(row).encode() + b"\n")
        self.file.flush()

    def flush(self) -> int:
        """Everything on disk; its size in bytes."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.file.tell()


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """TERM, INT, USR1 and USR2 ask to save and stop after the step at hand; a third one ends at once."""
    event, count = threading.Event(), [0]

    def ask(number: int, frame: object) -> None:
        count[0] += 1
        event.set()
        if count[0] >= 3:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {
        number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    }
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
