"""The Hourglass against the numbers of its design table, hand-worked maps and an independent attention."""

import re

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models._manipulate import group_parameters
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sandglass.backbones.hourglass import (
    Attention,
    Block,
    Lengthen,
    Shorten,
    average_,
    copy_,
    cut_resnet,
    level,
    load_stem,
    rotate,
)
from sandglass.errors import Problem

# name: parameters (exact, or in millions as printed), GMAC; with ten classes
TABLE = {
    "hourglass_c8": (14_985_058, 0.537),
    "hourglass_c8_linear": ("14.98", 0.597),
    "hourglass_c16": ("15.03", 2.294),
    "hourglass_c16_nested": ("15.82", 1.487),
    "hourglass_c16_r18": ("15.65", 2.565),
    "hourglass_s12": ("24.18", 2.201),
    "hourglass_s12_r18": ("23.27", 2.029),
    "hourglass_s12_nested": ("32.46", 2.227),
    "hourglass_s24": ("31.31", 8.579),
    "hourglass_i28": ("32.71", 13.972),
    "hourglass_i28_1level": ("27.97", 14.617),
    "hourglass_i56": ("26.37", 34.090),
    "flat_c8": ("14.20", 0.935),
}
# the same stems with a single level of so many layers: the flat controls of the table
FLAT = {
    "hourglass_c16_r18": (12, "14.87", 4.376),
    "hourglass_s12": (12, "23.00", 3.610),
    "hourglass_s24": (16, "28.94", 20.585),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def counted(name: str, **arguments) -> tuple[int, float]:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10, **arguments).eval().requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *model.default_cfg["input_size"]))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2e9


@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_macs_of_the_design_table(name):
    parameters, gmac = TABLE[name]
    count, counted_gmac = counted(name)
    assert count == parameters or f"{count / 1e6:.2f}" == parameters
    assert counted_gmac == pytest.approx(gmac, rel=0.02)


@pytest.mark.parametrize("name", FLAT)
def test_parameters_and_macs_of_the_flat_controls(name):
    layers, parameters, gmac = FLAT[name]
    count, counted_gmac = counted(name, depths=(layers,), factors=())
    assert f"{count / 1e6:.2f}" == parameters and counted_gmac == pytest.approx(gmac, rel=0.02)


def plain(h: int, w: int, factor: int = 1, width: int = 4):
    return level(h, w, factor, width, torch.device("cpu"))


def test_places_are_in_cells_of_the_finest_grid():
    # width 4: one rate (1) for y, one for x. Cell (1, 2) of a level of factor 2 sits at (2.5, 4.5)
    angles = torch.tensor([2.5, 4.5])
    cos, sin = plain(2, 3, factor=2).turn
    assert torch.allclose(cos[5], angles.cos()) and torch.allclose(sin[5], angles.sin())


def test_scores_depend_on_distance_alone_even_between_levels():
    q, k = torch.randn(2, 1, 1, 1, 16)
    fine, coarse = plain(1, 8, 1, 16).turn, plain(1, 4, 2, 16).turn
    scores = rotate(q.expand(1, 8, 1, 16), fine)[0, :, 0] @ rotate(k.expand(1, 4, 1, 16), coarse)[0, :, 0].T
    # fine cell i at i, coarse cell j at 2 j + 0.5: the pairs below are all 2.5 apart
    assert torch.allclose(scores[0, 1], scores[2, 2], atol=1e-5) and torch.allclose(
        scores[4, 3], scores[2, 2], atol=1e-5
    )
    assert (scores[0, 1] - scores[0, 2]).abs() > 1e-2


def test_attention_without_places_is_torch_multi_head_attention():
    ours, theirs = Attention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.kv.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.kv.bias]))
        theirs.out_proj.load_state_dict(ours.proj.state_dict())
    x, context = torch.randn(2, 6, 16), torch.randn(2, 4, 16)
    still = plain(1, 1)._replace(turn=(torch.ones(1, 2), torch.zeros(1, 2)))
    assert torch.allclose(ours(x, still, context, still), theirs(x, context, context)[0], atol=1e-6)


def test_shortening_is_a_linear_map_of_whole_windows_that_can_average():
    shorten, x = Shorten(8, 2, None), torch.randn(2, 24, 8)
    grid = x.transpose(1, 2).unflatten(2, (4, 6))
    windows = grid.unfold(2, 2, 2).unfold(3, 2, 2)  # B C h w k k
    linear = torch.einsum("bchwij,dcij->bdhw", windows, shorten.pool.weight) + shorten.pool.bias[:, None, None]
    out = shorten(x, plain(4, 6), plain(2, 3, 2))
    assert torch.allclose(out, linear.flatten(2).transpose(1, 2), atol=1e-5)
    average_(shorten.pool.weight)
    nn.init.zeros_(shorten.pool.bias)
    mean = F.avg_pool2d(grid, 2).flatten(2).transpose(1, 2)
    assert torch.allclose(shorten(x, plain(4, 6), plain(2, 3, 2)), mean, atol=1e-6)


