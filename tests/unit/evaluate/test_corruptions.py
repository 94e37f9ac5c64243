"""The common corruptions against their formulas, in their limits, and as one evaluation of a model."""

import colorsys
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor

from sandglass.config import resolve
from sandglass.data.loader import step_generator
from sandglass.errors import Problem
from sandglass.evaluate import ATTACKS
from sandglass.evaluate.attacks import _base
from sandglass.evaluate.corruptions import HELD_OUT, LEVELS, blur, corrupt, digital, noise, weather
from sandglass.evaluate.corruptions._draws import Draws

CPU = torch.device("cpu")


def scene(n: int = 6, size: int = 32) -> Tensor:
    """Images with edges, smooth parts and colours, at 8 bits."""
    draws = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(draws, size=(size, size), mode="bilinear")
    smooth[:, :, size // 4 : size // 2, size // 4 : size // 2] = draws[:, :, :1, :1]
    return smooth.mul(255).round().div(255)


def draws(n: int = 1) -> Draws:
    return Draws([step_generator(0, 1, row, "test") for row in range(n)], CPU)


@pytest.mark.parametrize("name", LEVELS)
def test_every_level_of_every_corruption(name: str) -> None:
    """Whole levels of 8 bits, drawn for each image by itself, the same each time; level 5 is further off than level 1,
    except where the published parameters stretch more at first."""
    x = scene()
    made = [corrupt(name, level, x, range(len(x))) for level in (1, 2, 3, 4, 5)]
    off = []
    for level, images in enumerate(made, start=1):
        assert images.shape == x.shape and images.dtype == torch.float32
        np.testing.assert_allclose(images * 255, (images * 255).round(), atol=1e-4)
        assert images.min() >= 0 and images.max() <= 1
        alone = corrupt(name, level, x[4:], range(4, 6))
        assert (alone - images[4:]).abs().max() <= 1 / 255 + 1e-6  # blurs of another batch may round the other way
        assert torch.equal(corrupt(name, level, x, range(len(x))), images)
        off.append(float((images - x).pow(2).mean().sqrt()))
    assert min(off) > 0.003
    assert (off[4] > off[0]) == (name != "elastic_transform")


@pytest.mark.parametrize("name", LEVELS)
def test_other_sizes(name: str) -> None:
    for size in (24, 48):
        x = scene(2, size)
        assert corrupt(name, 5, x, range(2)).shape == x.shape


def test_noise_has_the_moments_of_its_definition() -> None:
    """On grey 0.5: variances c^2, 0.5 / c, (c / 2) (0.25 + 0.25), (c / 2)^2, each to five standard errors."""
    x = torch.full((4, 3, 64, 64), 0.5)
    expected = [
        (noise.gaussian_noise, 0.1, 0.1**2),
        (noise.shot_noise, 50.0, 0.5 / 50),
        (noise.impulse_noise, 0.07, 0.07 * 0.25),
        (noise.speckle_noise, 0.2, 0.1**2),
    ]
    for corruption, level, variance in expected:
        made = corruption(x, level, draws(4)).double()
        n = made.numel()
        kurtosis = float(((made - 0.5) ** 4).mean()) / variance**2
        assert abs(float(made.mean()) - 0.5) < 5 * (variance / n) ** 0.5
        assert abs(float(((made - 0.5) ** 2).mean()) / variance - 1) < 5 * ((kurtosis - 1) / n) ** 0.5
    salted = noise.impulse_noise(x, 0.07, draws(4))
    assert set(salted.unique().tolist()) == {0, 0.5, 1}


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.5])
def test_gaussian_blur_is_that_of_scipy(sigma: float) -> None:
    x = scene(2)
    expected = ndimage.gaussian_filter(x.double().numpy(), (0, 0, sigma, sigma), mode="nearest")
    np.testing.assert_allclose(blur.gaussian_blur(x, sigma, draws(2)), expected, atol=1e-5)


def test_defocus_is_a_disc() -> None:
    """A point of light becomes the five pixels within radius 1, softened by exp(-1 / 2 sigma^2) to each side."""
    x = torch.zeros(1, 3, 32, 32)
    x[:, :, 16, 16] = 1
    made = blur.defocus_blur(x, (1, 0.2), draws())
    disc = np.zeros((9, 9))
    disc[4, 3:6] = disc[3:6, 4] = 1 / 5
    side = math.exp(-1 / (2 * 0.2**2))
    line = np.array([side, 1, side]) / (1 + 2 * side)
    soft = ndimage.convolve(disc, np.outer(line, line))
    np.testing.assert_allclose(made[0, 0, 12:21, 12:21], soft, atol=1e-6)


