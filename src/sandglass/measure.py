"""What a training costs, told before it: some of its own steps on this device, on its own data, and nothing kept."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from sandglass.config import Params
from sandglass.engine.train import device_of, full_batches, train
from sandglass.runs import RunFolder
from sandglass.stages import task_of
from sandglass.study import Run

STEPS = 8  # that count, after as many that warm up


def minutes_per_epoch(root: Path, run: Run, params: Params) -> tuple[float, str]:
    """Of a pretrain or finetune run, with the device's name: the steps alone, as a finished run counts them.

    Weights from a parent do not make a step dearer or cheaper, so a finetuning is measured from random ones. Raises
    Problem D-115 (66) if its data is not packed, and what the training itself would refuse.
    """
    if run.stage == "finetune" and run.settings["init"] == "pretrained":
        run = replace(run, settings=run.settings | {"init": "scratch"})
    task = task_of(run, RunFolder(root, run), params)
    batch_size = task.train["batch_size"]
    steps = full_batches(len(task.index), batch_size)
    task.index = task.index[: min(STEPS, steps) * batch_size]
    task.train = task.train | {"epochs": 2, "warmup_epochs": 0, "on_collapse": "report"}
    with tempfile.TemporaryDirectory(prefix="sandglass.") as state:
        cost = train(task, Path(state), params.engine, lambda text: None).cost
    device = device_of(params.engine.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return cost.later_seconds / cost.later_images * steps * batch_size / 60, name
