"""The contract of every objective: a finite scalar, gradients to the encoder, all its state in state_dict, the same run
after a stop, the same result when two processes share a batch, and an alarm when all images become one."""

import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from sandglass import distributed
from sandglass.backbones.grid import Encoder, build
from sandglass.config import Engine, Pretrain, resolve
from sandglass.data import catalog, pack
from sandglass.data.loader import Batch, Clock, open_split, step_generator
from sandglass.engine.task import Task
from sandglass.engine.train import train
from sandglass.errors import Exit, Problem
from sandglass.objectives import OBJECTIVES
from sandglass.registry import literals
from sandglass.views import RECIPES
from sandglass.views.recipes import draw_views, located_views

CLASSES, IMAGES, STEPS_PER_EPOCH = 4, 8, 3


def recipe_of(name):
    return literals(OBJECTIVES.rows[name].partition(":")[0])["VIEWS"]


def built(name, classes=CLASSES):
    """An encoder and a narrow form of the objective on it."""
    torch.manual_seed(0)
    kind = OBJECTIVES.get(name)
    encoder = build("toy", 32, classes if kind.needs_labels else 0, [0.5] * 3, [0.25] * 3)
    settings = resolve(OBJECTIVES, name, {})
    settings |= {key: 16 for key, value in settings.items() if type(value) is int and value > 16}
    filled = {"queue": 2 * IMAGES, "queue_from": 0.0, "queue_from_epoch": 0}  # what a queue holds is state too
    settings |= {key: value for key, value in filled.items() if key in settings}
    return encoder, kind(encoder, settings, classes)


def batch_of(name, step=0, own=slice(None), rank=0, processes=1):
    images = torch.randint(
        0, 256, (IMAGES, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(step)
    )
    recipe, sizes = recipe_of(name), torch.full((IMAGES, 2), 40)
    drawn = draw_views(recipe, resolve(RECIPES, recipe, {}), sizes, 32, step_generator(0, 0, step, "views"))
    views, places = located_views(drawn, images[own], torch.arange(IMAGES)[own])
    labels, index = torch.arange(IMAGES) % CLASSES, torch.arange(IMAGES)
    clock = Clock(step, 4 * STEPS_PER_EPOCH, STEPS_PER_EPOCH)
    generator = step_generator(0, 0, step, "loss")
    return Batch(views, labels[own], index[own], generator, rank, processes, clock, places)


def loss_of(encoder, objective, batch):
    return objective.loss(encoder, objective.features(encoder, batch), batch)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_contract(name):
    encoder, objective = built(name)
    batch = batch_of(name, step=2 * STEPS_PER_EPOCH)  # past what is frozen at first
    features = objective.features(encoder, batch)
    out = objective.loss(encoder, features, batch)
    assert out["loss"].shape == () and out["loss"].dtype == torch.float32 and torch.isfinite(out["loss"])
    assert all(not value.requires_grad and value.shape == () for key, value in out.items() if key != "loss")
    out["loss"].backward()
    used = [p for name, p in encoder.named_parameters() if p.grad is not None]
    assert used and all(torch.isfinite(p.grad).all() for p in used)
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)
    objective.after_step(encoder, 0.5)
    assert objective.monitor(features, batch).keys() >= {"feature_std", "effective_rank"}
    about = OBJECTIVES.about(name)
    assert about["about"] and about["kind"] and about["backbones"] and about["views"] in RECIPES
    for values in about.get("train", {}).values():
        Pretrain.model_validate(values)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_state_is_in_state_dict(name):
    encoder, objective = built(name)
    for step in range(3):
        loss_of(encoder, objective, batch_of(name, step))
        objective.after_step(encoder, 0.1 * step)
    other_encoder, other = built(name)
    other_encoder.load_state_dict(encoder.state_dict())
    other.load_state_dict(objective.state_dict())
    losses = [loss_of(*pair, batch_of(name, 4))["loss"] for pair in ((encoder, objective), (other_encoder, other))]
    assert torch.equal(losses[0], losses[1])


