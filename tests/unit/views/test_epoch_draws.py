"""What an image gets depends on seed, epoch and image alone: not on the batch, the order, who asks, or what else is on.
And nothing in making views asks the device for a value, so that a GPU is never waited for."""

import pytest
import torch
from torch import Generator, Tensor

from sandglass.data.loader import step_generator
from sandglass.registry import default
from sandglass.views import RECIPES, ops, recipes
from sandglass.views.recipes import Drawn, draw_views, located_views, make_views

EVERYTHING = {
    **{"quarter_turn": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    **{"grey": 0.2, "blur": 0.5, "solarize": 0.5, "local_rotation": 0.5, "region_confusion": 0.5, "small_count": 2},
}
NAMES = [*RECIPES, "everything"]
SIZES = torch.tensor([(40, 64), (64, 40), (50, 50), (33, 61), (8, 64), (64, 64)])


def start(seed: int = 0, epoch: int = 0) -> Generator:
    return step_generator(seed, epoch, 0, "views")


def drawn(name: str, sizes: Tensor = SIZES, size: int = 64, rows: Tensor | None = None, **when: int) -> list[Drawn]:
    if name == "everything":
        return draw_views("crop_flip", EVERYTHING | {"count": 2}, sizes, size, start(**when), rows)
    return draw_views(name, {}, sizes, size, start(**when), rows)


def images_of(sizes: Tensor = SIZES) -> Tensor:
    canvas = torch.zeros(len(sizes), 3, *sizes.amax(0).tolist(), dtype=torch.uint8)
    for image, (h, w) in zip(canvas, sizes.tolist()):
        image[:, :h, :w] = torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=start(7))
    return canvas


def assert_rows(some: list[Drawn], every: list[Drawn], rows: Tensor) -> None:
    for part, whole in zip(some, every, strict=True):
        assert part.values.keys() == whole.values.keys()
        assert all(torch.equal(value, whole.values[key][rows]) for key, value in part.values.items())


def test_numbers_are_those_of_splitmix64() -> None:
    """As published for the seed 1234567; and the definition, a step at a time, in whole numbers without a limit."""
    first = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert ops.numbers(1234567, torch.tensor([0]), 5).tolist() == [[(x >> 40) / 2**24 for x in first]]
    state, expected = 2**63 - 5, []
    for _ in range(3000):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        expected.append(((z ^ (z >> 31)) >> 40) / 2**24)
    found = ops.numbers(2**63 - 5, torch.arange(0, 3000, 6).view(5, 100), 6)
    assert found.flatten().tolist() == expected


@pytest.mark.parametrize("name", NAMES)
def test_an_epoch_is_what_its_images_get_one_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    every, order = drawn(name), torch.tensor([3, 0, 5, 1])
    for i in range(len(SIZES)):
        assert_rows(drawn(name, SIZES[i : i + 1], rows=torch.tensor([i])), every, torch.tensor([i]))
    assert_rows(drawn(name, SIZES[order], rows=order), every, order)
    assert_rows(drawn(name, SIZES[:4]), every, torch.arange(4))
    monkeypatch.setattr(recipes, "DRAWN_AT_ONCE", 5)
    assert_rows(drawn(name), every, torch.arange(6))


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", NAMES)
def test_views_are_the_same_to_the_bit_in_any_batch_and_order(name: str, size: int) -> None:
    """Batches of 1 to 64 of 64 images, whose views are made in slices that end anywhere."""
    sizes = torch.full((64, 2), 48)
    parameters, images = drawn(name, sizes, size), images_of(sizes)
    whole, _ = located_views(parameters, images)
    order = torch.randperm(64, generator=start())
    for some in (*order.split((1, 7, 24, 32)), order):
        for view, expected in zip(located_views(parameters, images[some], some)[0], whole, strict=True):
            assert torch.equal(view, expected[some])


