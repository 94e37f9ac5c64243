"""Two processes that share a batch do what one does with all of it. Real processes, real collectives (gloo, CPU)."""

import copy
import os

import pytest
import torch
import torch.multiprocessing as mp
from timm.layers import BatchNormAct2d
from torch import nn

from sandglass import distributed
from sandglass.backbones.grid import build
from sandglass.data.loader import Batch, step_generator
from sandglass.engine.online import OnlineProbe
from sandglass.objectives.byol import BYOL
from sandglass.objectives.byol import SETTINGS as BYOL_SETTINGS
from sandglass.registry import default

IMAGES = 8


def information_nce(z):
    """Two views of each image: (2, B, D). Every image is a negative of every other, so all rows are needed."""
    a, b = (distributed.gather(view) for view in nn.functional.normalize(z, dim=2))
    own = distributed.rank() * z.shape[1] + torch.arange(z.shape[1])
    return nn.functional.cross_entropy(a[own] @ b.T / 0.2, own)


def norms():
    torch.manual_seed(1)
    return nn.Sequential(
        BatchNormAct2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.BatchNorm1d(144)
    ).double()


def half(x, dim=0):
    return x.chunk(distributed.processes(), dim)[distributed.rank()]


def gradients(module):
    found = [p.grad for p in module.parameters() if p.grad is not None]
    distributed.average(found)
    return torch.cat([gradient.flatten() for gradient in found])


def byol():
    torch.manual_seed(3)
    encoder = build("toy", 32, 0, [0.5] * 3, [0.25] * 3).double()
    settings = {key: default(row) for key, row in BYOL_SETTINGS.items()} | {"hidden": 16, "out": 8}
    objective = BYOL(encoder, settings, 0).double()
    torch.manual_seed(4)
    views = [half(torch.rand(IMAGES, 3, 32, 32, dtype=torch.float64)) for _ in range(2)]
    batch = Batch(views, torch.zeros(len(views[0])), torch.arange(len(views[0])), step_generator(0, 0, 0, "loss"))
    both = nn.ModuleList([encoder, objective])
    objective.loss(encoder, [encoder(view) for view in views], batch)["loss"].backward()
    return {"byol": gradients(both), "byol buffers": torch.cat([b.double().flatten() for b in both.buffers()])}


def online():
    """A probe that learns beside: every half of a batch has labels of its own, and not as many."""
    torch.manual_seed(5)
    probe = OnlineProbe(6, 3, torch.device("cpu"))
    for lr in (0.5, 0.2):
        rows, labels = torch.randn(IMAGES, 6), torch.tensor([0, 1, 2, 0, -1, -1, 1, -1])
        probe.learn(half(rows), half(labels), lr)
    return {"online": probe.weights, "online accuracy": torch.tensor(probe.told()["online_train_top1"])}


def everything():
    """What one process, or each of two, computes."""
    torch.manual_seed(2)
    rows = torch.randn(2, IMAGES, 5, dtype=torch.float64)
    head = nn.Linear(5, 3, dtype=torch.float64)
    information_nce(head(half(rows, 1))).backward()
    found = {"contrastive": gradients(head)}
    model = norms()
    images, wanted = torch.randn(IMAGES, 3, 8, 8, dtype=torch.float64) * 3 + 1, torch.randn(IMAGES, 144)
    y = model(half(images))
    (y * half(wanted)).sum(1).mean().backward()
    found |= {"norm": distributed.gather(y.detach()), "norm gradient": gradients(model)}
    found["running"] = torch.cat([b.double().flatten() for b in model.buffers()])
    return found | byol() | online()


def process(rank, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = (folder / "port").read_text()
    torch.set_num_threads(1)
    with distributed.joined():
        with distributed.whole_batch_norm():
            found = everything()
        found["apart"] = everything()["norm gradient"]  # without it, each half is normalised by itself
        flags = distributed.any_of(rank == 1, False, rank == 0)
        found["flags"] = torch.tensor(flags)
        found["told"] = torch.tensor(distributed.tell(True if rank == 0 else None))
        torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    import socket

    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (folder / "port").write_text(str(free.getsockname()[1]))
    mp.spawn(process, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone():
    return everything()


@pytest.mark.parametrize("what", ["contrastive", "byol", "byol buffers", "online accuracy"])
def test_two_halves_give_what_the_whole_batch_gives(both, alone, what):
    for found in both:
        torch.testing.assert_close(found[what], alone[what], rtol=1e-9, atol=1e-11)


def test_two_halves_teach_the_online_probe_what_the_whole_batch_teaches(both, alone):
    assert alone["online"].abs().max() > 0.1
    for found in both:
        torch.testing.assert_close(found["online"], alone["online"], rtol=1e-5, atol=1e-7)  # it works in float32


@pytest.mark.parametrize("what", ["norm", "norm gradient", "running"])
def test_batch_norm_sees_the_whole_batch_whatever_layer_asks(both, alone, what):
    for found in both:
        torch.testing.assert_close(found[what], alone[what], rtol=1e-9, atol=1e-9)


def test_halves_normalised_apart_would_be_noticed(both, alone):
    assert (both[0]["apart"] - alone["norm gradient"]).abs().max() > 0.1


def test_flags_and_word_reach_every_process(both):
    for found in both:
        assert found["flags"].tolist() == [True, False, True] and bool(found["told"])


def test_what_losses_draw_does_not_depend_on_who_shares_the_batch():
    def draw(n, generator):
        return torch.rand(n, 3, generator=generator)

    def batch(n, *share):
        return Batch([], torch.zeros(n), torch.arange(n), step_generator(0, 0, 0, "loss"), *share)

    whole = batch(8).drawn(draw)
    assert torch.equal(torch.cat([batch(4, rank, 2).drawn(draw) for rank in (0, 1)]), whole)


def test_alone_nothing_is_gathered_or_averaged():
    x = torch.randn(3, requires_grad=True)
    assert distributed.gather(x) is x and distributed.any_of(True, False) == [True, False]
    before = copy.deepcopy(x)
    distributed.average([x])
    assert torch.equal(x, before) and distributed.processes() == 1 and distributed.rank() == 0
