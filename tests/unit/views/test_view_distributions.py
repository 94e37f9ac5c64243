"""The draws have the distribution of the per-image references, and no two of them know of each other.

Seeds are fixed, so a pass stays a pass; n is stated with each test. A p-value is compared with 1e-3 over the number of
p-values in this file (Bonferroni), a count or a correlation with four standard errors.
"""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Generator, Tensor
from torchvision.transforms import v2

from sandglass.registry import default
from sandglass.views import RECIPES, ops, recipes

P_VALUES = 50  # at least as many as this file computes
ALPHA = 1e-3 / P_VALUES
SCALE = (0.08, 1.0)


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def crops(n: int, height: int, width: int, scale: tuple[float, float], seed: int = 0) -> Tensor:
    return ops.draw_crop(torch.rand(n, 22, generator=seeded(seed)), torch.tensor([[height, width]]), scale).double()


def reference_crops(n: int, height: int, width: int, scale: tuple[float, float]) -> Tensor:
    """torchvision's own per-image draw."""
    torch.manual_seed(0)
    image, sampler = torch.empty(3, height, width), v2.RandomResizedCrop(height, scale)
    draws = [sampler.make_params([image]) for _ in range(n)]
    return torch.tensor([[d["top"], d["left"], d["height"], d["width"]] for d in draws]).double()


def traits(boxes: Tensor, height: int, width: int) -> dict[str, np.ndarray]:
    """What a crop is judged by; offsets where there is room to choose."""
    top, left, h, w = boxes.numpy().T
    down, across = height - h, width - w
    return {
        "area": h * w / (height * width),
        "log ratio": np.log(w / h),
        "top": top[down > 0] / down[down > 0],
        "left": left[across > 0] / across[across > 0],
    }


@pytest.mark.parametrize(("height", "width"), [(32, 32), (160, 213)])
def test_crops_are_drawn_as_torchvision_draws_them(height: int, width: int) -> None:
    """T1: two-sample Kolmogorov-Smirnov, 200,000 draws against 20,000 of torchvision's."""
    ours = traits(crops(200_000, height, width, SCALE), height, width)
    theirs = traits(reference_crops(20_000, height, width, SCALE), height, width)
    for name in ours:
        assert stats.ks_2samp(ours[name], theirs[name]).pvalue > ALPHA, name


# height, width, scale: area mean and sd, log ratio mean and sd, sd of the centre as a fraction of width and height
PUBLISHED = [
    (32, 32, (0.08, 1.0), 0.4904, 0.2406, 0.000, 0.161, 0.116, 0.116),
    (32, 32, (0.2, 1.0), 0.5512, 0.2069, 0.000, 0.159, 0.097, 0.097),
    (96, 96, (0.08, 1.0), 0.4825, 0.2361, 0.000, 0.160, 0.112, 0.112),
    (160, 160, (0.14, 1.0), 0.5109, 0.2181, 0.000, 0.159, 0.101, 0.101),
    (160, 160, (0.4, 1.0), 0.6425, 0.1464, 0.000, 0.155, 0.068, 0.068),
    (160, 160, (0.05, 0.14), 0.0950, 0.0260, 0.000, 0.166, 0.203, 0.203),
    (160, 160, (0.05, 0.4), 0.2251, 0.1011, 0.000, 0.166, 0.161, 0.161),
    (160, 213, (0.08, 1.0), 0.4341, 0.2175, 0.031, 0.164, 0.137, 0.099),
    (160, 240, (0.08, 1.0), 0.3908, 0.1910, 0.031, 0.164, 0.150, 0.096),
    (160, 213, (0.67, 1.0), 0.7823, 0.0827, 0.158, 0.095, 0.054, 0.023),
]


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row[0]}x{row[1]}-{row[2]}")
def test_crops_have_the_reference_moments(row: tuple) -> None:
    """100,000 draws; the reference has 400,000, so 0.003 is three standard errors and more. Rejection is what matters:
    the mean area is not the middle of the scale, and it differs between a square and a 4 : 3 image."""
    height, width, scale, *expected = row
    top, left, h, w = crops(100_000, height, width, scale).numpy().T
    area, ratio = h * w / (height * width), np.log(w / h)
    x, y = (left + w / 2) / width, (top + h / 2) / height
    assert [area.mean(), area.std(), ratio.mean(), ratio.std(), x.std(), y.std()] == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize(("height", "width"), [(64, 400), (400, 64)])