def test_cells_beyond_an_odd_edge_count_for_nothing():
    shorten, x = Shorten(8, 2, None), torch.randn(2, 35, 8)
    average_(shorten.pool.weight)
    nn.init.constant_(shorten.pool.bias, 3.0)
    grid = x.transpose(1, 2).unflatten(2, (5, 7))
    held = F.avg_pool2d(grid, 2, ceil_mode=True, count_include_pad=False) + 3.0
    out = shorten(x, plain(5, 7), plain(3, 4, 2))
    assert torch.allclose(out, held.flatten(2).transpose(1, 2), atol=1e-5)


def test_lengthening_fills_each_cells_own_window_and_crops_the_rest():
    lengthen, x, kept = Lengthen(8, 2, None), torch.randn(2, 12, 8), torch.randn(2, 35, 8)
    lengthen.norm = nn.Identity()
    windows = lengthen.spread(x).unflatten(-1, (4, 8)).permute(0, 3, 2, 1).flatten(1, 2).unflatten(2, (3, 4))
    shuffled = F.pixel_shuffle(windows, 2)[:, :, :5, :7].flatten(2).transpose(1, 2)
    assert torch.allclose(lengthen(x, kept, plain(3, 4, 2), plain(5, 7)), kept + shuffled, atol=1e-6)
    copy_(lengthen.spread.weight)
    nn.init.zeros_(lengthen.spread.bias)
    coarse = x.transpose(1, 2).unflatten(2, (3, 4))
    copies = F.interpolate(coarse, scale_factor=2, mode="nearest")[:, :, :5, :7].flatten(2).transpose(1, 2)
    assert torch.allclose(lengthen(x, kept, plain(3, 4, 2), plain(5, 7)), kept + copies, atol=1e-6)


@pytest.mark.parametrize("resampling", ["attn", "linear"])
def test_gradient_reaches_every_parameter(resampling):
    model = timm.create_model("hourglass_tiny", num_classes=10, depths=(1, 1, 1), factors=(2, 2), resampling=resampling)
    F.cross_entropy(model(torch.randn(8, 3, 32, 32)), torch.arange(8)).backward()
    assert {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-9} == set()


def test_queries_and_keys_of_attention_resampling_matter():
    # attention to a single key would give them no gradient at all (softmax over one key is constant)
    fine, coarse = plain(4, 4, 1, 8), plain(2, 2, 2, 8)
    x, short = torch.randn(2, 16, 16), torch.randn(2, 4, 16)
    for module in (
        Shorten(16, 2, Block(16, 2, 2.0, 0.0, cross=True)),
        Lengthen(16, 2, Block(16, 2, 2.0, 0.0, cross=True)),
    ):
        out = module(x, fine, coarse) if isinstance(module, Shorten) else module(short, x, coarse, fine)
        (out * torch.randn_like(out)).sum().backward()
        attention = module.attend.attn
        key, value = (g.norm() for g in attention.kv.weight.grad.chunk(2))
        assert min(attention.q.weight.grad.norm(), key) > 0.01 * value


def test_output_follows_the_batch_order_and_holds_one_image_alone():
    model = timm.create_model("hourglass_tiny", num_classes=10, resampling="attn").eval()
    x, order = torch.randn(4, 3, 32, 32), torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        assert torch.allclose(model(x)[order], model(x[order]), atol=1e-5)
        assert torch.allclose(model(x)[:1], model(x[:1]), atol=1e-5)


