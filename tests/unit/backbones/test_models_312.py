"""What all models of 312 channels have in common: size, grid, layout, legal sizes; narrow ones learn."""

import copy
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from sandglass.backbones.grid import build, check
from sandglass.config import load
from sandglass.errors import Problem

ROWS = load(Path(__file__).parents[3] / "params.yaml").backbones
OURS = ("resnet312", "vit312", "t2t312", "cvt312", "cct312", "sl_vit312", "dhvt312", "nest312")
# parameters with ten classes and multiply-adds of one image in 1e9: the table of configurations
TABLE = {
    "resnet312": (15_082_792, 1.410),
    "vit312": (15_278_026, 1.022),
    "t2t312": (14_970_008, 1.192),
    "cvt312": (15_070_202, 1.204),
    "cct312": (14_849_195, None),
    "sl_vit312": (15_326_320, None),
    "dhvt312": (15_542_140, None),
    "nest312": (13_150_810 + 2 * 1_172_184, None),
    "swin312": (15_088_276, 1.283),
    "hiera312": (14_766_502, None),
}
FLAT = {"embed_dim": 24, "depth": 2, "num_heads": 2}
NARROW = {
    "resnet312": {"channels": [8, 12, 24], "layers": [1, 2, 2]},
    "vit312": FLAT,
    "t2t312": {**FLAT, "token_dim": 8},
    "cvt312": {"embed_dims": [8, 16, 24], "num_heads": [1, 2, 2], "depths": [1, 1, 2]},
    "cct312": {**FLAT, "channels": [8]},
    "sl_vit312": FLAT,
    "dhvt312": FLAT,
    "nest312": {"embed_dims": [8, 16, 24], "num_heads": [1, 2, 2], "depths": [1, 1, 2]},
    "swin312": {"embed_dim": 6, "depths": [1, 1, 2], "num_heads": [1, 2, 2]},
    "hiera312": {"embed_dim": 6, "num_heads": 1, "stages": [1, 1, 2]},
}


def named(name):
    """The timm model of a name, and its arguments: those of its row in params.yaml, if it has one."""
    return (name, {}) if name in OURS else (ROWS[name].model, dict(ROWS[name].model_extra))


def narrow(name, size=32, **more):
    torch.manual_seed(0)
    model, arguments = named(name)
    return build(model, size, 4, [0.5] * 3, [0.25] * 3, {**arguments, **NARROW[name], **more})


@pytest.mark.parametrize("name", TABLE)
def test_size_and_grid(name):
    model, arguments = named(name)
    found, (parameters, gmac) = check(model, 32, arguments), TABLE[name]
    assert found["grid"] == (312, 8, 8) and found["warnings"] == []
    assert found["parameters"] == parameters == pytest.approx(15e6, rel=0.05)
    assert gmac is None or found["macs"] / 1e9 == pytest.approx(gmac, abs=6e-4)


def test_heads():
    with torch.device("meta"):
        flat = [timm.create_model(name) for name in ("vit312", "t2t312", "cct312", "sl_vit312", "dhvt312")]
        cvt = timm.create_model("cvt312")
    assert {block.attn.num_heads for model in flat for block in model.blocks} == {6}
    assert [stage.blocks[0].attn.heads for stage in cvt.stages] == [1, 3, 6]


@pytest.mark.parametrize("name", [name for name in NARROW if name != "hiera312"])  # whose norm is in its head
def test_grid_is_the_last_map_after_the_final_norm_of_the_model(name):
    encoder, images = narrow(name).eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        features = encoder(images)
        last = encoder.model.forward_intermediates(
            (images - encoder.mean) / encoder.std, norm=True, output_fmt="NCHW", intermediates_only=True
        )[-1]
    assert features.grid.shape == (2, 24, 8, 8) and torch.allclose(features.grid, last, atol=1e-5)
    if name != "resnet312":  # it ends in a ReLU
        assert torch.allclose(features.grid.mean(1), torch.zeros(()), atol=1e-4)


@pytest.mark.parametrize("name", NARROW)
def test_a_cell_depends_most_on_its_own_part_of_the_image(name):
    encoder = narrow(name).eval()
    images = torch.rand(16, 3, 32, 32, requires_grad=True)
    grid, direction = encoder(images).grid, torch.randn(16, 24)
    for i, j in ((0, 7), (7, 0), (4, 2)):
        (gradient,) = torch.autograd.grad((grid[:, :, i, j] * direction).sum(), images, retain_graph=True)
        cells = F.adaptive_avg_pool2d(gradient.abs().sum((0, 1))[None, None], (8, 8))
        assert divmod(int(cells.argmax()), 8) == (i, j)


@pytest.mark.parametrize("name", NARROW)
def test_the_gradient_of_one_image_is_the_same_in_company(name):
    encoder, images = narrow(name).eval(), torch.rand(3, 3, 32, 32, requires_grad=True)
    (together,) = torch.autograd.grad(encoder.logits(encoder(images)).square().sum(), images)
    (alone,) = torch.autograd.grad(encoder.logits(encoder(images[:1])).square().sum(), images)
    assert torch.allclose(alone[0], together[0], rtol=1e-3, atol=1e-5 * float(together.abs().max()))


@pytest.mark.parametrize("name", NARROW)
def test_another_size_gives_another_grid(name):
    assert narrow(name, 64).grid_shape == (16, 16)


@pytest.mark.parametrize("name", ["vit312", "t2t312", "cct312", "sl_vit312", "dhvt312"])
def test_elastic_ones_take_smaller_crops(name):
    fixed, elastic = narrow(name).eval(), narrow(name, dynamic_img_size=True).eval()
    elastic.load_state_dict(fixed.state_dict())
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(elastic(images).grid, fixed(images).grid, atol=1e-6)
        small = elastic(images[..., :16, :16])
        assert small.grid.shape == (2, 24, 4, 4) and elastic.logits(small).shape == (2, 4)


@pytest.mark.parametrize("name", NARROW)
def test_half_precision_gives_about_the_same_grid(name):
    encoder, images = narrow(name).eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        full = encoder(images).grid
        with torch.autocast("cpu", torch.bfloat16):
            half = encoder(images).grid.float()
    assert (half - full).norm() < 0.05 * full.norm()


@pytest.mark.parametrize("name", [name for name in OURS if name not in ("resnet312", "cvt312")])
def test_a_size_that_is_no_multiple_of_a_patch_is_refused(name):
    with pytest.raises(Problem, match="cannot be used for images of 34 x 34") as caught:
        check(name, 34, NARROW[name])
    assert caught.value.id == "B-303" and "at 32 px" in caught.value.fix


@pytest.mark.parametrize("name", NARROW)
def test_narrow_ones_learn_colours_and_are_restored_to_the_same_numbers(name):
    encoder = narrow(name)
    labels = torch.arange(8) % 4
    images = torch.eye(4)[labels, :3, None, None].expand(8, 3, 32, 32)  # red, green, blue, black
    optimiser, losses = torch.optim.AdamW(encoder.parameters(), lr=5e-3), []
    for _ in range(20):
        loss = nn.functional.cross_entropy(encoder.logits(encoder(images)), labels)
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    fresh, twin = narrow(name), copy.deepcopy(encoder)
    fresh.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        grids = [model.eval()(images).grid for model in (encoder, fresh, twin)]
    assert torch.equal(grids[0], grids[1]) and torch.equal(grids[0], grids[2])
