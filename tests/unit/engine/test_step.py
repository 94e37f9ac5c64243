"""A batch in parts, and activations computed twice, teach what the whole batch teaches; or are refused."""

import pytest
import torch

from sandglass.auxiliary import AUXILIARY
from sandglass.backbones.grid import build
from sandglass.config import Engine, Optimisation, resolve
from sandglass.data import catalog, pack
from sandglass.data.loader import Batch, open_split, step_generator
from sandglass.engine import optim
from sandglass.engine.step import Step, checkpoint_activations
from sandglass.engine.task import Task
from sandglass.engine.train import train
from sandglass.errors import Exit, Problem
from sandglass.objectives import OBJECTIVES

IMAGES, CLASSES, BACKBONE = 8, 4, "vit_tiny_flat"
ROWWISE = [name for name in OBJECTIVES if OBJECTIVES.get(name).rowwise]


def learned(
    objective="supervised", auxiliaries=(), parts=1, backbone=BACKBONE, steps=2, checkpointing=False, half=False
):
    """Everything with a state after some steps, in float64 if there is no task, and the last step's figures."""
    dtype = torch.float32 if auxiliaries or half else torch.float64  # drloc's head insists
    torch.manual_seed(0)
    encoder = build(backbone, 32, CLASSES if objective == "supervised" else 0, [0.5] * 3, [0.25] * 3).to(dtype)
    own = OBJECTIVES.get(objective)(encoder, resolve(OBJECTIVES, objective, {}), CLASSES).to(dtype)
    tasks = {name: AUXILIARY.get(name)(encoder, resolve(AUXILIARY, name, {})) for name in auxiliaries}
    modules = torch.nn.ModuleList([encoder, own, *tasks.values()])
    if checkpointing:
        checkpoint_activations(encoder, tasks)
    groups = optim.parameter_groups(modules, 0.0)
    optimizer = optim.build(groups, "sgd", 0.5, 0.9)
    step = Step(encoder, own, tasks, optimizer, clip_norm=1.0, half=half, parts=parts)
    for number in range(steps):
        torch.manual_seed(number)
        seen = step(batches(own.views[0], number, parts, dtype))
    return modules.state_dict(), seen