def test_intermediates_are_the_way_down_and_end_with_the_features():
    model = timm.create_model("hourglass_tiny", depths=(1, 1, 1), factors=(2, 2)).eval()
    x = torch.randn(1, 3, 32, 32)
    final, maps = model.forward_intermediates(x)
    assert [tuple(m.shape) for m in maps] == [(1, 64, 8, 8), (1, 64, 4, 4), (1, 64, 2, 2)]
    assert [32 // m.shape[-1] for m in maps] == [info["reduction"] for info in model.feature_info]
    assert torch.equal(final, model.forward_features(x)) and final.shape == (1, 64, 8, 8)
    (last,) = model.forward_intermediates(x, indices=1, intermediates_only=True)
    assert torch.equal(last, maps[2])
    pyramid = timm.create_model(
        "hourglass_tiny", depths=(1, 1, 1), factors=(2, 2), features_only=True, out_indices=(1,)
    )
    pyramid.model.load_state_dict({k: v for k, v in model.state_dict().items() if k in pyramid.model.state_dict()})
    (middle,) = pyramid.eval()(x)
    assert torch.equal(middle, maps[1]) and pyramid.feature_info.reduction() == [8]


def test_without_the_way_up_it_ends_in_the_valley():
    model = timm.create_model("hourglass_tiny", up=False).eval()
    final, maps = model.forward_intermediates(torch.randn(1, 3, 32, 32), norm=True)
    assert final.shape == (1, 64, 4, 4) and torch.equal(final, maps[-1])


def test_another_size_resamples_the_positions_and_parts_of_patches_are_refused():
    model = timm.create_model("hourglass_tiny", depths=(1, 1, 1), factors=(2, 2)).eval()
    assert model.forward_features(torch.randn(1, 3, 20, 44)).shape == (1, 64, 5, 11)
    with pytest.raises(ValueError, match="do not divide"):
        model(torch.randn(1, 3, 50, 50))


def test_checkpointing_changes_no_gradient():
    model = timm.create_model("hourglass_tiny", num_classes=3)
    x, grads = torch.randn(2, 3, 32, 32), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


def test_half_precision_attends_to_the_same_places():
    model = timm.create_model("hourglass_tiny", num_classes=10, resampling="attn").eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        full = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(x)
    assert half.dtype == torch.bfloat16 and torch.allclose(full, half.float(), atol=0.02 * full.abs().max().item())


def test_layer_decay_groups_run_from_stem_to_head():
    model = timm.create_model("hourglass_c16_nested", embed_dim=24, num_heads=2)
    groups = list(group_parameters(model, model.group_matcher()).values())
    assert sum(map(len, groups)) == len(list(model.parameters()))
    firsts = [names[0].rsplit(".", 1)[0] for names in groups]
    order = ["before.0.0", "shorten.0", "before.1.0", "shorten.1", "before.2.0", "before.2.3"]
    order += ["lengthen.0", "after.0.0", "lengthen.1", "after.1.0", "head"]
    places = [next(i for i, first in enumerate(firsts) if first.startswith(part)) for part in order]
    assert places == sorted(places) and any(name.startswith("stem") for name in groups[0])


def test_stem_is_the_beginning_of_the_resnet_it_is_cut_from():
    resnet = timm.create_model("resnet_toy").eval()
    model = timm.create_model("hourglass_tiny_r").eval()
    assert model.stem_name == "resnet_toy"
    for p in resnet.parameters():
        nn.init.normal_(p, std=0.1)
    loaded = load_stem(model, resnet.state_dict())
    assert loaded == [n for n in resnet.state_dict() if n.startswith(("conv1", "bn1", "layer1", "layer2"))]
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        layer2 = resnet.forward_intermediates(x, indices=[2], intermediates_only=True)[0]
        assert torch.equal(model.stem(x), layer2)


@pytest.mark.parametrize(
    ("name", "stem", "width", "reduction"),
    [
        ("hourglass_c16_r18", "resnet18_small", 128, 2),
        ("hourglass_s12", "resnet50", 512, 8),
        ("hourglass_s12_r18", "resnet18", 128, 8),
        ("hourglass_s24", "resnet50", 256, 4),
    ],
)
def test_stems_of_the_table(name, stem, width, reduction):
    with torch.device("meta"):
        model, resnet = timm.create_model(name), timm.create_model(stem)
        _, found_width, found_reduction = cut_resnet(stem, 1 if name == "hourglass_s24" else 2)
    assert model.stem_name == stem and (found_width, found_reduction) == (width, reduction)
    assert model.stem.state_dict().keys() <= resnet.state_dict().keys()
    assert model.feature_info[0]["reduction"] == reduction


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("bn1.weight"), "bn1.weight is missing"),
        (lambda d: d.update({"conv1.weight": torch.zeros(16, 3, 7, 7)}), r"conv1.weight is \(16, 3, 7, 7\)"),
        (lambda d: d.update({"layer2.1.conv1.weight": torch.zeros(1)}), "layer2.1.conv1.weight has no place"),
    ],
)
def test_a_stem_that_does_not_fit_is_refused_whole(change, said):
    model = timm.create_model("hourglass_tiny_r")
    before = {name: value.clone() for name, value in model.stem.state_dict().items()}
    wrong = timm.create_model("resnet_toy").state_dict()
    change(wrong)
    with pytest.raises(Problem, match="does not fit") as caught:
        load_stem(model, wrong)
    assert caught.value.id == "B-311"
    assert re.search(said, caught.value.why)
    assert all(torch.equal(value, before[name]) for name, value in model.stem.state_dict().items())


def test_a_model_without_a_stem_says_so():
    with pytest.raises(Problem, match="no ResNet stem"):
        load_stem(timm.create_model("hourglass_tiny"), {})
