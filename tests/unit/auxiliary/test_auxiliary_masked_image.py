"""Masked images as a task: the formula in loops, what chance is, and that nothing hidden is seen."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sandglass.auxiliary import AUXILIARY
from sandglass.auxiliary.masked_image import MaskedImage
from sandglass.backbones.grid import Encoder, build
from sandglass.config import resolve
from sandglass.data.loader import Batch, step_generator
from sandglass.errors import Problem
from sandglass.objectives._masking import over_pixels

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
MAE = {"form": "mae", "head": "decoder"}
NARROW = {"embed_dim": 24, "depth": 1, "num_heads": 2}
HIERA = {"embed_dim": 16, "stages": (1, 1, 1), "mask_unit_size": (4, 4), "mask_unit_attn": (True, True, False)}
HIERA |= {"patch_kernel": (3, 3), "patch_stride": (2, 2), "patch_padding": (1, 1), "q_pool": 1}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("toy", {}, {}),
    ("toy", {}, {"head": "decoder", "patch": 4}),  # patches smaller than a cell
    ("hourglass_tiny", {}, {"patch": 8}),  # and larger
    ("t2t312", NARROW, {"head": "decoder"}),
    ("vit_tiny_flat", {}, MAE),
    ("vit_tiny_flat", {"class_token": True}, MAE | {"patch": 8, "budget": "matched"}),
    ("hiera_tiny_224", HIERA, MAE),
]


def made(name: str = "toy", arguments: dict[str, Any] | None = None, **overrides: Any) -> tuple[Encoder, MaskedImage]:
    torch.manual_seed(0)
    encoder = build(name, 32, 0, MEAN, STD, arguments or {}).train()
    return encoder, MaskedImage(encoder, resolve(AUXILIARY, "masked_image", overrides))


def batch_of(view: Tensor, seed: int = 0) -> Batch:
    rows = torch.arange(len(view))
    return Batch([view], torch.zeros_like(rows), rows, step_generator(seed, 0, 0, "loss"))


@pytest.mark.parametrize("norm", ["none", "patch"])
def test_loss_equals_the_formula(norm: str) -> None:
    """Four cells of 8 px a side, in each four patches of 4 px: what is filled, painted and compared, pixel by pixel."""
    encoder, task = made(patch=4, target_norm=norm)
    encoder.double(), task.double()
    torch.nn.init.normal_(task.way.mask_token)
    view = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    found = task.loss(encoder, torch.empty(0), batch_of(view))["loss"].item()
    hidden = task.hiding.draw(batch_of(view))
    colour = task.way.mask_token.flatten().tolist()
    x, filled = torch.empty_like(view), view.clone()
    for c in range(3):
        x[:, c] = (view[:, c] - encoder.mean[0, c]) / encoder.std[0, c]
    for b, patch in hidden.nonzero().tolist():
        top, left = patch // 8 * 4, patch % 8 * 4
        for c in range(3):
            grey = colour[c] * encoder.std[0, c].item() + encoder.mean[0, c].item()
            filled[b, c, top : top + 4, left : left + 4] = grey
    grid, linear = encoder(filled).grid, task.way.decode[0]
    errors = []
    for b, patch in hidden.nonzero().tolist():
        top, left = patch // 8 * 4, patch % 8 * 4
        goal = x[b, :, top : top + 4, left : left + 4].flatten().tolist()
        if norm == "patch":
            middle = sum(goal) / 48
            variance = sum((value - middle) ** 2 for value in goal) / 47
            goal = [(value - middle) / (variance + 1e-6) ** 0.5 for value in goal]
        said = linear.weight[:, :, 0, 0] @ grid[b, :, top // 8, left // 8] + linear.bias
        for at, value in enumerate(goal):
            c, y, z = at // 16, top % 8 + at % 16 // 4, left % 8 + at % 4
            errors.append((said[64 * c + 8 * y + z].item() - value) ** 2)
    assert len(errors) == 2 * 48 * 48  # 0.75 of 64 patches
    assert found == pytest.approx(sum(errors) / len(errors), rel=1e-9)


@pytest.mark.parametrize(("name", "arguments", "settings"), CASES)
def test_hidden_pixels_are_judged_and_not_seen(name: str, arguments: dict[str, Any], settings: dict[str, Any]) -> None:
    """The loss feels a hidden pixel as the target alone, by 2 (x - x_hat) / n; a visible one through the encoder."""
    encoder, task = made(name, arguments, target_norm="none", **settings)
    encoder.eval()  # where nothing is drawn a second time
    view = torch.rand(3, 3, 32, 32, requires_grad=True)
    answer = task.loss(encoder, torch.empty(0), batch_of(view))
    (slope,) = torch.autograd.grad(answer["loss"], view)
    hidden = task.hiding.draw(batch_of(view))
    where = over_pixels(hidden, 32).expand_as(view)
    painted = task.way.paint(task.way.see(encoder, view, hidden), hidden)
    term = 2 * ((view - encoder.mean) / encoder.std - painted) / encoder.std / where.sum()
    torch.testing.assert_close(slope[where], term[where], rtol=1e-4, atol=1e-8)
    assert ((slope * ~where).abs().sum((1, 2, 3)) > 0).all()
    assert hidden.sum(1).tolist() == [task.hiding.count] * 3
    assert float(answer["mask_ratio"]) == pytest.approx(0.75)


def test_the_best_colour_has_a_loss_of_one_chance() -> None:
    """And no other colour has less."""
    encoder, task = made(target_norm="none")
    view = torch.rand(4, 3, 32, 32) * torch.tensor([1, 0.2, 0.5])[:, None, None]
    where = over_pixels(task.hiding.draw(batch_of(view)), 32)[:, 0]
    x = (view - encoder.mean) / encoder.std
    best = torch.stack([x[:, c][where].mean() for c in range(3)])
    got = []
    for colour in (best, best + torch.tensor([0.1, 0, 0]), best - torch.tensor([0, 0, 0.1])):
        with torch.no_grad():
            task.way.decode[0].weight.zero_()
            task.way.decode[0].bias.copy_(colour.repeat_interleave(64))
        got.append(float(task.loss(encoder, torch.empty(0), batch_of(view))["over_chance"]))
    assert got[0] == pytest.approx(1, rel=1e-5) and min(got[1:]) > got[0] + 1e-3


def test_black_images_are_no_error() -> None:
    for norm in ("none", "patch"):
        encoder, task = made(target_norm=norm)
        answers = task.loss(encoder, torch.empty(0), batch_of(torch.zeros(2, 3, 32, 32)))
        assert all(value.isfinite() for value in answers.values())


def test_one_colour_hides_and_no_parameter_is_idle() -> None:
    for settings in ({}, {"head": "decoder"}, MAE):
        encoder, task = made("vit_tiny_flat", **settings)
        task.loss(encoder, torch.empty(0), batch_of(torch.rand(4, 3, 32, 32)))["loss"].backward()
        assert [n for n, p in task.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())] == []
        assert settings == MAE or task.way.mask_token.shape == (3, 1, 1)


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({}, 15_027),
        ({"head": "decoder"}, 443_059),
        ({"head": "decoder", "budget": "matched"}, 4_802_043),
        (MAE, 443_184),
        (MAE | {"budget": "matched"}, 4_802_352),
    ],
)
def test_parameters_at_the_thesis_size(settings: dict[str, Any], number: int) -> None:
    encoder = build("vit312", 32, 0, MEAN, STD, {"depth": 1})
    task = MaskedImage(encoder, resolve(AUXILIARY, "masked_image", settings))
    assert sum(p.numel() for p in task.parameters() if p.requires_grad) == number
    assert settings.get("budget") != "matched" or number == pytest.approx(task.matched(), rel=0.05)
    assert task.matched() == 4_709_016


@pytest.mark.parametrize(
    ("name", "settings", "id", "fix"),
    [
        ("vit_tiny_flat", {"form": "mae"}, "T-155", "auxiliary.masked_image.head: decoder"),
        ("toy", {"budget": "matched"}, "T-155", "auxiliary.masked_image.head: decoder"),
        ("toy", MAE, "T-161", "auxiliary.masked_image.form: simmim"),
        ("t2t312", MAE, "T-161", "auxiliary.masked_image.form: simmim"),  # a ViT whose patches overlap
        ("toy", {"patch": 6}, "T-163", "auxiliary.masked_image.patch: 2 or 4 or 8"),
        ("vit_tiny_flat", MAE | {"patch": 2}, "T-163", "auxiliary.masked_image.patch: 4 or 8"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(name: str, settings: dict[str, Any], id: str, fix: str) -> None:
    with pytest.raises(Problem) as caught:
        made(name, NARROW if name == "t2t312" else {}, **settings)
    assert caught.value.id == id and caught.value.exit == 78 and fix in caught.value.fix


def test_a_grid_that_does_not_divide_is_refused() -> None:
    encoder = build("toy", 36, 0, MEAN, STD)  # 5 cells a side
    with pytest.raises(Problem, match="5 cells a side does not divide an image of 36 px") as caught:
        MaskedImage(encoder, resolve(AUXILIARY, "masked_image", {}))
    assert caught.value.id == "T-161" and "35 px" in caught.value.fix
