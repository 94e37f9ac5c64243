"""What each recipe draws, large and small views alike, is what its row promises. Seeds are fixed; n is 30,000 images.

Moments are those of the reference tables, within 0.005; a share is within four standard errors, a correlation within
four over the root of n.
"""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from sandglass.registry import default
from sandglass.views import RECIPES, recipes

N = 30_000


def drawn(name: str, size: int = 224, image: tuple[int, int] = (160, 160), **given: Any) -> list[dict[str, Tensor]]:
    """The draws of the large views and of the small ones, each entry (count, N, ...)."""
    settings = {key: default(row) for key, row in RECIPES.declared(name).items()} | given
    sizes = torch.tensor([image]).expand(N, 2)
    drawn = recipes.draw_views(name, settings, sizes, size, Generator().manual_seed(1))
    return [{key: value.transpose(0, 1) for key, value in part.values.items()} for part in drawn]


def areas(draws: dict[str, Tensor], image: tuple[int, int] = (160, 160)) -> Tensor:
    """(count, N): of crops, as a fraction of the image's."""
    return (draws["rows"][..., 1] * draws["columns"][..., 1]).abs() / (image[0] * image[1])


def correlation(first: Tensor, second: Tensor) -> float:
    return torch.corrcoef(torch.stack((first.flatten().double(), second.flatten().double())))[0, 1].abs().item()


def assert_shares(gates: Tensor, expected: list[float]) -> None:
    """Of (count, N) gates, view by view."""
    for share, p in zip(gates.double().mean(1).tolist(), expected, strict=True):
        assert abs(share - p) <= 4 * (p * (1 - p) / N) ** 0.5


# --- crops --------------------------------------------------------------------------------------------------------

LARGE, SMALL = [0.4805, 0.2352], [0.0950, 0.0260]  # scales (0.08, 1) and (0.05, 0.14), whatever the policy
CROPS = {  # mean and deviation of the area of the large views, then of the small ones
    **{key: [LARGE] for key in ("crop_flip", "baseline", "simclr", "orthogonality", "lorot", "dcl", "byol", "located")},
    "multi_crop": [[0.5109, 0.2181], SMALL],
    "located_legacy": [[0.5412, 0.2014], [0.1250, 0.0433]],
    "masked": [[0.7823, 0.0827]],
}


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "plain"])
def test_crops_of_every_recipe_have_the_reference_areas(name: str) -> None:
    image = (160, 213) if name == "masked" else (160, 160)
    for draws, moments in zip(drawn(name, image=image), CROPS[name], strict=True):
        for view in areas(draws, image):
            assert [view.mean().item(), view.std().item()] == pytest.approx(moments, abs=0.005)


def test_dinos_crops_are_values_of_multi_crop() -> None:
    """Two of (0.4, 1), small ones of (0.05, 0.4): 0.6425 +- 0.1464 and 0.2251 +- 0.1011."""
    large, small = map(areas, drawn("multi_crop", crop_scale_min=0.4, small_crop_scale_max=0.4))
    assert [large.mean(), large.std()] == pytest.approx([0.6425, 0.1464], abs=0.005)
    assert [small.mean(), small.std()] == pytest.approx([0.2251, 0.1011], abs=0.005)


def test_no_crop_knows_of_another() -> None:
    """Areas and places of two large and six small crops of an image."""
    large, small = drawn("multi_crop")
    area = torch.cat((areas(large), areas(small)))
    middle = torch.cat([part["rows"][..., 0] + part["rows"][..., 1] / 2 for part in (large, small)])
    for values in (area, middle):
        assert torch.corrcoef(values).fill_diagonal_(0).abs().max() < 4 / N**0.5


@pytest.mark.parametrize(
    ("name", "image", "mean", "deviation"),
    [("byol", (160, 160), 0.4145, 0.2189), ("located", (160, 213), 0.3811, 0.2172), ("dcl", (32, 32), 0.4095, 0.2202)],
)
def test_pairs_overlap_as_independent_crops_do(
    name: str, image: tuple[int, int], mean: float, deviation: float
) -> None:
    (draws,) = drawn(name, image=image)

    def interval(spans: Tensor) -> tuple[Tensor, Tensor]:
        ends = torch.stack((spans[..., 0], spans[..., 0] + spans[..., 1]))
        return ends.amin(0), ends.amax(0)

    common = torch.ones(N, dtype=torch.float64)
    for spans in (draws["rows"], draws["columns"]):
        low, high = interval(spans)
        common *= (high.amin(0) - low.amax(0)).clamp(min=0)
    first, second = areas(draws, image) * image[0] * image[1]
    overlap = common / (first + second - common)
    assert [overlap.mean().item(), overlap.std().item()] == pytest.approx([mean, deviation], abs=0.005)


# --- flips, colour ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "plain"])
def test_flips(name: str) -> None:
    """Across by half everywhere; down by half where a row says so, and knowing nothing of the other."""
    down = 0.5 if name in ("orthogonality", "located_legacy") else 0.0
    for draws in drawn(name):
        flips = [draws[axis][..., 1] < 0 for axis in ("columns", "rows")]
        assert_shares(flips[0], [0.5] * len(flips[0]))
        assert_shares(flips[1], [down] * len(flips[1]))
        assert not down or correlation(*flips) < 4 / flips[0].numel() ** 0.5
        assert "quarter_turn" not in draws


