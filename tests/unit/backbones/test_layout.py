"""Where a map lies in memory: channels last for what convolves, and the same numbers either way."""

import pytest
import torch
from torch import nn

from sandglass.backbones.grid import build

MEAN, STD = [0.5] * 3, [0.25] * 3


@pytest.mark.parametrize(
    ("name", "last"),
    [("resnet_toy", True), ("toy", True), ("resnet18_small", True), ("vit_tiny_flat", False), ("cct312", False)],
)
def test_convolutional_models_have_their_channels_last(name, last):
    encoder = build(name, 32, 10, MEAN, STD)
    assert encoder.layout == (torch.channels_last if last else torch.contiguous_format)
    kernels = [m.weight for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    assert kernels and all(kernel.is_contiguous(memory_format=encoder.layout) for kernel in kernels)


@pytest.mark.parametrize("name", ["resnet_toy", "toy"])
def test_maps_follow_and_say_what_they_said(name):
    torch.manual_seed(0)
    encoder, images = build(name, 32, 10, MEAN, STD).double(), torch.rand(4, 3, 32, 32, dtype=torch.float64)
    last = encoder(images)
    assert last.grid.is_contiguous(memory_format=torch.channels_last) and not last.grid.is_contiguous()
    encoder.layout = torch.contiguous_format
    encoder.model.to(memory_format=torch.contiguous_format)
    first = encoder(images)
    assert first.grid.is_contiguous()
    torch.testing.assert_close(last.grid, first.grid, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(encoder.logits(last), encoder.logits(first), rtol=1e-10, atol=1e-12)


def test_a_narrow_network_is_kept_from_a_fault_of_the_library():
    narrow = build("resnet18", 64, 10, MEAN, STD, {"channels": [8, 16, 32, 64]})
    assert narrow.layout == torch.contiguous_format
    assert build("resnet18", 64, 10, MEAN, STD, {"channels": [16, 32, 48, 64]}).layout == torch.channels_last


def test_loaded_weights_lie_as_the_models_own():
    encoder = build("toy", 32, 10, MEAN, STD)
    saved = {name: value.contiguous() for name, value in encoder.model.state_dict().items()}
    encoder.model.load_state_dict(saved)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in encoder.parameters() if p.ndim == 4)