def test_a_trail_goes_one_way() -> None:
    """Half a Gaussian: at an angle of 0 a point of light trails off to the left, by exp(-k^2 / 2 sigma^2)."""
    x = torch.zeros(1, 1, 32, 32)
    x[:, :, 10, 20] = 1
    made = blur.trail(x, (8, 2.0), torch.zeros(1))[0, 0]
    weights = np.array([math.exp(-(k**2) / 8) for k in range(9)])
    np.testing.assert_allclose(made[10, 20 - np.arange(9)], weights / weights.sum(), atol=1e-5)
    assert float(made.sum()) == pytest.approx(1, abs=1e-4) and float(made[10, 21:].abs().max()) < 1e-5
    down = blur.trail(x, (8, 2.0), torch.tensor([90.0]))[0, 0]
    np.testing.assert_allclose(down[10 - np.arange(9), 20], made[10, 20 - np.arange(9)], atol=1e-4)


def test_glass_shows_pixels_of_the_neighbourhood() -> None:
    """Without the blur each pixel is one that is at most 1 px away, up or to the left; edges stay."""
    x = torch.arange(32 * 32.0).view(1, 1, 32, 32).expand(1, 3, -1, -1)
    made = blur.glass_blur(x, (0.0, 1, 1), draws())
    assert set((x - made).unique().tolist()) == {0, 1, 32, 33}
    assert torch.equal(made[:, :, :2], x[:, :, :2]) and torch.equal(made[:, :, :, :2], x[:, :, :, :2])


def test_zoom_is_the_mean_of_enlargements() -> None:
    """The distance r from the middle is seen at r / f: on a ramp, the mean over the image itself and 6 factors."""
    ramp = (torch.arange(32) - 15.5).expand(1, 3, 32, 32).float()
    made = blur.zoom_blur(ramp, 1.05, draws())
    mean = np.mean([1, *(1 / (1 + k / 100) for k in range(6))])
    np.testing.assert_allclose(made, ramp * mean, atol=1e-4)


def test_colours_are_changed_as_hue_saturation_and_value_say() -> None:
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    x[0, :, 0, 0], x[0, :, 0, 1] = 0.0, 0.4  # black, grey
    bright, vivid, faint = (
        weather.brightness(x, 0.3, draws(2)),
        digital.saturate(x, (2, 0.1), draws(2)),
        digital.saturate(x, (0.3, 0), draws(2)),
    )
    for k, i, j in np.ndindex(2, 4, 4):
        h, s, v = colorsys.rgb_to_hsv(*x[k, :, i, j].double().tolist())
        cases = [(bright, (h, s, min(v + 0.3, 1))), (vivid, (h, min(2 * s + 0.1, 1), v)), (faint, (h, 0.3 * s, v))]
        for made, hsv in cases:
            np.testing.assert_allclose(made[k, :, i, j], colorsys.hsv_to_rgb(*hsv), atol=1e-5)


def test_contrast_keeps_the_mean() -> None:
    x = scene(2)
    made = digital.contrast(x, 0.15, draws(2))
    np.testing.assert_allclose(made.mean((2, 3)), x.mean((2, 3)), atol=1e-5)
    np.testing.assert_allclose(made.std((2, 3)), 0.15 * x.std((2, 3)), atol=1e-5)


def test_files_are_those_of_pillow() -> None:
    x = scene(1)
    image = Image.fromarray(x[0].mul(255).byte().permute(1, 2, 0).numpy())
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    coarse = image.resize((20, 20), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
    for name, expected in (("jpeg_compression", Image.open(file)), ("pixelate", coarse)):
        made = corrupt(name, 5, x, range(1))[0].permute(1, 2, 0)
        np.testing.assert_allclose(made * 255, np.asarray(expected), atol=1e-3)


def test_elastic_moves_what_it_is_told_to() -> None:
    """Without any displacement nothing moves; the three points of the affine map go where they were drawn to."""
    x = scene(2)
    np.testing.assert_allclose(digital.elastic_transform(x, (0, 0, 0), draws(2)), x, atol=1e-4)
    ramps = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="xy"))
    ramps = torch.cat([ramps, torch.zeros(1, 32, 32)])[None]
    made = digital.elastic_transform(ramps, (0, 0, 0.08), draws())
    moved = np.array([[26, 26], [26, 6], [6, 6]]) + draws().uniform(3, 2, low=-2.56, high=2.56)[0].numpy()
    for (x_, y_), origin in zip(moved, [[26, 26], [26, 6], [6, 6]]):
        seen = [ndimage.map_coordinates(ramp.numpy(), [[y_], [x_]], order=1)[0] for ramp in made[0, :2]]
        np.testing.assert_allclose(seen, origin, atol=0.05)