def test_two_threads_share_no_sum_of_a_lone_image() -> None:
    """At 224 px a sum is long enough to be shared, and one image in a batch would have its own rounding."""
    sizes, threads = torch.full((6, 2), 64), torch.get_num_threads()
    parameters, images = drawn("simclr", sizes, 224), images_of(sizes)
    torch.set_num_threads(2)
    try:
        whole, _ = located_views(parameters, images)
        for some in torch.arange(6).split(1):
            for view, expected in zip(located_views(parameters, images[some], some)[0], whole, strict=True):
                assert torch.equal(view, expected[some])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "plain"])
def test_another_seed_epoch_image_or_view_is_another_draw(name: str) -> None:
    sizes = torch.full((50, 2), 64)
    tables = [drawn(name, sizes, seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    values = [part.values for table in tables for part in table]
    boxes = torch.cat([torch.cat((v["rows"], v["columns"]), 2).flatten(0, 1) for v in values])
    assert len(boxes.unique(dim=0)) > 0.9 * len(boxes)  # few coincide, although they are whole pixels of 64


def test_what_is_switched_on_changes_no_other_draw() -> None:
    """So two policies are compared on the same crops: blur, a third view and small views take nothing from others."""
    (plain,) = draw_views("baseline", {"blur": 0.0, "grey": 0.0}, SIZES, 64, start())
    more, _ = draw_views("baseline", {"count": 3, "local_rotation": 1.0, "small_count": 4}, SIZES, 64, start())
    assert {"blur", "sigma", "grey", "patch"} <= more.values.keys() - plain.values.keys()
    assert all(torch.equal(value, more.values[key][:, :2]) for key, value in plain.values.items())


def test_every_view_that_a_row_allows_has_addresses_of_its_own() -> None:
    for name in RECIPES:
        rows = RECIPES.declared(name)
        assert rows["count"][2] <= recipes.LARGE_VIEWS
        assert rows.get("small_count", (0, 0, 0))[2] <= recipes.VIEWS - recipes.LARGE_VIEWS
    assert recipes.confusion_cells(10**4) ** 2 - 1 <= recipes.NUMBERS["cells"]


def test_an_epoch_of_100000_images_with_eight_views_takes_less_than_50_mb() -> None:
    parts = drawn("multi_crop", torch.full((1000, 2), 224), 224)
    assert sum(part.settings["count"] for part in parts) == 8
    taken = sum(value.nbytes for part in parts for value in part.values.values())
    assert 100 * taken < 50e6
    assert all(value.untyped_storage().nbytes() == value.nbytes for part in parts for value in part.values.values())


@pytest.mark.parametrize("name", NAMES)
def test_working_on_all_samples_gives_what_working_on_the_chosen_ones_gives(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters, images = drawn(name), images_of()
    chosen, _ = located_views(parameters, images)
    monkeypatch.setattr(ops, "STATIC", True)
    for view, expected in zip(located_views(parameters, images)[0], chosen, strict=True):
        torch.testing.assert_close(view, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_no_value_is_asked_of_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch's "meta" device there are none, so whoever asks, or takes as many as a value says, fails."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **more: torch.no_grad())  # it does not know the device
    there = [Drawn(p.side, p.settings, p.largest, {k: v.to("meta") for k, v in p.values.items()}) for p in drawn(name)]
    views, places = located_views(there, images_of()[:4].to("meta"), torch.arange(4, device="meta"))
    assert [view.shape[2] for view in views] == [part.side for part in there for _ in range(part.settings["count"])]
    assert all(place.centres(3, 3).shape == (4, 3, 3, 2) for place in places)


def test_a_generator_goes_on_from_one_drawing_to_the_next() -> None:
    images, generator = images_of(), start()
    settings = {key: default(row) for key, row in RECIPES.declared("crop_flip").items()}
    first, second = (make_views("crop_flip", settings, images, SIZES, 32, generator) for _ in range(2))
    assert not torch.equal(first[0], second[0])