PAIR = {"blur": [1.0, 0.1], "solarize": [0.0, 0.2]}
ALIKE = {"blur": [0.5, 0.5], "solarize": [0.0, 0.0]}
GATES = {
    "byol": [PAIR],
    "located": [PAIR],
    "multi_crop": [ALIKE, {"blur": [0.5] * 6, "solarize": [0.0] * 6}],
    "located_legacy": [{"blur": [0.5], "solarize": [0.0]}, {"blur": [0.1], "solarize": [0.2]}],
    "baseline": [ALIKE],
    "simclr": [ALIKE],
    "orthogonality": [ALIKE],
}


@pytest.mark.parametrize("name", GATES)
def test_each_view_is_blurred_and_solarized_as_often_as_its_place_says(name: str) -> None:
    for draws, expected in zip(drawn(name), GATES[name], strict=True):
        for key, shares in expected.items():
            if any(shares):
                assert_shares(draws[key], shares)
            assert any(shares) == (key in draws)
        assert_shares(draws["grey"], [0.2] * len(draws["grey"]))
        jitter = 1.0 if name == "located_legacy" else 0.8
        assert_shares(draws["order"][..., 0] >= 0, [jitter] * len(draws["grey"]))


def test_small_views_alternate_as_the_large_ones_unless_told_otherwise() -> None:
    """VICRegL's small crops alternate; DINO's have a blur of their own, and no solarization."""
    small = drawn("located", small_count=4)[1]
    assert_shares(small["blur"], [1.0, 0.1] * 2)
    assert_shares(small["solarize"], [0.0, 0.2] * 2)
    large, small = drawn("multi_crop", blur=1.0, blur_odd=0.1, solarize_odd=0.2, small_count=3)
    assert_shares(large["blur"], [1.0, 0.1])
    assert_shares(large["solarize"], [0.0, 0.2])
    assert_shares(small["blur"], [0.5] * 3)
    assert "solarize" not in small


@pytest.mark.parametrize("name", ["crop_flip", "lorot", "dcl", "masked"])
def test_recipes_without_colour_leave_it_alone(name: str) -> None:
    (draws,) = drawn(name)
    assert not {"order", "factors", "grey", "blur", "solarize"} & draws.keys()


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("byol", (0.4, 0.4, 0.2, 0.1)),
        ("located", (0.4, 0.4, 0.2, 0.1)),
        ("located_legacy", (0.4, 0.4, 0.2, 0.1)),
        ("multi_crop", (0.4, 0.4, 0.4, 0.1)),
        ("orthogonality", (0.8, 0.8, 0.8, 0.2)),
    ],
)
def test_strengths_of_the_jitter(name: str, limits: tuple[float, ...]) -> None:
    for draws in drawn(name):
        away = (draws["factors"] - torch.tensor([1.0, 1.0, 1.0, 0.0])).abs().flatten(0, 1).amax(0)
        assert away.tolist() == pytest.approx(limits, rel=1e-3) and (away <= torch.tensor(limits)).all()


# --- changes of place ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "share"), [(224, 0.085), (32, 0.0973)])
def test_lorot_turns_a_patch_in_every_view(size: int, share: float) -> None:
    """Sides 2 .. W/2, so the mean square side is 8.5 % of the view at 224, and (2^2 + .. + 16^2) / 15 / 32^2 at 32; a
    quarter of the patches stay as they are; the two views have patches of their own."""
    (draws,) = drawn("lorot", size)
    assert draws["local_rotation"].all()
    side, top, left, turns = draws["patch"].double().unbind(2)
    assert (side.min(), side.max()) == (2, size // 2)
    assert side.square().mean().item() / size**2 == pytest.approx(share, abs=0.001)
    assert_shares(turns == 0, [0.25, 0.25])
    for values in (side, top, left, turns):
        assert correlation(values[0], values[1]) < 4 / N**0.5


def test_dcl_moves_cells_as_a_scan_does() -> None:
    """Cell i goes back by one with 1/2, stays with 1/2, 1/4, .., 1/4, 1/2, goes m on with 2^-(m+2); the mean distance
    is 0.86 and the share that stays 0.32: of the rows, and of the cells of every row."""
    (draws,) = drawn("dcl", 224)
    assert draws["region_confusion"].all()
    source = draws["cells"].flatten(0, 1).view(-1, 7, 7)
    for order in (source[:, :, 0] // 7, source[:, 3] % 7):
        went = order.argsort(1) - torch.arange(7)  # of cell i
        assert_shares((went[:, 1:] == -1).T[:, :N], [0.5] * 6)
        assert_shares((went == 0).T[:, :N], [0.5, *[0.25] * 5, 0.5])
        assert_shares((went[:, 1:5] == 1).T[:, :N], [0.125] * 4)
        assert_shares((went[:, 1:4] == 2).T[:, :N], [0.0625] * 3)
        assert went.abs().double().mean().item() == pytest.approx(0.86, abs=0.01)
        assert (went == 0).double().mean().item() == pytest.approx(0.32, abs=0.005)
    assert correlation(*(draws["cells"][:, :, 0] % 7)) < 4 / N**0.5
