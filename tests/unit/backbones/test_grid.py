"""Grids of models in all of timm's layouts: right shape, right place, right norm, one forward; and legal sizes."""

import pytest
import timm
import torch
import torch.nn.functional as F

from sandglass.backbones.grid import Encoder, build, check, stages
from sandglass.errors import Exit, Problem

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SWIN = {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8), "patch_size": 2, "window_size": 4}
# the second Hiera ends with tokens still in the order of its mask units
HIERA = {"embed_dim": 24, "stages": (1, 1, 1, 1)}
UNROLLED = {**HIERA, "q_pool": 1, "mask_unit_size": (8, 8)}
VIT = {"patch_size": 4, "depth": 2}
MODELS = [  # name, size, arguments, (C, h, w)
    ("resnet18", 64, {}, (512, 2, 2)),
    ("resnet18_small", 32, {}, (512, 4, 4)),
    ("vit_tiny_patch16_224", 32, VIT, (192, 8, 8)),
    ("vit_tiny_patch16_224", 32, {**VIT, "global_pool": "avg"}, (192, 8, 8)),
    ("deit_tiny_distilled_patch16_224", 32, VIT, (192, 8, 8)),
    ("swin_tiny_patch4_window7_224", 64, SWIN, (192, 4, 4)),
    ("pvt_v2_b0", 96, {}, (256, 3, 3)),
    ("convnext_atto", 96, {}, (320, 3, 3)),
    ("hiera_tiny_224", 128, HIERA, (192, 4, 4)),
    ("hiera_tiny_224", 64, UNROLLED, (192, 8, 8)),
    ("hourglass_tiny", 32, {}, (64, 8, 8)),
    ("hourglass_tiny", 20, {"resampling": "attn"}, (64, 5, 5)),
    ("hourglass_tiny_r", 32, {}, (64, 8, 8)),
    ("vit_tiny_flat", 32, {}, (64, 8, 8)),
    ("toy", 32, {}, (32, 4, 4)),
]


def made(name: str, size: int, arguments: dict, classes: int = 10) -> Encoder:
    torch.manual_seed(0)
    return build(name, size, classes, MEAN, STD, arguments).eval()


@pytest.mark.parametrize(("name", "size", "arguments", "shape"), MODELS)
def test_grid_pooled_and_logits_come_from_one_forward(name, size, arguments, shape):
    encoder = made(name, size, arguments)
    assert (encoder.width, *encoder.grid_shape) == shape
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        features = encoder(images)
        normalised = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        assert features.grid.shape == (2, *shape)
        assert torch.allclose(features.pooled, features.grid.flatten(2).mean(2), atol=1e-6)
        assert torch.allclose(encoder.logits(features), encoder.model(normalised), atol=1e-5)


