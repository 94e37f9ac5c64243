"""What is written out is found by whatever asks PyTorch for it, and in bfloat16 alone."""

import pytest
import torch

from sandglass.backbones.grid import build
from sandglass.engine.written_out import written_out


def called(backbone, half, images=1):
    """The names of all operations of a forward pass of a backbone."""
    encoder = build(backbone, 32, 0, [0.5] * 3, [0.25] * 3)
    precision = torch.autocast("cpu", torch.bfloat16, enabled=half)
    with torch.profiler.profile() as profile, precision, written_out(half):
        encoder(torch.rand(images, 3, 32, 32))
    return [event.name for event in profile.events()]


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("backbone", ["vit_tiny_flat", "hourglass_tiny", "nest312", "cvt312", "t2t312", "sl_vit312"])
def test_attention(backbone, half):
    assert any("scaled_dot_product" in name for name in called(backbone, half)) != half


@pytest.mark.parametrize(("half", "expected"), [(True, 3), (False, 0)])
def test_convolutions_of_the_last_stage_of_a_resnet(half, expected):
    """Four of 512 channels and 4 x 4 cells, of which the first has strides."""
    assert sum(name == "_SmallMaps" for name in called("resnet18_small", half, images=32)) == expected