def batches(views, step, parts, dtype):
    generator = torch.Generator().manual_seed(step)
    images = [torch.rand(IMAGES, 3, 32, 32, dtype=dtype, generator=generator) for _ in range(views)]
    labels = torch.arange(IMAGES) % CLASSES
    for part in range(parts):
        own = slice(part * IMAGES // parts, (part + 1) * IMAGES // parts)
        draws = step_generator(0, 0, step, "loss")
        yield Batch([view[own] for view in images], labels[own], torch.arange(IMAGES)[own], draws, part, parts)


def moved(found, start):
    """The largest difference of any weight."""
    return max(float((found[key] - start[key]).abs().max()) for key in found if found[key].is_floating_point())


@pytest.mark.parametrize(
    ("objective", "auxiliaries"),
    [(name, ()) for name in ROWWISE] + [("supervised", (name,)) for name in AUXILIARY],
)
def test_parts_teach_what_the_whole_batch_teaches(objective, auxiliaries):
    (start, _), (whole, seen), (parts, told) = (
        learned(objective, auxiliaries, parts, steps=steps) for parts, steps in ((1, 1), (1, 3), (4, 3))
    )
    weights = [key for key in whole if ".watch." not in key and "extra_state" not in key]
    whole, parts, start = ({key: state[key] for key in weights} for state in (whole, parts, start))
    assert moved(whole, start) > 0.01
    assert moved(parts, whole) < 1e-5  # cross-entropy and tasks work in float32
    torch.testing.assert_close(told.loss, seen.loss, rtol=1e-5, atol=1e-6)
    assert torch.equal(told.labels, seen.labels) and told.pooled.shape == seen.pooled.shape


def test_a_task_that_shows_batch_norm_other_images_cannot_be_computed_again():
    learned(auxiliaries=("jigsaw",), checkpointing=True)
    with pytest.raises(Problem) as caught:
        learned(auxiliaries=("jigsaw",), backbone="resnet_toy", checkpointing=True)
    assert caught.value.id == "T-114" and "jigsaw" in caught.value.why


def test_an_objective_that_compares_images_would_learn_something_else():
    whole, parts = (learned("simclr", parts=parts)[0] for parts in (1, 4))
    assert moved(parts, whole) > 1e-3


@pytest.mark.parametrize("backbone", [BACKBONE, "resnet_toy"])
def test_computing_again_changes_nothing_running_statistics_neither(backbone):
    once, twice = (learned(backbone=backbone, checkpointing=checkpointing)[0] for checkpointing in (False, True))
    assert once.keys() == twice.keys()
    for key in once:
        torch.testing.assert_close(twice[key], once[key], rtol=1e-12, atol=1e-13)


def test_it_is_computed_again():
    encoder = build("resnet_toy", 32, CLASSES, [0.5] * 3, [0.25] * 3).train()
    calls = []
    encoder.model.layer1.register_forward_hook(lambda *given: calls.append("layer1"))
    inner = encoder.model.layer1[0].conv1
    inner.register_forward_hook(lambda *given: calls.append("inner"))
    checkpoint_activations(encoder, {})
    encoder(torch.rand(2, 3, 32, 32)).pooled.sum().backward()
    assert calls.count("inner") == 2


@pytest.mark.parametrize(("half", "checkpointing"), [(False, False), (True, False), (True, True)])
def test_in_bfloat16_attention_is_written_out_but_not_where_it_is_computed_again(half, checkpointing):
    with torch.profiler.profile() as profile:
        _, seen = learned(half=half, checkpointing=checkpointing, steps=1)
    called = [event.key for event in profile.key_averages()]
    assert any("flash_attention_for_cpu_backward" in name for name in called) == (not half or checkpointing)
    assert torch.isfinite(seen.loss) and seen.loss.dtype == torch.float32


# ------------------------------------------------------------------------------------------------- in the loop


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    pack.pack(catalog.CATALOG["digits"], None, folder, store_size=None, val_fraction=0.1, seed=0, on_bad_image="error")
    return folder


def task(packed, objective="supervised", backbone=BACKBONE):
    torch.manual_seed(0)
    split = open_split(packed, "train")
    encoder = build(backbone, 32, 10 if objective == "supervised" else 0, split.info["mean"], split.info["std"])
    own = OBJECTIVES.get(objective)(encoder, resolve(OBJECTIVES, objective, {}), 10)
    values = Optimisation(epochs=2, batch_size=16, warmup_epochs=1).model_dump()
    views = {"crop_flip" if objective == "supervised" else "baseline": {}}
    return Task(encoder, own, {}, split, torch.arange(48), views, 32, values, seed=5)


def engine(**values):
    return Engine(device="cpu", checkpoint_minutes=0, log_every_steps=2, **values)


def silent(text):
    pass


def test_in_the_loop_too_and_after_stops(packed, tmp_path):
    whole, parts, stopped = task(packed), task(packed), None
    train(whole, tmp_path / "whole", engine(), silent)
    train(parts, tmp_path / "parts", engine(accumulate=4), silent)
    for key, value in whole.encoder.state_dict().items():
        torch.testing.assert_close(parts.encoder.state_dict()[key], value, rtol=1e-4, atol=1e-5)
    for stops in range(6):
        stopped = task(packed)
        try:
            train(stopped, tmp_path / "stopped", engine(accumulate=4, deadline_minutes=1e-9), silent)
        except Problem as problem:
            assert problem.exit == Exit.RESUMABLE and stops < 5
    for key, value in parts.encoder.state_dict().items():
        assert torch.equal(stopped.encoder.state_dict()[key], value)


@pytest.mark.parametrize(
    ("objective", "backbone", "values", "what", "why"),
    [
        ("simclr", BACKBONE, {"accumulate": 2}, "T-113", "SimCLR compares"),
        ("supervised", "resnet_toy", {"accumulate": 2}, "T-113", "batch norm"),
        ("supervised", BACKBONE, {"accumulate": 3}, "T-111", ""),
        ("supervised", "toy", {"checkpointing": True}, "T-114", ""),
    ],
)
def test_what_would_change_a_result_is_refused(packed, tmp_path, objective, backbone, values, what, why):
    with pytest.raises(Problem) as caught:
        train(task(packed, objective, backbone), tmp_path, engine(**values), silent)
    assert caught.value.id == what and caught.value.exit == Exit.CONFIG and why in caught.value.why


def test_frozen_batch_norm_does_not_stand_in_the_way(packed, tmp_path):
    t = task(packed, backbone="resnet_toy")
    t.frozen = [m for m in t.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert train(t, tmp_path, engine(accumulate=2), silent).steps == 6