@pytest.mark.parametrize(("name", "size", "arguments", "shape"), MODELS)
def test_a_cell_depends_most_on_its_own_part_of_the_image(name, size, arguments, shape):
    encoder, (_, h, w) = made(name, size, arguments), shape
    images = torch.rand(16, 3, size, size, requires_grad=True)
    grid, direction = encoder(images).grid, torch.randn(16, shape[0])
    for i, j in ((0, w - 1), (h - 1, 0), (h // 2, w // 3)):
        (gradient,) = torch.autograd.grad((grid[:, :, i, j] * direction).sum(), images, retain_graph=True)
        cells = F.adaptive_avg_pool2d(gradient.abs().sum((0, 1))[None, None], (h, w))
        assert divmod(int(cells.argmax()), w) == (i, j)


@pytest.mark.parametrize(
    ("name", "size", "arguments"), [m[:3] for m in MODELS if m[0].startswith(("vit", "deit", "swin", "pvt"))]
)
def test_grid_is_what_the_model_itself_declares_to_be_its_last_normed_map(name, size, arguments):
    encoder = made(name, size, {**arguments, **({"fc_norm": False} if "global_pool" in arguments else {})})
    images = torch.rand(2, 3, size, size)
    normalised = (images - encoder.mean) / encoder.std
    with torch.no_grad():
        last = encoder.model.forward_intermediates(normalised, norm=True, output_fmt="NCHW", intermediates_only=True)[
            -1
        ]
        assert torch.allclose(encoder(images).grid, last, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["convnext_atto", "hiera_tiny_224", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_every_cell_is_normed_even_where_the_norm_follows_pooling(name):
    size, arguments = next(m[1:3] for m in reversed(MODELS) if m[0] == name)  # for the ViT: pooled by average
    encoder = made(name, size, arguments)
    with torch.no_grad():
        grid = encoder(torch.rand(2, 3, size, size)).grid
    assert torch.allclose(grid.mean(1), torch.zeros(()), atol=1e-3)
    assert torch.allclose(grid.var(1, correction=0), torch.ones(()), atol=2e-2)


def test_tokens_of_oblong_images_keep_their_rows():
    encoder = made("hourglass_tiny", 32, {})
    assert encoder(torch.rand(1, 3, 16, 32)).grid.shape == (1, 64, 4, 8)
    vit = made("vit_tiny_flat", 32, {"dynamic_img_size": True})
    images = torch.rand(1, 3, 16, 32, requires_grad=True)
    grid = vit(images).grid
    assert grid.shape == (1, 64, 4, 8)
    (gradient,) = torch.autograd.grad((grid[0, :, 0, 7] * torch.randn(64)).sum(), images)
    assert int(F.adaptive_avg_pool2d(gradient.abs().sum(1), (4, 8)).argmax()) == 7


def test_looking_at_an_encoder_leaves_frozen_and_training_modules_as_they_were():
    encoder = build("hourglass_tiny_r", 32, 10, MEAN, STD, None)
    assert encoder.training
    encoder.model.stem.eval()
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    stages(encoder)
    assert encoder.model.training and not encoder.model.stem.training and not encoder.model.stem.bn1.training
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())


def test_stages_are_named_in_the_order_they_are_computed():
    assert stages(made("hourglass_tiny", 32, {})) == [
        ("before.0", 64, 8, 8),
        ("before.1", 64, 4, 4),
        ("output", 64, 8, 8),
    ]
    found = stages(made("resnet18_small", 32, {}))
    assert [s[0] for s in found] == ["act1", "layer1", "layer2", "layer3", "layer4"] and found[2][1:] == (128, 16, 16)
    names = dict(made("resnet18_small", 32, {}).model.named_modules())
    assert all(s[0] in names for s in found)


def test_check_counts_a_known_model():
    found = check("hourglass_c8", 32)
    assert found["parameters"] == 14_985_058 and found["macs"] == pytest.approx(0.537e9, rel=0.02)
    assert found["stages"] == [("before.0", 312, 8, 8), ("before.1", 312, 4, 4), ("output", 312, 8, 8)]
    assert found["width"] == 312 and found["warnings"] == []


def test_a_single_cell_is_legal_but_comes_with_better_settings_that_work():
    found = check("swin_tiny_patch4_window7_224", 32)
    assert found["grid"] == (768, 1, 1)
    (warning,) = found["warnings"]
    assert "at 32 px, patch_size=2, window_size=8: 96x16x16 192x8x8 384x4x4 768x2x2" in warning
    better = check("swin_tiny_patch4_window7_224", 32, {"patch_size": 2, "window_size": 8})
    assert better["warnings"] == [] and better["stages"][-1][1:] == (768, 2, 2)
    assert "resnet18_small at 32 px" in check("resnet18", 32)["warnings"][0]


def test_a_size_that_cuts_patches_is_refused_with_the_nearest_that_do_not():
    with pytest.raises(Problem, match="cannot be used for images of 50 x 50") as caught:
        build("vit_tiny_patch16_224", 50, 10, MEAN, STD, VIT)
    assert (caught.value.id, caught.value.exit) == ("B-303", Exit.CONFIG)
    assert "do not divide into patches of 4" in caught.value.why
    for setting in ("at 48 px, patch_size=4, depth=2: 192x12x12", "at 50 px, patch_size=5, depth=2: 192x10x10"):
        assert setting in caught.value.fix
    assert build("vit_tiny_patch16_224", 48, 10, MEAN, STD, VIT).grid_shape == (12, 12)
    assert build("vit_tiny_patch16_224", 50, 10, MEAN, STD, {**VIT, "patch_size": 5}).grid_shape == (10, 10)


@pytest.mark.parametrize(
    ("name", "arguments", "id", "said"),
    [
        ("hourglas_tiny", {}, "B-301", "did you mean hourglass_tiny"),
        ("toy", {"window_size": 4}, "B-302", "window_size"),
        ("hiera_tiny_224", {"img_size": 50}, "B-303", "64 px"),
        ("crossvit_9_240", {"img_size": 240}, "B-304", "several final maps"),
        ("pit_ti_224", {}, "B-304", "1 x 1 cells"),
    ],
)
def test_other_mistakes_are_explained(name, arguments, id, said):
    size = arguments.pop("img_size", 64) if name != "toy" else 32
    with pytest.raises(Problem) as caught:
        check(name, size, arguments)
    assert caught.value.id == id and caught.value.exit == Exit.CONFIG
    assert said in caught.value.screen()


def test_models_for_any_size_are_built_without_one_and_remember_how():
    assert build("toy", 24, 3, MEAN, STD).model.made_with == {}
    assert build("hourglass_tiny", 24, 3, MEAN, STD).model.made_with == {"img_size": 24}
    assert timm.is_model("hourglass_tiny")