def test_long_images_are_cropped_as_torchvision_crops_them(height: int, width: int) -> None:
    """T4: most proposals fail, so the share and the place of the fallback show; 50,000 draws against 10,000."""
    ours = traits(crops(50_000, height, width, SCALE), height, width)
    theirs = traits(reference_crops(10_000, height, width, SCALE), height, width)
    for name in ours:
        assert stats.ks_2samp(ours[name], theirs[name]).pvalue > ALPHA, name
    fallback = 85 * 64 / (64 * 400)
    shares = [(trait["area"] == fallback).mean() for trait in (ours, theirs)]
    assert shares[0] > 0.01 and abs(shares[0] - shares[1]) < 4 * (0.25 / 10_000) ** 0.5


def overlap(first: Tensor, second: Tensor) -> np.ndarray:
    """Intersection over union of two boxes."""
    low = torch.maximum(first[:, :2], second[:, :2])
    high = torch.minimum(first[:, :2] + first[:, 2:], second[:, :2] + second[:, 2:])
    common = (high - low).clamp(min=0).prod(1)
    return (common / (first[:, 2:].prod(1) + second[:, 2:].prod(1) - common)).numpy()


@pytest.mark.parametrize(
    ("height", "width", "scale", "mean", "sd", "apart"),
    [
        (160, 160, (0.08, 1.0), 0.4145, 0.2189, 0.015),
        (160, 160, (0.2, 1.0), 0.5043, 0.1822, None),
        (160, 213, (0.08, 1.0), 0.3811, 0.2172, 0.030),
        (32, 32, (0.08, 1.0), 0.4095, 0.2202, None),
    ],
)
def test_two_views_overlap_as_independent_crops_do(
    height: int, width: int, scale: tuple[float, float], mean: float, sd: float, apart: float | None
) -> None:
    """T8: the overlap of the two crops of an image, 100,000 pairs; shared or correlated crops raise it."""
    settings = recipes.OFF | {"count": 2, "crop_scale_min": scale[0], "crop_scale_max": scale[1]}
    n = 100_000
    draws = recipes.draw(settings, torch.tensor([[height, width]]), torch.arange(n), 32)
    boxes = torch.stack([draws[axis][..., column] for column in (0, 1) for axis in ("rows", "columns")], 2).double()
    both = overlap(boxes[:, 0], boxes[:, 1])
    assert [both.mean(), both.std()] == pytest.approx([mean, sd], abs=0.003)
    if apart is not None:
        assert (both == 0).mean() == pytest.approx(apart, abs=0.002)


# --- gates, factors, orders ---------------------------------------------------------------------------------------

N = 100_000
GATES = ("flip", "jitter", "grey", "blur", "solarize", "quarter_turn", "local_rotation", "region_confusion")


@pytest.fixture(scope="module")
def draws() -> dict[str, Tensor]:
    """Two views of 100,000 images by `simclr` at 224 with everything else switched on as well."""
    declared = {key: default(row) for key, row in RECIPES.declared("simclr").items()}
    extra = {"solarize": 0.2, "quarter_turn": 0.5, "local_rotation": 0.3, "region_confusion": 0.4}
    views = recipes.draw(recipes.OFF | declared | extra, torch.full((1, 2), 224), torch.arange(N), 224, start=11)
    drawn = {key: value.transpose(0, 1).flatten(0, 1) for key, value in views.items()}
    return drawn | {"jitter": drawn["order"][:, 0] >= 0, "flip": drawn["columns"][:, 1] < 0}


def test_gates_open_as_often_as_stated(draws: dict[str, Tensor]) -> None:
    """T3: each frequency within four standard errors, n = 200,000."""
    for key, p in zip(GATES, (0.5, 0.8, 0.2, 0.5, 0.2, 0.5, 0.3, 0.4)):
        assert abs(draws[key].double().mean().item() - p) < 4 * (p * (1 - p) / (2 * N)) ** 0.5, key