# ------------------------------------------------------------------------------------------------- in the loop


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    pack.pack(catalog.CATALOG["digits"], None, folder, store_size=None, val_fraction=0.1, seed=0, on_bad_image="error")
    return folder


def task(packed, name, **values):
    encoder, objective = built(name, classes=10)
    split = open_split(packed, "train")
    recipe = recipe_of(name)
    settings = Pretrain(epochs=3, batch_size=IMAGES, warmup_epochs=1).model_dump() | values
    views = {recipe: resolve(RECIPES, recipe, {})}
    return Task(encoder, objective, {}, split, torch.arange(2 * IMAGES), views, 32, settings, seed=5)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_stopped_at_every_step_it_ends_where_it_would_have(packed, tmp_path, name):
    calm = task(packed, name, on_collapse="report")
    train(calm, tmp_path / "calm", Engine(device="cpu", checkpoint_minutes=60, log_every_steps=2), lambda text: None)
    hasty = Engine(device="cpu", checkpoint_minutes=0, log_every_steps=2, deadline_minutes=1e-9)
    for _ in range(6):
        disturbed = task(packed, name, on_collapse="report")
        try:
            train(disturbed, tmp_path / "disturbed", hasty, lambda text: None)
        except Problem as problem:
            assert problem.exit == Exit.RESUMABLE
    for module in ("encoder", "objective"):
        one, other = (getattr(t, module).state_dict() for t in (calm, disturbed))
        assert one.keys() == other.keys() and [key for key in one if not torch.equal(one[key], other[key])] == []
    assert (tmp_path / "calm/metrics.jsonl").read_bytes() == (tmp_path / "disturbed/metrics.jsonl").read_bytes()


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "supervised"])
def test_when_all_images_become_one_it_stops_and_says_so(packed, tmp_path, name):
    t = task(packed, name, on_collapse="stop")
    for part in (t.encoder, *t.objective.modules()):
        if isinstance(part, Encoder):  # whatever it sees, it says zero
            for parameter in part.requires_grad_(False).parameters():
                parameter.zero_()
    with pytest.raises(Problem) as caught:
        train(t, tmp_path, Engine(device="cpu"), lambda text: None)
    assert caught.value.exit == Exit.DIVERGED and caught.value.id == "T-106" and "epoch 2" in caught.value.what


# ------------------------------------------------------------------------------------------------- two processes


def computed(name):
    """Gradients and buffers after two steps, of one process with the whole batch or of each of two with its half."""
    encoder, objective = (module.double() for module in built(name))
    both = nn.ModuleList([encoder, objective])
    rank, processes = distributed.rank(), distributed.processes()
    own = slice(rank * IMAGES // processes, (rank + 1) * IMAGES // processes)
    found = []
    for step in (2 * STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH + 1):
        batch = batch_of(name, step, own, rank, processes)
        batch = Batch([view.double() for view in batch.views], *(getattr(batch, key) for key in list(vars(batch))[1:]))
        both.zero_grad()
        loss_of(encoder, objective, batch)["loss"].backward()
        gradients = [p.grad for p in both.parameters() if p.grad is not None]
        distributed.average(gradients)
        objective.after_step(encoder, 0.5)
        found += [gradient.flatten() for gradient in gradients]
    return torch.cat([*found, *(b.double().flatten() for b in both.buffers())])


def process(rank, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = (folder / "port").read_text()
    torch.set_num_threads(1)
    with distributed.joined(), distributed.whole_batch_norm():
        torch.save({name: computed(name) for name in OBJECTIVES}, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (folder / "port").write_text(str(free.getsockname()[1]))
    mp.spawn(process, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_two_processes_that_share_a_batch_are_one(shared, name):
    alone = computed(name)
    for found in shared:
        torch.testing.assert_close(found[name], alone, rtol=1e-8, atol=1e-10)
