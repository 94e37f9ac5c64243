"""The loop: same steps after a stop, loud about what cannot go on, and nothing trained that should not be."""

import json
import math
import time

import numpy as np
import pytest
import torch

from sandglass import slurm
from sandglass.auxiliary import AUXILIARY
from sandglass.backbones.grid import build
from sandglass.config import Engine, Optimisation, resolve
from sandglass.data import catalog, pack
from sandglass.data.loader import open_split
from sandglass.engine import checkpoint
from sandglass.engine.task import Task
from sandglass.engine.train import _deadline, device_of, train
from sandglass.errors import Exit, Problem
from sandglass.objectives.byol import BYOL
from sandglass.objectives.supervised import Supervised
from sandglass.views import RECIPES

ENGINE = Engine(device="cpu", checkpoint_minutes=0, log_every_steps=2)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    pack.pack(catalog.CATALOG["digits"], None, folder, store_size=None, val_fraction=0.1, seed=0, on_bad_image="error")
    return folder


def task(packed, objective="byol", images=64, auxiliaries=(), **settings):
    torch.manual_seed(0)
    split = open_split(packed, "train")
    recipe = "baseline" if objective == "byol" else "plain"
    encoder = build("toy", 32, 10 if objective == "supervised" else 0, split.info["mean"], split.info["std"])
    if objective == "byol":
        learned = BYOL(encoder, {"hidden": 16, "out": 8, "momentum": 0.9, "momentum_end": 1.0}, 10)
    else:
        learned = Supervised(encoder, {}, 10)
    tasks = {name: AUXILIARY.get(name)(encoder, resolve(AUXILIARY, name, {})) for name in auxiliaries}
    values = Optimisation(epochs=3, batch_size=16, warmup_epochs=1).model_dump() | settings
    views = {recipe: resolve(RECIPES, recipe, {})}
    return Task(encoder, learned, tasks, split, torch.arange(images), views, 32, values, seed=5)


def weights(t):
    return {name: value.clone() for name, value in t.encoder.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("objective", "auxiliaries"),
    [("byol", ()), ("supervised", ("drloc", "masked_embedding")), ("supervised", ("jigsaw", "masked_image"))],
)
def test_a_run_stopped_at_every_step_ends_where_an_undisturbed_one_does(packed, tmp_path, objective, auxiliaries):
    calm = task(packed, objective, auxiliaries=auxiliaries)
    outcome = train(calm, tmp_path / "calm", ENGINE, say=lambda text: None)
    assert outcome.steps == 12 and outcome.attempts == 1
    stops = 0
    hasty = Engine(device="cpu", checkpoint_minutes=0, log_every_steps=2, deadline_minutes=1e-9)
    while True:
        disturbed = task(packed, objective, auxiliaries=auxiliaries)
        try:
            outcome = train(disturbed, tmp_path / "disturbed", hasty, say=lambda text: None)
            break
        except Problem as problem:
            assert problem.exit == Exit.RESUMABLE
            stops += 1
    assert stops == 11 and outcome.attempts == 12
    assert same(weights(calm), weights(disturbed))
    assert (tmp_path / "calm" / "metrics.jsonl").read_bytes() == (tmp_path / "disturbed" / "metrics.jsonl").read_bytes()


def test_changed_images_teach_by_their_gradient_alone(packed, tmp_path):
    """Without weight, tasks with a forward of their own leave no trace: not in batch norm's statistics either."""
    ended = {}
    for weight, names in ((0.0, ()), (0.0, ("jigsaw", "masked_image")), (0.1, ("jigsaw", "masked_image"))):
        t = task(packed, "supervised", auxiliaries=names)
        for auxiliary in t.auxiliaries.values():
            auxiliary.settings["weight"] = weight
        train(t, tmp_path / f"{weight}{len(names)}", ENGINE, say=lambda text: None)
        ended[weight, names] = weights(t)
    plain, unweighted, taught = ended.values()
    assert same(plain, unweighted) and not same(plain, taught)


def test_metrics_after_the_checkpoint_are_cut_on_resume(packed, tmp_path):
    t = task(packed)
    train(t, tmp_path, ENGINE, say=lambda text: None)
    file = tmp_path / "metrics.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"step": 999, "half a li')
    train(task(packed), tmp_path, ENGINE, say=lambda text: None)
    assert file.read_bytes() == whole


def test_another_seed_is_another_run(packed, tmp_path):
    a, b = task(packed), task(packed)
    b.seed = 6
    train(a, tmp_path / "a", ENGINE, say=lambda text: None)
    train(b, tmp_path / "b", ENGINE, say=lambda text: None)
    assert not same(weights(a), weights(b))


def test_supervised_training_learns(packed, tmp_path):
    t = task(packed, "supervised", images=512, epochs=12, batch_size=32, lr_per_256=0.08)
    train(t, tmp_path, ENGINE, say=lambda text: None)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"] and rows[0]["loss"] == pytest.approx(np.log(10), rel=0.2)


def test_no_full_batch_is_said_before_training(packed, tmp_path):
    with pytest.raises(Problem) as caught:
        train(task(packed, images=10), tmp_path, ENGINE)
    assert caught.value.exit == Exit.CONFIG and "batch_size: 10" in caught.value.fix