def test_gates_know_nothing_of_each_other(draws: dict[str, Tensor]) -> None:
    """T3: between operations, between the two views of an image, and between neighbours in a batch."""
    gates = torch.stack([draws[key].double() for key in GATES])
    between = torch.corrcoef(gates).fill_diagonal_(0)
    assert between.abs().max() < 4 / (2 * N) ** 0.5
    for gate in gates:
        views = torch.corrcoef(torch.stack((gate[:N], gate[N:])))[0, 1]
        neighbours = torch.corrcoef(torch.stack((gate[1:], gate[:-1])))[0, 1]
        assert abs(views) < 4 / N**0.5 and abs(neighbours) < 4 / (2 * N) ** 0.5


def test_parameters_are_uniform_and_independent(draws: dict[str, Tensor]) -> None:
    """T1: one-sample Kolmogorov-Smirnov against the stated range, n = 200,000; then correlations as for the gates."""
    ranges = [(0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2), (0.1, 2.0)]
    parameters = torch.cat((draws["factors"], draws["sigma"].unsqueeze(1)), 1)
    for values, (low, high) in zip(parameters.numpy().T, ranges):
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > ALPHA
    both_views = torch.cat((parameters[:N], parameters[N:]), 1).T
    assert torch.corrcoef(both_views).fill_diagonal_(0).abs().max() < 4 / N**0.5


def test_all_24_orders_are_equally_likely(draws: dict[str, Tensor]) -> None:
    """T2: chi-squared over the jittered samples."""
    jittered = draws["order"][draws["jitter"]].long()
    codes = (jittered * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = codes.unique(return_counts=True)[1]
    assert len(counts) == 24 and stats.chisquare(counts.numpy()).pvalue > ALPHA


# --- changes of place ---------------------------------------------------------------------------------------------


def test_patches_are_uniform_in_side_turn_and_place(draws: dict[str, Tensor]) -> None:
    """T1, T2: side over 2 .. 112, turns over 0 .. 3, corner over 0 .. 223 - side (the last admissible one never)."""
    side, top, left, turns = draws["patch"].long().unbind(1)
    assert (side.min(), side.max()) == (2, 112)
    assert stats.chisquare(torch.bincount(side)[2:].numpy()).pvalue > ALPHA
    assert stats.chisquare(torch.bincount(turns, minlength=4).numpy()).pvalue > ALPHA
    assert (top + side).max() == 223 and (left + side).max() == 223 and min(top.min(), left.min()) == 0
    narrow = side == 100
    for corner in (top, left):
        assert stats.chisquare(torch.bincount(corner[narrow], minlength=124).numpy()).pvalue > ALPHA


def scanned(coins: tuple[int, ...]) -> tuple[int, ...]:
    """The scan by hand: take the next cell, and change places with the one before if the coin says so."""
    line = [0]
    for cell, coin in enumerate(coins, 1):
        line.append(cell)
        if coin:
            line[-1], line[-2] = line[-2], line[-1]
    return tuple(line)


def test_region_confusion_draws_the_64_permutations_of_a_scan_alike(draws: dict[str, Tensor]) -> None:
    """T2: of rows (n = 200,000) and of the cells within each grid row; chi-squared over 64 outcomes of six coins."""
    powers = 7 ** torch.arange(6, -1, -1)
    possible = [scanned(coins) for coins in itertools.product((0, 1), repeat=6)]
    expected = sorted((torch.tensor(line) * powers).sum().item() for line in possible)
    source = draws["cells"].long().view(-1, 7, 7)
    rows = source[:, :, 0] // 7
    assert torch.equal(source // 7, rows.unsqueeze(2).expand_as(source))  # a row keeps its cells
    for lines in (rows, *(source % 7).unbind(1)):
        codes, counts = (lines * powers).sum(1).unique(return_counts=True)
        assert codes.tolist() == expected
        assert stats.chisquare(counts.numpy()).pvalue > ALPHA


def test_rows_of_a_confused_grid_are_scanned_independently(draws: dict[str, Tensor]) -> None:
    """n = 200,000: whether the first cell moved, for every two rows of the original and for the scan of rows."""
    source = draws["cells"].long().view(-1, 7, 7)
    rows = source[:, :, 0] // 7
    within = torch.empty_like(source).scatter_(1, rows.unsqueeze(2).expand_as(source), source % 7)
    moved = torch.cat((within[:, :, 0] != 0, rows[:, :1] != 0), 1).double()
    assert moved.mean(0).sub(0.5).abs().max() < 4 * 0.5 / (2 * N) ** 0.5
    assert torch.corrcoef(moved.T).fill_diagonal_(0).abs().max() < 4 / (2 * N) ** 0.5


# --- seen in the pixels -------------------------------------------------------------------------------------------


def test_views_show_independent_crops_of_the_right_spread() -> None:
    """2,000 images whose red is the column and green the row: the mean colour of a view is the centre of its crop."""
    n, side = 2_000, 96
    place = torch.arange(side, dtype=torch.uint8).mul(2)
    image = torch.stack((place.expand(side, side), place.view(-1, 1).expand(side, side), torch.full((side, side), 9)))
    images, sizes = image.byte().expand(n, -1, -1, -1), torch.full((n, 2), side)
    views = recipes.make_views("crop_flip", {"count": 2}, images, sizes, 4, seeded(2))
    centres = torch.cat([view.mean((2, 3))[:, :2] for view in views], 1).double() * 255 / 2 / side  # x, y, x, y
    assert centres.std(0).tolist() == pytest.approx([0.112] * 4, abs=4 * 0.112 / (2 * n) ** 0.5)
    assert torch.corrcoef(centres.T).fill_diagonal_(0).abs().max() < 4 / n**0.5
    flipped = torch.stack([view[:, 0, :, 0] > view[:, 0, :, -1] for view in views]).all(2).double()
    assert flipped.mean().item() == pytest.approx(0.5, abs=4 * 0.5 / (2 * n) ** 0.5)
    assert abs(torch.corrcoef(flipped)[0, 1]) < 4 / n**0.5


def test_as_many_views_are_grey_as_the_recipe_says() -> None:
    """T6 in part: 4,000 views of a saturated image; jitter alone cannot take all its colour away."""
    n = 2_000
    image = torch.tensor([230, 60, 20], dtype=torch.uint8).view(1, 3, 1, 1).expand(n, 3, 8, 8)
    views = torch.stack(recipes.make_views("baseline", {}, image, torch.full((n, 2), 8), 8, seeded(3)))
    grey = (views[:, :, 0] == views[:, :, 2]).flatten(2).all(2).double()
    assert grey.mean().item() == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / (2 * n)) ** 0.5)
    assert abs(torch.corrcoef(grey)[0, 1]) < 4 / n**0.5


