"""The recipes: contract of every registered one, determinism, padding, size rules and the evaluation view."""

import itertools

import pytest
import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as reference

from sandglass.registry import default
from sandglass.views import RECIPES, recipes
from sandglass.views.recipes import draw_views, evaluation_view, located_views, make_views

EVERYTHING = {
    "quarter_turn": 0.5,
    "solarize": 0.5,
    "vflip": 0.5,
    "local_rotation": 0.5,
    "region_confusion": 0.5,
    "interpolation": "bicubic",
}


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def batch(sizes: list[tuple[int, int]], beyond: int = 0) -> tuple[Tensor, Tensor]:
    """Noise images of the given true sizes on one canvas; `beyond` fills the rest of it."""
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    canvas = torch.full((len(sizes), 3, height, width), beyond, dtype=torch.uint8)
    generator = seeded(99)
    for image, (h, w) in zip(canvas, sizes):
        image[:, :h, :w] = torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8)
    return canvas, torch.tensor(sizes)


MIXED = [(40, 64), (64, 40), (50, 50), (33, 61), (8, 64), (64, 64)]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_keeps_the_contract(name: str) -> None:
    images, sizes = batch(MIXED)
    settings = {key: default(row) for key, row in RECIPES.declared(name).items()}
    views = RECIPES.get(name)(name, settings, images, sizes, 36, seeded())
    sides = recipes.sizes_of(settings, 36)
    assert sides == [36] * settings["count"] + [16] * settings.get("small_count", 0)
    for view, side in zip(views, sides, strict=True):
        assert view.shape == (len(MIXED), 3, side, side) and view.dtype == torch.float32 and view.is_contiguous()
        assert view.min() >= 0 and view.max() <= 1 and view.std() > 0.05
    assert RECIPES.about(name)["about"] == recipes.ABOUT[name]
    assert {key.removeprefix("small_").removesuffix("_odd") for key in settings} <= {*recipes.OFF, "size"}


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "plain"])
@pytest.mark.parametrize("size", [32, 64])
def test_same_generator_same_bits_and_different_otherwise(name: str, size: int) -> None:
    images, sizes = batch(MIXED)
    for extra in ({}, EVERYTHING):
        first, second, other = (make_views(name, extra, images, sizes, size, seeded(s)) for s in (7, 7, 8))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
        for one, another in itertools.combinations(first, 2):  # two views of an image are two draws
            assert one.shape != another.shape or not torch.equal(one, another)


@pytest.mark.parametrize("name", RECIPES)
def test_an_image_has_the_same_views_and_places_in_any_batch_and_order(name: str) -> None:
    images, sizes = batch(MIXED)
    for extra in ({}, EVERYTHING):
        drawn = draw_views(name, extra, sizes, 64, seeded())
        views, places = located_views(drawn, images)
        for own in torch.tensor([4, 1, 0, 5, 2, 3]).split((2, 1, 3)):
            mine, where = located_views(drawn, images[own], own)
            for view, whole in zip(mine, views, strict=True):
                assert torch.equal(view, whole[own])
            for place, all_places in zip(where, places, strict=True):
                assert torch.equal(place.centres(5, 3), all_places.centres(5, 3)[own])


def test_bits_do_not_depend_on_how_the_batch_is_sliced(monkeypatch: pytest.MonkeyPatch) -> None:
    images, sizes = batch(MIXED)
    whole = make_views("simclr", EVERYTHING, images, sizes, 32, seeded())
    monkeypatch.setattr(recipes, "SLICE", 2 * 3 * 32 * 32)
    sliced = make_views("simclr", EVERYTHING, images, sizes, 32, seeded())
    torch.testing.assert_close(torch.stack(sliced), torch.stack(whole), atol=1e-6, rtol=0)


