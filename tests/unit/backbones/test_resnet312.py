"""resnet312: its count by formula, its forward pass by hand, and what a block starts as."""

from itertools import pairwise

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models._manipulate import group_parameters
from torch import nn

from sandglass.backbones import resnet312  # noqa: F401

NARROW = {"channels": (4, 6, 6), "layers": (2, 1, 3), "num_classes": 5}


def by_formula(channels, layers, classes):
    count = 27 * channels[0] + 2 * channels[0]
    for i, ((before, c), depth) in enumerate(zip(pairwise((channels[0], *channels)), layers)):
        shortcut = before * c + 2 * c if i or before != c else 0  # all stages but the first have a stride of 2
        count += 9 * before * c + 9 * c * c + 4 * c + shortcut
        count += (depth - 1) * (18 * c * c + 4 * c)
    return count + (channels[-1] + 1) * classes


@pytest.mark.parametrize(
    ("channels", "layers", "classes"),
    [((78, 156, 312), (2, 3, 8), 10), ((78, 156, 312), (4, 6, 7), 100), ((4, 6, 6), (2, 1, 3), 5)],
)
def test_parameters(channels, layers, classes):
    with torch.device("meta"):
        model = timm.create_model("resnet312", channels=channels, layers=layers, num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == by_formula(channels, layers, classes)


def test_forward_by_hand():
    torch.manual_seed(0)
    model = timm.create_model("resnet312", **NARROW).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(values)
    state = model.state_dict()

    def normed(x, name):
        mean, var, weight, bias = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        scale = weight / (var + 1e-5).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]

    images = torch.randn(2, 3, 18, 18, dtype=torch.float64)
    x, maps = normed(F.conv2d(images, state["stem.0.weight"], padding=1), "stem.1").relu(), []
    for i, (depth, stride) in enumerate(zip(NARROW["layers"], (1, 2, 2))):
        for j in range(depth):
            name, step = f"stages.{i}.{j}", stride if j == 0 else 1
            y = normed(F.conv2d(x, state[f"{name}.conv1.weight"], stride=step, padding=1), f"{name}.bn1").relu()
            y = normed(F.conv2d(y, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            if step == 2:
                x = normed(F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=2), f"{name}.downsample.1")
            x = (x + y).relu()
        maps.append(x)
    final, found = model.forward_intermediates(images)
    assert all(torch.allclose(a, b) for a, b in zip([*found, final], [*maps, x]))
    assert [m.shape[-1] for m in maps] == [18, 9, 5]
    assert torch.allclose(model(images), x.mean((2, 3)) @ state["head.fc.weight"].T + state["head.fc.bias"])


def test_a_block_starts_as_its_shortcut_unless_asked_otherwise():
    x = torch.randn(2, 4, 6, 6)
    for zero, same in ((True, True), (False, False)):
        block = timm.create_model("resnet312", **NARROW, zero_init_last=zero).eval().stages[0][1]
        assert torch.equal(block(x.clone()), x.relu()) == same


def test_pruned_stages_are_gone_and_the_rest_is_as_it_was():
    model, x = timm.create_model("resnet312", **NARROW).eval(), torch.randn(1, 3, 16, 16)
    middle = model.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([1]) == [1] and len(model.stages) == 2
    assert torch.equal(model(x), middle)


def test_layer_decay_groups_run_from_stem_to_head():
    groups = group_parameters(model := timm.create_model("resnet312", **NARROW), model.group_matcher())
    firsts = [names[0].rsplit(".", 2)[0] for names in groups.values()]
    assert firsts == ["stem", *(f"stages.{s}" for s in ("0.0", "0.1", "1.0", "2.0", "2.1", "2.2")), "head"]


def test_checkpointing_changes_no_gradient():
    torch.manual_seed(0)
    model, x, grads = timm.create_model("resnet312", **NARROW), torch.randn(2, 3, 16, 16), []
    calls = []
    model.stages[0][0].register_forward_pre_hook(lambda *_: calls.append(1))
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))
    assert len(calls) == 3  # once, then twice: it is computed again on the way back