def test_whole_pipeline_equals_torchvision_in_its_moments() -> None:
    """T6: 1,024 views of 64 px images, ours at once, torchvision's one by one: channel means and deviations, colour
    and edge energy within four standard errors of their difference."""
    n, side = 1_024, 64
    generator = seeded(4)
    coarse = torch.rand(n, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    images = (images * 255).byte()
    (ours,) = recipes.make_views("simclr", {"count": 1}, images, torch.full((n, 2), side), side, generator)
    torch.manual_seed(5)
    sigma = recipes.for_size(recipes.OFF | {"blur": 0.5}, side)["blur_sigma_max"]
    one_by_one = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomResizedCrop(side, SCALE, antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(7, (0.1, sigma))], 0.5),
        ]
    )
    theirs = torch.stack([one_by_one(image) for image in images])

    def features(views: Tensor) -> Tensor:
        """Per view: channel means, channel deviations, saturation, edge energy."""
        colour = (views.amax(1) - views.amin(1)).mean((1, 2))
        edges = views.diff(dim=2).abs().mean((1, 2, 3)) + views.diff(dim=3).abs().mean((1, 2, 3))
        return torch.cat((views.mean((2, 3)), views.std((2, 3)), torch.stack((colour, edges), 1)), 1).double()

    mine, other = features(ours), features(theirs)
    for moment in (lambda f: f, lambda f: (f - f.mean(0)).square()):
        a, b = moment(mine), moment(other)
        error = ((a.var(0) + b.var(0)) / n).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 4 * error).all()
