"""What timm expects of every registered backbone, and what the rest of the house expects of it."""

import copy
import inspect
import subprocess
import sys
from functools import cache

import pytest
import timm
import torch
from torch import nn

from sandglass.backbones import BACKBONES
from sandglass.backbones.grid import Encoder, check

SMALL = ["hourglass_tiny", "hourglass_tiny_r", "vit_tiny_flat", "resnet_toy", "toy"]


@cache
def sketch(name: str) -> nn.Module:
    """The model without numbers; shared, so not to be changed."""
    with torch.device("meta"):
        return timm.create_model(name, num_classes=10).eval()


def test_the_shelf_is_read_without_torch():
    code = (
        "import sys; from sandglass.backbones import BACKBONES; [BACKBONES.about(n) for n in BACKBONES];"
        "assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", BACKBONES)
def test_name_is_timms_and_is_explained(name):
    entry = BACKBONES.get(name)
    assert entry.__name__ == name and timm.is_model(name) and timm.model_entrypoint(name) is entry
    about = BACKBONES.about(name)["about"]
    assert 20 < len(about) < 120 and about != inspect.getdoc(sys.modules[entry.__module__])


@pytest.mark.parametrize("name", BACKBONES)
def test_metadata_fits_the_model(name):
    model = sketch(name)
    modules, cfg = dict(model.named_modules()), model.default_cfg
    assert model.num_classes == 10 and modules[cfg["classifier"]] is model.get_classifier()
    assert model.get_classifier().out_features == 10
    convolutions = [module for module in modules.values() if isinstance(module, nn.Conv2d) and module.in_channels == 3]
    assert convolutions == ([modules[cfg["first_conv"]]] if cfg["first_conv"] else [])  # None: pixels meet a linear map
    assert all(info["module"] in modules for info in model.feature_info)
    reductions = [info["reduction"] for info in model.feature_info]
    assert reductions == sorted(reductions)
    positions = {parameter for parameter, _ in model.named_parameters() if "pos_embed" in parameter}
    assert not positions or positions <= model.no_weight_decay()


@pytest.mark.parametrize("name", BACKBONES)
def test_intermediates_follow_timm(name):
    model = sketch(name)
    images = torch.zeros(2, *model.default_cfg["input_size"], device="meta")
    size = images.shape[-1]
    final, maps = model.forward_intermediates(images, output_fmt="NCHW")
    assert final.shape == model.forward_features(images).shape
    found = [(m.shape[1], size // m.shape[2]) for m in maps]
    assert found == [(info["num_chs"], info["reduction"]) for info in model.feature_info]
    for indices, expected in ((1, maps[-1:]), ([0, -1], [maps[0], maps[-1]])):
        taken = model.forward_intermediates(images, indices=indices, output_fmt="NCHW", intermediates_only=True)
        assert [m.shape for m in taken] == [m.shape for m in expected]
    with torch.device("meta"):
        pyramid = timm.create_model(name, features_only=True)
    assert [m.shape for m in pyramid(images)] == [m.shape for m in maps]


@pytest.mark.parametrize("name", BACKBONES)
def test_head_can_be_read_before_its_end_and_changed(name):
    model = copy.deepcopy(sketch(name))
    features = model.forward_features(torch.zeros(2, *model.default_cfg["input_size"], device="meta"))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    model.reset_classifier(0)
    assert model.forward_head(features).shape == (2, model.num_features) and model.num_classes == 0
    with torch.device("meta"):
        model.reset_classifier(7)
    assert model.forward_head(features).shape == (2, 7) and model.get_classifier().out_features == 7


@pytest.mark.parametrize("name", [*SMALL, "resnet18_small", "hourglass_c16_nested"])
def test_check_describes_it_at_its_own_size(name):
    size = sketch(name).default_cfg["input_size"][-1]
    found = check(name, size)
    assert found["warnings"] == [] and found["macs"] > 0
    assert found["stages"][-1][1:] == found["grid"] == (found["width"], *found["grid"][1:])
    assert found["parameters"] == sum(p.numel() for p in sketch(name).parameters())


@pytest.mark.parametrize("name", SMALL)
def test_it_learns_is_copied_and_gives_the_same_numbers_twice(name):
    torch.manual_seed(0)
    encoder = Encoder(timm.create_model(name, num_classes=4), 32, (0.5,) * 3, (0.25,) * 3)
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8) % 4
    optimiser, losses = torch.optim.AdamW(encoder.parameters(), lr=3e-3), []
    for _ in range(12):
        loss = nn.functional.cross_entropy(encoder.logits(encoder(images)), labels)
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in encoder.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    twin = copy.deepcopy(encoder).eval()
    fresh = Encoder(timm.create_model(name, num_classes=4), 32, (0.5,) * 3, (0.25,) * 3).eval()
    fresh.load_state_dict(encoder.state_dict())
    encoder.eval()
    with torch.no_grad():
        assert torch.equal(encoder(images).grid, twin(images).grid)
        assert torch.equal(encoder(images).grid, fresh(images).grid)
