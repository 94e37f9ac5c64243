"""The colours of a view say where its pixels come from, and `centres` must say the same, whatever moved them.

Images whose red is eight times the column and whose green is eight times the row go through the pipeline, into views
that are larger than they are: linear interpolation keeps a ramp a ramp, so what is seen is exact.
"""

import itertools

import pytest
import torch
from torch import Generator, Tensor

from sandglass.views.places import Places
from sandglass.views.recipes import draw_views, located_views

MOVES = ("hflip", "vflip", "quarter_turn", "local_rotation", "region_confusion")
SETS = [some for k in range(len(MOVES) + 1) for some in itertools.combinations(MOVES, k)]
SIDE, STEP = 30, 8  # px of the canvas, levels of colour to a pixel
SIZES = [(30, 30), (24, 30), (30, 22)] * 8


def seen(view: Tensor, h: int, w: int) -> Tensor:
    """(B, h, w, 2): row and column that the colours at the centres of cells tell, interpolated between pixels."""
    y = (torch.arange(h).view(-1, 1).expand(h, w) + 0.5) / h * 2 - 1
    x = (torch.arange(w).expand(h, w) + 0.5) / w * 2 - 1
    grid = torch.stack((x, y), 2).expand(len(view), -1, -1, -1)
    colours = torch.nn.functional.grid_sample(view, grid, align_corners=False)
    return colours[:, [1, 0]].permute(0, 2, 3, 1).double() * 255 / STEP + 0.5


def made(settings: dict, size: int) -> tuple[list[Tensor], list[Places]]:
    """Two views of the ramps."""
    place = torch.arange(SIDE) * STEP
    ramps = torch.stack((place.expand(SIDE, SIDE), place.view(-1, 1).expand(SIDE, SIDE), torch.zeros(SIDE, SIDE)))
    images = ramps.byte().expand(len(SIZES), -1, -1, -1)
    crop = {"count": 2, "crop_scale_min": 0.08, "crop_scale_max": 1.0}
    drawn = draw_views("plain", crop | settings, torch.tensor(SIZES), size, Generator().manual_seed(0))
    return located_views(drawn, images)


def error(settings: dict, size: int, grid: tuple[int, int]) -> float:
    """The largest distance in px of the image between what `centres` says and what is seen.

    Less than half a pixel from the border of a crop its outermost pixel is seen: there is no other to interpolate with.
    """

    def distance(view: Tensor, place: Places) -> float:
        edges = torch.stack((place.rows, place.columns), 1).view(-1, 1, 1, 2, 4)
        said = place.centres(*grid).clamp(edges[..., 2] + 0.5, edges[..., 3] - 0.5)
        return (said - seen(view, *grid)).abs().max().item()

    return max(distance(*both) for both in zip(*made(settings, size), strict=True))


@pytest.mark.parametrize("moves", SETS, ids=lambda moves: "+".join(moves) or "crop")
def test_centres_are_where_the_colours_come_from(moves: tuple[str, ...]) -> None:
    """All 32 sets of moves, of all images and of half of them; cells of 3 x 9 pixels, whose centres are a pixel's."""
    for chance in (1.0, 0.5):
        assert error(dict.fromkeys(moves, chance), 36, (12, 4)) < 1e-4


@pytest.mark.parametrize(("size", "grid"), [(32, (4, 4)), (96, (3, 3)), (112, (4, 4)), (224, (7, 7)), (224, (32, 32))])
def test_centres_at_the_sizes_of_backbones(size: int, grid: tuple[int, int]) -> None:
    assert error(dict.fromkeys(MOVES[:3], 0.5), size, grid) < 1e-4


@pytest.mark.parametrize(("size", "cells"), [(128, 4), (160, 5), (224, 7)])
@pytest.mark.parametrize("trim", [10, 20])
def test_centres_follow_cells_that_are_cut_and_resized(size: int, cells: int, trim: int) -> None:
    """At the middles of cells, and at the middles of their quarters, where the resampling of cells, by Lanczos and by
    cubic, keeps no exact ramp."""
    settings = {"hflip": 0.5, "quarter_turn": 0.5, "region_confusion": 1.0, "confusion_trim": trim}
    assert error(settings, size, (cells, cells)) < 1e-4
    assert error(settings, size, (2 * cells, 2 * cells)) < 0.01


def test_small_views_have_places_too() -> None:
    small = {"small_count": 2, "small_size": 0.5, "small_crop_scale_min": 0.05, "small_crop_scale_max": 0.14}
    assert len(made(small, 96)[1]) == 4
    assert error(small | dict.fromkeys(MOVES[:3], 0.5), 96, (4, 4)) < 1e-4


def test_spacing_is_run_over_cells_and_stays_within_the_crop() -> None:
    """Width 140 from 20 in 7 cells: 30, 50, .., 150 (linspace over the whole width would give 30, 53.3, .., 170). A
    flipped span runs backwards."""
    rows, columns = torch.tensor([[50.0, -40, 10, 50]]).double(), torch.tensor([[20.0, 140, 20, 160]]).double()
    centres = Places(rows, columns).centres(4, 7)
    assert centres[0, 3, :, 1].tolist() == pytest.approx([30, 50, 70, 90, 110, 130, 150])
    assert centres[0, :, 6, 0].tolist() == pytest.approx([45, 35, 25, 15])


@pytest.mark.parametrize("move", ["quarter_turn", "local_rotation", "region_confusion"])
def test_a_move_that_is_not_undone_would_be_seen(move: str) -> None:
    views, (place, _) = made({move: 1.0}, 36)
    assert (Places(place.rows, place.columns, 36).centres(12, 12) - seen(views[0], 12, 12)).abs().max() > 5
