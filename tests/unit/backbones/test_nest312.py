"""nest312: its count by formula, attention that stays in its block, and reductions as they are."""

from itertools import pairwise

import pytest
import timm
import torch

from sandglass.backbones import nest312  # noqa: F401

NARROW = {"embed_dims": (8, 12, 24), "num_heads": (1, 2, 2), "depths": (1, 1, 2), "num_classes": 5}


def by_formula(dims, depths, classes):
    count = 3 * dims[0] + dims[0]  # every pixel is a patch
    for level, (d, depth) in enumerate(zip(dims, depths)):
        count += (32 // 2**level) ** 2 * d + depth * (12 * d * d + 13 * d)  # positions of all cells; blocks
    count += sum(9 * before * d + d + 2 * d for before, d in pairwise(dims))  # convolution and LN between levels
    return count + 2 * dims[-1] + (dims[-1] + 1) * classes


@pytest.mark.parametrize(
    ("dims", "depths", "classes"),
    [((78, 156, 312), (2, 2, 12), 10), ((78, 156, 312), (2, 2, 10), 10), ((8, 12, 24), (1, 1, 2), 5)],
)
def test_parameters(dims, depths, classes):
    with torch.device("meta"):
        model = timm.create_model("nest312", embed_dims=dims, depths=depths, num_classes=classes, num_heads=(1, 2, 2))
    assert sum(p.numel() for p in model.parameters()) == by_formula(dims, depths, classes)


def test_first_level_attends_within_8_x_8_pixels():
    torch.manual_seed(0)
    model, images = timm.create_model("nest312", **NARROW).eval(), torch.randn(1, 3, 32, 32, requires_grad=True)
    first = model.forward_intermediates(images, indices=[0], intermediates_only=True)[0]
    (gradient,) = torch.autograd.grad(first[0, :, 9, 17].square().sum(), images)
    rows, columns = gradient[0].abs().sum(0).nonzero().unbind(1)
    assert set(rows.tolist()) == set(range(8, 16)) and set(columns.tolist()) == set(range(16, 24))


@pytest.mark.parametrize("patch", [1, 2])
def test_reductions_are_counted_from_the_patch(patch):
    model = timm.create_model("nest312", **NARROW, patch_size=patch, img_size=32 * patch)
    assert [info["reduction"] for info in model.feature_info] == [patch, 2 * patch, 4 * patch]
    assert model.forward_features(torch.zeros(1, 3, 32 * patch, 32 * patch)).shape == (1, 24, 8, 8)


def test_drop_path_is_off_unless_asked_for():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    for rate, same in ((None, True), (0.5, False)):
        model = timm.create_model("nest312", **NARROW, **({"drop_path_rate": rate} if rate else {})).train()
        assert torch.equal(model(x), model(x)) == same
