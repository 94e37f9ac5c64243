"""The online probe: an ordinary classifier trained by SGD, which the pretraining beside it does not notice."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sandglass.backbones.grid import Features, build
from sandglass.config import Engine, Pretrain
from sandglass.data import catalog, pack
from sandglass.data.loader import open_split
from sandglass.engine.online import OnlineProbe
from sandglass.engine.task import Task
from sandglass.engine.train import train
from sandglass.errors import Exit, Problem
from sandglass.objectives.byol import BYOL
from sandglass.objectives.supervised import Supervised

CPU = torch.device("cpu")
ENGINE = Engine(device="cpu", checkpoint_minutes=0, log_every_steps=2)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    pack.pack(catalog.CATALOG["digits"], None, folder, store_size=None, val_fraction=0.1, seed=0, on_bad_image="error")
    return folder


def task(packed, with_probe=True, objective="byol", **settings):
    torch.manual_seed(0)
    split = open_split(packed, "train")
    encoder = build("toy", 32, 10 if objective == "supervised" else 0, split.info["mean"], split.info["std"])
    if objective == "byol":
        learned = BYOL(encoder, {"hidden": 16, "out": 8, "momentum": 0.9, "momentum_end": 1.0}, 10)
    else:
        learned = Supervised(encoder, {}, 10)
    values = Pretrain(epochs=3, batch_size=16, warmup_epochs=1.0).model_dump() | settings
    views = {"baseline": {}} if objective == "byol" else {"plain": {}}
    online = OnlineProbe(encoder.width, 10, CPU) if with_probe else None
    return Task(encoder, learned, {}, split, torch.arange(64), views, 32, values, seed=5, online=online)


def silent(text):
    pass


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def pooled(rows):
    return Features(rows, rows, rows)


def test_equals_cross_entropy_and_torchs_own_sgd():
    torch.manual_seed(0)
    probe = OnlineProbe(6, 4, CPU)
    head = torch.nn.Linear(6, 4)
    torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0, momentum=0.9)
    for lr in (0.5, 0.3, 0.1, 0.05):
        rows, labels = torch.randn(12, 6), torch.randint(-1, 4, (12,))
        assert (labels == -1).any()
        probe.learn(rows, labels, lr)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        F.cross_entropy(head(rows), labels, ignore_index=-1).backward()
        optimizer.step()
        torch.testing.assert_close(probe(pooled(rows)), head(rows), rtol=1e-4, atol=1e-6)
    assert probe.weights.abs().max() > 0.1


def test_a_batch_without_labels_teaches_nothing():
    probe = OnlineProbe(6, 4, CPU)
    probe.learn(torch.randn(8, 6), torch.full((8,), -1), 1.0)
    assert not probe.weights.any() and probe.told() == {}


def test_accuracy_is_that_before_each_step_since_it_was_last_told():
    probe = OnlineProbe(2, 3, CPU)
    rows, labels = torch.eye(2), torch.tensor([1, 2])
    probe.learn(rows, labels, 0.5)  # of equal scores the first class: none right
    probe.learn(rows, torch.tensor([1, -1]), 0.5)  # right by now
    assert probe.told() == {"online_train_top1": pytest.approx(1 / 3)}
    assert probe.told() == {}


@pytest.mark.parametrize("objective", ["byol", "supervised"])
def test_the_pretraining_is_the_same_to_the_bit_with_and_without_it(packed, tmp_path, objective):
    beside, alone = task(packed, True, objective), task(packed, False, objective)
    train(beside, tmp_path / "beside", ENGINE, silent)
    train(alone, tmp_path / "alone", ENGINE, silent)
    assert same(beside.encoder, alone.encoder) and same(beside.objective, alone.objective)
    told = [{k: v for k, v in row.items() if k != "online_train_top1"} for row in logged(tmp_path / "beside")]
    assert told == logged(tmp_path / "alone")
    assert all("online_train_top1" in row for row in logged(tmp_path / "beside"))
    assert beside.online.weights.abs().max() > 0


def test_stopped_at_every_step_it_ends_where_an_undisturbed_one_does(packed, tmp_path):
    calm = task(packed)
    train(calm, tmp_path / "calm", ENGINE, silent)
    hasty, stops = ENGINE.model_copy(update={"deadline_minutes": 1e-9}), 0
    while True:
        disturbed = task(packed)
        try:
            train(disturbed, tmp_path / "disturbed", hasty, silent)
            break
        except Problem as problem:
            assert problem.exit == Exit.RESUMABLE
            stops += 1
    assert stops == 11
    assert same(calm.online, disturbed.online) and same(calm.encoder, disturbed.encoder)
    assert (tmp_path / "calm" / "metrics.jsonl").read_bytes() == (tmp_path / "disturbed" / "metrics.jsonl").read_bytes()


def test_it_learns_from_what_the_encoder_learns(packed, tmp_path):
    t = task(packed, True, "supervised", epochs=40, lr_per_256=0.08, batch_size=32)
    train(t, tmp_path, ENGINE, silent)
    rows = logged(tmp_path)
    assert rows[0]["online_train_top1"] < 0.3 and rows[-1]["online_train_top1"] > 0.5


def test_images_without_labels_teach_it_nothing_in_training(packed, tmp_path):
    t = task(packed)
    t.split.labels = np.full_like(t.split.labels, -1)
    train(t, tmp_path, ENGINE, silent)
    assert not t.online.weights.any() and "online_train_top1" not in logged(tmp_path)[-1]


def test_features_of_something_else_than_images_are_refused():
    with pytest.raises(Problem) as caught:
        OnlineProbe(6, 4, CPU).learn(torch.randn(32, 6), torch.zeros(8, dtype=torch.int64), 1.0)
    assert caught.value.exit == Exit.CONFIG and "online_probe: false" in caught.value.fix
