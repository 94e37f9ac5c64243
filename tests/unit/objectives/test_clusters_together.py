"""SwAV, DINO and Self-Classifier: two processes that share a batch learn what one learns from all of it."""

import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from sandglass import distributed
from sandglass.backbones.grid import build
from sandglass.config import resolve
from sandglass.data.loader import Batch, Clock, step_generator
from sandglass.objectives import OBJECTIVES

IMAGES, STEPS = 8, 3
SETTINGS = {
    "swav": {"hidden": 16, "out": 8, "prototypes": 12, "queue": 10, "queue_from": 0.0, "frozen_steps": 0},
    "dino": {"hidden": 16, "bottleneck": 8, "out": 12, "frozen_epochs": 0},
    "self_classifier": {"hidden": 16, "out": 8, "heads": [1, 2], "queue": 10, "queue_from_epoch": 0},
}


def learned(name):
    """All state after three steps, of the queue's use too."""
    torch.manual_seed(3)
    encoder = build("toy", 32, 0, [0.5] * 3, [0.25] * 3).double()
    objective = OBJECTIVES.get(name)(encoder, resolve(OBJECTIVES, name, SETTINGS[name]), 3).double()
    both = nn.ModuleList([encoder, objective])
    trained = [p for p in both.parameters() if p.requires_grad]
    rank, processes = distributed.rank(), distributed.processes()
    for step in range(STEPS):
        whole = [torch.rand(IMAGES, 3, side, side, dtype=torch.float64) for side in (32, 32, 16)]
        views, index = [x.chunk(processes)[rank] for x in whole], torch.arange(IMAGES).chunk(processes)[rank]
        clock, generator = Clock(step, STEPS, 1), step_generator(0, step, 0, "loss")
        batch = Batch(views, torch.zeros(len(index)), index, generator, rank, processes, clock)
        objective.loss(encoder, objective.features(encoder, batch), batch)["loss"].backward()
        distributed.average([p.grad for p in trained if p.grad is not None])
        with torch.no_grad():
            for p in trained:
                if p.grad is not None:
                    p -= 0.1 * p.grad
                    p.grad = None
        objective.after_step(encoder, (step + 1) / STEPS)
    return both.state_dict()


def process(rank, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = (folder / "port").read_text()
    torch.set_num_threads(1)
    with distributed.joined(), distributed.whole_batch_norm():
        torch.save({name: learned(name) for name in SETTINGS}, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (folder / "port").write_text(str(free.getsockname()[1]))
    mp.spawn(process, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", list(SETTINGS))
def test_two_halves_learn_what_the_whole_batch_teaches(both, name):
    alone = learned(name)
    for found in both:
        for key, value in found[name].items():
            torch.testing.assert_close(
                value, alone[key], rtol=1e-8, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}"
            )
