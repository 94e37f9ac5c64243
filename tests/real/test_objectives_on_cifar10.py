"""Every objective learns for a few epochs on real CIFAR-10 images, on a CPU, without collapse."""

import json
from statistics import mean

import pytest
import torch

from sandglass.backbones.grid import build
from sandglass.config import Engine, Pretrain, resolve
from sandglass.data import catalog, pack
from sandglass.data.loader import open_split
from sandglass.engine.task import Task
from sandglass.engine.train import train
from sandglass.objectives import OBJECTIVES
from sandglass.registry import literals
from sandglass.views import RECIPES

IMAGES, EPOCHS, BATCH = 960, 6, 64


@pytest.fixture(scope="module")
def packed(tmp_path_factory, shared_data):
    folder = tmp_path_factory.mktemp("cifar10")
    entry = catalog.Entry(name="cifar10-subset", format="cifar10", about="", source="")
    archive = shared_data / "cifar10" / "cifar-10-python-subset.tar.gz"
    pack.pack(entry, archive, folder, store_size=None, val_fraction=0.1, seed=0, on_bad_image="error")
    return folder


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_it_learns_and_does_not_collapse(packed, tmp_path, name):
    torch.manual_seed(0)
    kind, split = OBJECTIVES.get(name), open_split(packed, "train")
    classes = len(split.info["classes"])
    encoder = build("toy", 32, classes if kind.needs_labels else 0, split.info["mean"], split.info["std"])
    settings = resolve(OBJECTIVES, name, {})
    settings |= {key: 64 for key, value in settings.items() if type(value) is int and value > 64}
    recipe = literals(OBJECTIVES.rows[name].partition(":")[0])["VIEWS"]
    views = resolve(RECIPES, recipe, {})
    views |= {"small_count": 2} if views.get("small_count") else {}
    values = Pretrain(epochs=EPOCHS, batch_size=BATCH, lr_per_256=8e-3, warmup_epochs=1, on_collapse="report")
    index = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:IMAGES]
    task = Task(
        encoder, kind(encoder, settings, classes), {}, split, index, {recipe: views}, 32, values.model_dump(), 0
    )
    outcome = train(task, tmp_path, Engine(device="cpu", log_every_steps=1), lambda text: None)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    epoch = IMAGES // BATCH
    assert len(losses) == EPOCHS * epoch
    assert mean(losses[-epoch:]) < mean(losses[5:epoch]), losses  # the first steps fill queues
    assert rows[-1]["effective_rank"] > 2 and not outcome.collapsed
