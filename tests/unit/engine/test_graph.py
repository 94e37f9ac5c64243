"""A recorded step does what steps made as usual do. Recorded here on a CPU: operation by operation as torch runs them,
below autograd; and played again without Python, into the memory of the first time, as a CUDA graph is."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sandglass.auxiliary import AUXILIARY
from sandglass.backbones.grid import build
from sandglass.config import Engine, resolve
from sandglass.data.loader import Batch, Clock, step_generator
from sandglass.engine import graph, optim
from sandglass.engine.graph import WARM, Recorded, recordable
from sandglass.engine.step import Step
from sandglass.objectives import OBJECTIVES

IMAGES, CLASSES, STEPS = 8, 4, 7
STATIC = [name for name in OBJECTIVES if OBJECTIVES.get(name).static]
TASKS = [
    (name, {"preset": preset} if preset else {}) for name in AUXILIARY for preset in (None, *AUXILIARY.presets(name))
] + [("drloc", {"form": form}) for form in ("ce", "cbr", "circular")]


class Tape(TorchDispatchMode):
    """What torch was asked to do, in order."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a recorded step cannot ask for a value"
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def play(self):
        for func, args, kwargs, out in self.calls:
            before = {place(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and place(old) not in before:  # neither a view nor in place
                    old.copy_(new)


def place(tensor):
    return tensor.untyped_storage().data_ptr()


def taped(state):
    """A way to record a step that changes these tensors, which it leaves as they were: recording does not run."""

    def record(run):
        kept = [x.clone() for x in state()]
        with Tape() as tape:
            seen = run()
        with torch.no_grad():
            for x, value in zip(state(), kept, strict=True):
                x.copy_(value)

        def play():
            tape.play()
            return seen

        return play

    return record


def made(objective, optimizer, record, half=False, backbone="toy", auxiliaries=()):
    torch.manual_seed(0)
    encoder = build(backbone, 32, CLASSES if objective == "supervised" else 0, [0.5] * 3, [0.25] * 3)
    settings = resolve(OBJECTIVES, objective, {})
    settings |= {key: 16 for key, value in settings.items() if type(value) is int and value > 16}
    own = OBJECTIVES.get(objective)(encoder, settings, CLASSES)
    tasks = {
        name: AUXILIARY.get(name)(encoder, resolve(AUXILIARY, name, values))
        for name, values in dict(auxiliaries).items()
    }
    modules = torch.nn.ModuleList([encoder, own, *tasks.values()]).train()
    chosen = optim.build(optim.parameter_groups(modules, 0.05), optimizer, 0.1, 0.9)
    step = Step(encoder, own, tasks, chosen, clip_norm=3.0, half=half)

    def state():
        return [*modules.state_dict().values(), *(x for p in chosen.state.values() for x in p.values())]

    make = Recorded(step, taped(state)) if record else step
    losses = []
    for number in range(STEPS):
        optim.set_rates(chosen, 0.01, 1.0 / (number + 1))
        torch.manual_seed(number)  # drop-path
        seen = make([batch_of(own, number)])
        for taught in (own, *tasks.values()):
            taught.after_step(encoder, number / STEPS)
        losses.append((seen.loss.clone(), seen.pooled.clone(), {key: x.clone() for key, x in seen.scalars.items()}))
    return losses, [x.clone() for x in state()], make


def batch_of(objective, step):
    generator = torch.Generator().manual_seed(step)
    views = [torch.rand(IMAGES, 3, 32, 32, generator=generator) for _ in range(objective.views[0])]
    labels = torch.randint(CLASSES, (IMAGES,), generator=generator)
    return Batch(views, labels, torch.arange(IMAGES), step_generator(0, 0, step, "loss"), clock=Clock(step, STEPS))


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))


@pytest.mark.parametrize(
    ("objective", "optimizer", "half", "backbone"),
    [(name, "adamw", False, "vit_tiny_flat" if name == "masked_image" else "toy") for name in STATIC]
    + [("byol", "sgd", False, "toy"), ("byol", "lars", False, "toy"), ("byol", "adamw", True, "resnet_toy")]
    + [("supervised", "adam", False, "vit_tiny_flat")],
)
def test_played_steps_are_the_usual_ones_to_the_bit(objective, optimizer, half, backbone):
    usual, usual_state, _ = made(objective, optimizer, False, half, backbone)
    played, played_state, make = made(objective, optimizer, True, half, backbone)
    assert make.calls == STEPS > WARM + 2 and make.play is not None
    assert equal(usual, played) and equal(usual_state, played_state)
    assert len({float(loss) for loss, *_ in played}) == STEPS  # every batch was another


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("auxiliary", "values"), TASKS)
def test_what_an_auxiliary_task_draws_and_weighs_is_that_of_the_batch(auxiliary, values, half):
    """Its weight rises and falls, but for presets that keep it; no two batches are drawn alike."""
    values = {"lambda_schedule": "warmup_decay"} | values
    found = [made("supervised", "adamw", record, half, "resnet_toy", {auxiliary: values}) for record in (False, True)]
    (usual, usual_state, _), (played, played_state, make) = found
    assert make.play is not None and equal(usual, played) and equal(usual_state, played_state)
    assert len({float(scalars[f"{auxiliary}/loss"]) for *_, scalars in played}) == STEPS


def test_two_tasks_are_asked_in_their_order():
    both = {"drloc": {}, "masked_embedding": {"target": "ema"}}
    (usual, *_), (played, *_) = (made("byol", "adamw", record, auxiliaries=both) for record in (False, True))
    assert equal(usual, played)


def test_what_is_not_static_would_be_noticed():
    assert not OBJECTIVES.get("moco_v2").static
    usual, played = (made("moco_v2", "adamw", record)[:2] for record in (False, True))
    assert not equal(usual, played)


@pytest.mark.parametrize("question", ["drawn", "now"])
def test_a_question_that_is_answered_for_one_batch_alone_would_be_noticed(monkeypatch, question):
    tasks = {"drloc": {"lambda_schedule": "warmup_decay"}}
    usual, *_ = made("supervised", "adamw", False, auxiliaries=tasks)
    as_it_was = lambda still, ask: torch.from_numpy(next(still.answers).numpy().copy())  # noqa: E731
    monkeypatch.setattr(graph._Still, question, as_it_was)
    played, *_ = made("supervised", "adamw", True, auxiliaries=tasks)
    assert not equal(usual, played)


def test_asking_for_a_value_would_be_noticed():
    def run():
        return float(torch.ones(1) * 2)

    with pytest.raises(AssertionError, match="ask for a value"):
        taped(list)(run)


def test_only_on_a_gpu_and_only_if_wanted():
    _, _, step = made("byol", "adamw", False)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert recordable(step, Engine(), gpu) and not recordable(step, Engine(), cpu)
    for values in ({"graph": False}, {"accumulate": 2}, {"checkpointing": True}):
        assert not recordable(step, Engine(**values), gpu)
    step.objective.static = False
    assert not recordable(step, Engine(), gpu)
