"""The small ResNets against timm's own, and the toys."""

import pytest
import timm
import torch

from sandglass.backbones import resnet_small, toy  # noqa: F401


@pytest.mark.parametrize(("small", "large"), [("resnet18_small", "resnet18"), ("resnet50_small", "resnet50")])
def test_small_resnet_is_timms_but_for_the_first_convolution(small, large):
    with torch.device("meta"):
        ours, theirs = timm.create_model(small).state_dict(), timm.create_model(large).state_dict()
    assert ours.keys() == theirs.keys()
    differing = [name for name in ours if ours[name].shape != theirs[name].shape]
    assert differing == ["conv1.weight"] and ours["conv1.weight"].shape == (64, 3, 3, 3)


@pytest.mark.parametrize("name", ["resnet18_small", "resnet50_small", "resnet_toy", "toy"])
def test_declared_reductions_and_widths_are_those_of_the_maps(name):
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        maps = model.forward_intermediates(torch.zeros(1, 3, 32, 32), intermediates_only=True)
    assert [32 // m.shape[-1] for m in maps] == [info["reduction"] for info in model.feature_info]
    assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info]
    assert maps[-1].shape[1:] == (model.num_features, 4, 4)


def test_stem_after_a_change_of_input_channels():
    assert timm.create_model("resnet_toy", in_chans=1)(torch.zeros(2, 1, 16, 16)).shape == (2, 1000)


def test_toy_is_three_convolutions_by_hand():
    torch.manual_seed(0)
    model = timm.create_model("toy", num_classes=10).eval()
    x = y = torch.randn(2, 3, 17, 17)
    for conv, norm, _ in model.stages:
        y = norm(torch.nn.functional.conv2d(y, conv.weight, stride=2, padding=1)).relu()
    assert torch.equal(model.forward_features(x), y) and y.shape == (2, 32, 3, 3)
    assert torch.allclose(model(x), y.mean((2, 3)) @ model.head.fc.weight.T + model.head.fc.bias, atol=1e-6)
    assert sum(p.numel() for p in model.parameters()) < 10_000


def test_flat_vit_has_the_shape_of_hourglass_tiny():
    from sandglass.backbones.hourglass import CONFIGS

    tiny, flat = CONFIGS["hourglass_tiny"], timm.create_model("vit_tiny_flat", num_classes=10)
    assert flat.num_features == tiny["embed_dim"] and flat.blocks[0].attn.num_heads == tiny["num_heads"]
    outside, valley = tiny["depths"]
    assert len(flat.blocks) == 2 * outside + valley
    assert flat.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 64)