def test_views_are_made_in_float32_under_autocast() -> None:
    images, sizes = batch(MIXED)
    expected = [*make_views("simclr", EVERYTHING, images, sizes, 64, seeded()), evaluation_view(images, sizes, 40)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        views = [*make_views("simclr", EVERYTHING, images, sizes, 64, seeded()), evaluation_view(images, sizes, 40)]
    assert all(torch.equal(a, b) for a, b in zip(views, expected))


@pytest.mark.parametrize("name", RECIPES)
def test_the_canvas_beyond_the_true_size_never_shows(name: str) -> None:
    overrides = {} if name == "plain" else EVERYTHING
    dark, light = (make_views(name, overrides, *batch(MIXED, beyond), 48, seeded()) for beyond in (0, 255))
    assert all(torch.equal(a, b) for a, b in zip(dark, light))


def test_cubic_views_stay_in_range_where_the_crop_overshoots() -> None:
    checks = (
        (torch.arange(16).view(-1, 1) // 4 + torch.arange(16) // 4).remainder(2).mul(255).byte().expand(4, 3, 16, 16)
    )
    sizes = torch.full((4, 2), 16)
    raw = recipes.ops.resample(checks, *recipes.ops.centre_spans(sizes, 32), 32, "bicubic") / 255
    assert raw.min() < -0.01 and raw.max() > 1.01
    (view,) = make_views("crop_flip", {"interpolation": "bicubic"}, checks, sizes, 32, seeded())
    assert view.min() == 0 and view.max() == 1


@pytest.mark.parametrize("size", [24, 40, 96])
def test_evaluation_view_is_resize_then_centre_crop(size: int) -> None:
    images, sizes = batch(MIXED)
    views = evaluation_view(images, sizes, size)
    for image, (h, w), view in zip(images, MIXED, views):
        resized = reference.resize(image[:, :h, :w] / 255, [size], antialias=True)
        torch.testing.assert_close(view, reference.center_crop(resized, [size, size]), atol=1e-3, rtol=0)


def test_evaluation_view_keeps_images_that_fit() -> None:
    images, sizes = batch([(32, 32), (32, 32)])
    assert torch.equal(evaluation_view(images, sizes, 32), images / 255)
    padded, mixed = batch([(32, 32), (40, 40)])
    assert torch.equal(evaluation_view(padded, mixed, 32)[0], padded[0, :, :32, :32] / 255)


def test_plain_is_the_evaluation_view_and_draws_nothing_that_shows() -> None:
    images, sizes = batch(MIXED)
    for seed in (0, 1):
        (view,) = make_views("plain", {}, images, sizes, 40, seeded(seed))
        assert torch.equal(view, evaluation_view(images, sizes, 40))


def test_crop_flip_of_the_whole_image_is_the_image_or_its_mirror() -> None:
    images, sizes = batch([(32, 32)] * 40)
    whole = {"crop_scale_min": 1.0, "crop_scale_max": 1.0}  # a proposal of the full area fits only as the full square
    (view,) = make_views("crop_flip", whole, images, sizes, 32, seeded())
    straight = (view - images / 255).abs().amax((1, 2, 3)) < 1e-4
    mirrored = (view - images.flip(3) / 255).abs().amax((1, 2, 3)) < 1e-4
    assert (straight ^ mirrored).all() and straight.any() and mirrored.any()


def test_blur_follows_the_size() -> None:
    """Off at 32, sigma up to 2 * 96 / 224 at 96 (never under 0.5), as given at 224."""
    given = {"blur": 0.5, "blur_sigma_max": 2.0}
    assert recipes.for_size(given, 32) == {"blur": 0.0, "blur_odd": 0.0, "blur_sigma_max": 2.0}
    assert recipes.for_size(given, 96)["blur_sigma_max"] == pytest.approx(2 * 96 / 224)
    assert recipes.for_size({"blur": 0.5, "blur_sigma_max": 0.6}, 64)["blur_sigma_max"] == 0.5
    assert recipes.for_size(given, 224) == given
    images, sizes = batch([(32, 32)] * 4)
    only_blur = {"jitter": 0.0, "grey": 0.0, "hflip": 0.0, "crop_scale_max": 0.0, "blur": 1.0, "blur_sigma_min": 1.0}
    assert torch.equal(make_views("baseline", only_blur, images, sizes, 32, seeded())[0], images / 255)
    blurred = make_views("baseline", only_blur, images, sizes, 64, seeded())[0]
    sharp = make_views("baseline", only_blur | {"blur": 0.0}, images, sizes, 64, seeded())[0]
    assert blurred.std() < 0.9 * sharp.std()


@pytest.mark.parametrize(
    ("size", "small"), [(32, 16), (48, 24), (64, 32), (96, 32), (128, 64), (160, 64), (192, 96), (224, 96)]
)
def test_small_views_have_sides_that_strides_divide(size: int, small: int) -> None:
    assert recipes.small_side(size, 0.5) == small
    settings = {"count": 2, "small_count": 3, "small_size": 0.5}
    assert recipes.sizes_of(settings, size) == [size, size, small, small, small]
    assert recipes.sizes_of(settings | {"small_count": 0}, size) == [size, size]
    images, sizes = batch(MIXED)
    views = make_views("multi_crop", {}, images, sizes, size, seeded())
    assert [view.shape[-1] for view in views] == [size] * 2 + [small] * 6
    assert all(view.min() >= 0 and view.max() <= 1 and view.std() > 0.05 for view in views)


@pytest.mark.parametrize("name", ["byol", "multi_crop", "located", "located_legacy"])
def test_no_view_is_blurred_below_64(name: str) -> None:
    settings = {key: default(row) for key, row in RECIPES.declared(name).items()} | {"small_count": 2}
    for size, blurred in ((32, False), (63, False), (64, True)):
        for side, kind in recipes.large_and_small(settings, size):
            draws = recipes.draw(kind, torch.full((40, 2), 90), torch.arange(40), side)
            assert ("blur" in draws) == blurred


def test_multi_crop_adds_small_views_from_small_areas() -> None:
    ramp = torch.arange(96).mul(2).byte().expand(64, 3, 96, 96)  # brightness tells the column
    settings = {"small_count": 3, "crop_scale_min": 0.5}
    views = make_views("crop_flip", settings, ramp, torch.full((64, 2), 96), 48, seeded())
    assert [view.shape[-1] for view in views] == [48, 24, 24, 24]
    extents = [(view.amax((1, 2, 3)) - view.amin((1, 2, 3))).max() * 255 / 192 for view in views]
    assert extents[0] > 0.7 and all(extent < (0.14 * 4 / 3) ** 0.5 for extent in extents[1:])


@pytest.mark.parametrize(("key", "changed"), [("local_rotation", 0.75), ("region_confusion", 1.0)])
def test_a_row_can_switch_on_changes_of_place(key: str, changed: float) -> None:
    """Both only move pixels at 32: the sorted values stay, and local rotation leaves a quarter of the images alone."""
    images, sizes = batch([(32, 32)] * 200)
    (plain,), (moved,) = (make_views("plain", extra, images, sizes, 32, seeded()) for extra in ({}, {key: 1.0}))
    assert torch.equal(plain.flatten(2).sort(2).values, moved.flatten(2).sort(2).values)
    share = (plain != moved).flatten(1).any(1).float().mean().item()
    assert abs(share - changed) < 4 * (0.25 * 0.75 / 200) ** 0.5


@pytest.mark.parametrize(("size", "cells"), [(32, 4), (96, 4), (128, 4), (160, 5), (224, 7), (448, 7)])
def test_confusion_cells(size: int, cells: int) -> None:
    assert recipes.confusion_cells(size) == cells