@pytest.mark.parametrize(
    "poison", [lambda x: x * float("nan"), lambda x: x + (x.detach() - x).sqrt()], ids=["loss", "gradient"]
)
def test_non_finite_numbers_stop_with_batch_ids_and_keep_a_good_checkpoint(packed, tmp_path, poison):
    t = task(packed, "supervised", clip_norm=0.0)
    whole, calls = t.objective.loss, []

    def poisoned(encoder, features, batch):
        calls.append(batch.index)
        out = whole(encoder, features, batch)
        return out | {"loss": poison(out["loss"])} if len(calls) == 6 else out

    t.objective.loss = poisoned
    with pytest.raises(Problem) as caught:
        train(t, tmp_path, ENGINE, say=lambda text: None)
    assert caught.value.exit == Exit.DIVERGED and "at step 6" in caught.value.what
    assert str(int(calls[5][0])) in caught.value.where
    entry = checkpoint.newest(tmp_path / "checkpoints")
    saved = checkpoint.load(tmp_path / "checkpoints", entry, torch.device("cpu"))
    assert entry["step"] == 5 and all(torch.isfinite(v).all() for v in saved["modules"].values())


def test_frozen_modules_keep_weights_and_statistics(packed, tmp_path):
    t = task(packed, "supervised")
    stem = t.encoder.model.stages[0]
    stem.requires_grad_(False)
    t.frozen = [stem]
    before = {name: value.clone() for name, value in stem.state_dict().items()}
    rest = t.encoder.model.stages[1][0].weight.clone()
    train(t, tmp_path, ENGINE, say=lambda text: None)
    assert same(before, stem.state_dict())
    assert not torch.equal(rest, t.encoder.model.stages[1][0].weight)


def test_learning_rate_scale_reaches_the_named_part_only(packed, tmp_path):
    t = task(
        packed, "supervised", optimizer="sgd", schedule="constant", warmup_epochs=0.0, clip_norm=0.0, weight_decay=0.0
    )
    t.lr_scales = {"stages.0": 1e-9}
    first, second = t.encoder.model.stages[0][0].weight.clone(), t.encoder.model.stages[1][0].weight.clone()
    train(t, tmp_path, ENGINE, say=lambda text: None)
    assert (t.encoder.model.stages[0][0].weight - first).abs().max() < 1e-7
    assert (t.encoder.model.stages[1][0].weight - second).abs().max() > 1e-6


def test_cuda_without_a_gpu_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto").type == "cpu"
    with pytest.raises(Problem) as caught:
        device_of("cuda")
    assert caught.value.exit == Exit.CONFIG


@pytest.mark.parametrize(("patience", "stops_at"), [(0, 8), (10, 12), (1000, 16)])
def test_collapse_stops_a_run_after_two_epochs_and_the_objectives_patience(packed, tmp_path, patience, stops_at):
    t = task(packed, epochs=20, on_collapse="stop")  # 80 steps, 4 an epoch: patience ends after 16 at the latest
    t.objective.patience, t.objective.measure, t.objective.spread = patience, "what it looks at", lambda: 0.125
    with pytest.raises(Problem, match=f"at step {stops_at},") as problem:
        train(t, tmp_path, ENGINE, say=lambda text: None)
    assert problem.value.id == "T-106" and problem.value.exit == Exit.DIVERGED
    assert problem.value.why == "what it looks at is 0.125, the alarm is at 0.2"


def test_collapse_that_is_to_be_reported_is_in_the_outcome_also_when_only_the_end_was_resumed(packed, tmp_path):
    def collapsing(end: float):
        t = task(packed, on_collapse="report")
        t.objective.spread = lambda: end
        return t

    assert not train(collapsing(0.9), tmp_path / "healthy", ENGINE, say=lambda text: None).collapsed
    assert train(collapsing(0.1), tmp_path / "state", ENGINE, say=lambda text: None).collapsed
    again = train(collapsing(math.inf), tmp_path / "state", ENGINE, say=lambda text: None)  # nothing left to do
    assert again.collapsed and again.attempts == 2
    # ... and what collapsed in between and recovered did not collapse
    recovers = task(packed, on_collapse="report")
    spreads = iter((0.9, 0.1, 0.9))
    recovers.objective.spread = lambda: next(spreads)
    assert not train(recovers, tmp_path / "recovers", ENGINE, say=lambda text: None).collapsed


def test_a_grid_that_an_auxiliary_task_collapsed_stops_a_run_or_is_in_its_outcome(packed, tmp_path):
    def collapsing(what):
        t = task(packed, auxiliaries=("drloc",), on_collapse=what)
        t.auxiliaries["drloc"].collapsed = lambda: True
        return t

    with pytest.raises(Problem, match="drloc collapsed the grid by step 4") as problem:
        train(collapsing("stop"), tmp_path / "stop", ENGINE, say=lambda text: None)
    assert problem.value.id == "T-104" and problem.value.exit == Exit.DIVERGED and "on_collapse" in problem.value.fix
    outcome = train(collapsing("report"), tmp_path / "report", ENGINE, say=lambda text: None)
    assert outcome.collapsed and outcome.steps == 12


@pytest.mark.parametrize(("left", "plan"), [(3600.0, 3480.0), (60.0, 40.0), (None, math.inf)])
def test_a_training_plans_to_end_before_its_time_limit(
    monkeypatch: pytest.MonkeyPatch, left: float | None, plan: float
) -> None:
    monkeypatch.setattr(slurm, "seconds_left", lambda: left)
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    assert _deadline(Engine()) == 1000 + plan
    assert _deadline(Engine(deadline_minutes=0.5)) == 1030