def test_weather_in_its_limits() -> None:
    """Fog of no thickness, frost of no weight and snow that falls nowhere on a scene left as it is change nothing;
    fog never makes anything brighter than the brightest there was; mud has its colour."""
    x = scene(2)
    for made in (
        weather.fog(x, (0, 3), draws(2)),
        weather.frost(x, (1, 0), draws(2)),
        weather.snow(x, (0.0, 0.1, 1, 9.0, 8, 3, 1.0), draws(2)),
        weather.spatter(x, (0.0, 0.1, 0.7, 9.0, 0.5, "water"), draws(2)),
        weather.spatter(x, (0.0, 0.1, 0.7, 9.0, 0.6, "mud"), draws(2)),
    ):
        np.testing.assert_allclose(made, x, atol=1e-5)
    assert (weather.fog(x, (1.5, 1.75), draws(2)).amax((1, 2, 3)) <= x.amax((1, 2, 3)) + 1e-6).all()
    mud = weather.spatter(x, (0.65, 0.1, 0.5, -9.0, 0.6, "mud"), draws(2))
    np.testing.assert_allclose(mud[0, :, 5, 5] * 255, [63, 42, 20], atol=1e-3)


def test_fractals_are_rough_as_asked() -> None:
    """From 0 to 1 on every image; the finer the points, the smaller their part, by decay squared."""
    rough, fine = (weather._plasma(32, decay, draws(8)) for decay in (1.2, 3.0))
    for height in (rough, fine):
        assert height.shape == (8, 1, 32, 32)
        assert torch.equal(height.amin((1, 2, 3)), torch.zeros(8)) and torch.equal(
            height.amax((1, 2, 3)), torch.ones(8)
        )
    steps = [float(height.diff(dim=3).abs().mean()) for height in (rough, fine)]
    assert steps[0] > 2 * steps[1]


class ByBrightness(torch.nn.Module):
    """Two classes: darker and brighter than 0.5."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


def evaluate(images: Tensor, labels: Tensor, **overrides: Any) -> _base.Outcome:
    settings = resolve(ATTACKS, "corruptions", overrides)
    return ATTACKS.get("corruptions")(ByBrightness(), images, labels, settings, 0)


def test_the_mean_is_over_the_fifteen_and_their_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    images = (scene(20) * 0.4 + torch.linspace(0, 0.6, 20).view(-1, 1, 1, 1)).mul(255).round().div(255)
    labels = (torch.arange(20) > 9).long()
    outcome = evaluate(images, labels, levels=[1, 5])
    table = {row["metric"]: row["value"] for row in outcome.rows}
    truth = labels.numpy()
    single = {}
    for name in LEVELS:
        for level in (1, 5):
            made = ByBrightness()(corrupt(name, level, images, range(20))).argmax(1).numpy()
            single[name, level] = float((made == truth).mean())
            assert table[f"top1_{name}_{level}"] == single[name, level]
        assert table[f"top1_{name}"] == pytest.approx((single[name, 1] + single[name, 5]) / 2)
    fifteen = [value for (name, _), value in single.items() if name not in HELD_OUT]
    assert len(fifteen) == 30 and len(single) == 38
    assert table["robust_top1"] == pytest.approx(np.mean(fifteen))
    assert table["nineteen_top1"] == pytest.approx(np.mean(list(single.values())))
    assert table["drop"] == pytest.approx(table["robust_top1"] - table["clean_top1"])
    assert table["retention"] == pytest.approx(table["robust_top1"] / table["clean_top1"])
    assert outcome.predictions["attacked"].shape == (38, 20) and len(outcome.examples["names"]) == 19

    monkeypatch.setattr(_base, "BATCH", 7)
    again = evaluate(images, labels, levels=[1, 5])
    assert np.mean(again.predictions["attacked"] != outcome.predictions["attacked"]) < 0.01


def test_a_level_that_is_none_is_refused() -> None:
    for levels in ([0], [1.5], []):
        with pytest.raises(Problem) as caught:
            evaluate(scene(2), torch.tensor([0, 1]), levels=levels)
        assert caught.value.id == "C-111"
