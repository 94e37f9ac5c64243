"""The forms of a distance: formulas worked in float64 one number at a time, perfect answers, and the best constants."""

import math

import pytest
import torch

from sandglass.auxiliary._distances import FORMS, Distance

CASES = [(form, signed) for form in FORMS for signed in (False, True)]


def by_hand(form: str, said: list[float], d: int, side: int, scale: float, signed: bool) -> float:
    if form == "regression":
        return abs(said[0] - d / scale)
    if form == "circular":
        angle = 2 * math.pi * d / side
        return 1 - (said[0] * math.cos(angle) + said[1] * math.sin(angle)) / math.hypot(*said)
    names = range(1 - side, side) if signed else range(side)  # each bin by its distance: no offset to get wrong
    share = [math.exp(x) / sum(map(math.exp, said)) for x in said]
    assert len(share) == len(names)
    if form == "ce":
        return -math.log(share[list(names).index(d)])
    mean = sum(p * name for p, name in zip(share, names, strict=True))
    variance = sum(p * (name - mean) ** 2 for p, name in zip(share, names, strict=True)) + 1e-8
    return math.exp(-math.log(variance)) * (mean - d) ** 2 + 0.001 * math.log(variance)


def every(axis: Distance) -> torch.Tensor:
    """Every distance there is, once: int64 (n,)."""
    return torch.arange(axis.least, axis.side)


@pytest.mark.parametrize("form, signed", CASES)
def test_loss_equals_the_formula(form: str, signed: bool) -> None:
    axis = FORMS[form](5, 4.0, signed)
    apart = every(axis).repeat(2).view(2, -1)
    said = torch.randn(*apart.shape, axis.answers, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = axis.loss(said, apart).tolist()
    for row, numbers, distances in zip(found, said.tolist(), apart.tolist(), strict=True):
        assert row == pytest.approx([by_hand(form, s, d, 5, 4.0, signed) for s, d in zip(numbers, distances)])


def perfect(axis: Distance, apart: torch.Tensor) -> torch.Tensor:
    """What a head would say that knows the distance: (n,) -> (n,answers)."""
    if axis.binned:
        return 1000.0 * torch.eye(axis.answers, dtype=torch.float64)[apart - axis.least]
    if axis.answers == 1:
        return (apart.double() / axis.scale)[:, None]
    angle = 2 * math.pi * apart.double() / axis.side
    return 3 * torch.stack([angle.cos(), angle.sin()], dim=-1)


@pytest.mark.parametrize("form, signed", CASES)
def test_a_perfect_answer_has_the_least_loss_and_no_error(form: str, signed: bool) -> None:
    axis = FORMS[form](5, 4.0, signed)
    said = perfect(axis, every(axis))
    least = 0.001 * math.log(1e-8) if form == "cbr" else 0.0
    assert axis.loss(said, every(axis)).tolist() == pytest.approx([least] * len(said), abs=1e-12)
    assert axis.error(said, every(axis)).tolist() == pytest.approx([0] * len(said), abs=1e-12)


@pytest.mark.parametrize("form, signed", CASES)
def test_an_answer_one_cell_off_is_one_cell_off(form: str, signed: bool) -> None:
    axis = FORMS[form](5, 4.0, signed)
    said, truth = perfect(axis, every(axis)[:-1]), every(axis)[1:]
    assert axis.error(said, truth).tolist() == pytest.approx([1] * len(truth))
    assert axis.loss(said, truth).min() > 0


def test_the_circle_takes_its_ends_for_neighbours() -> None:
    axis = FORMS["circular"](8, 1.0, False)
    said, truth = perfect(axis, torch.tensor([7])), torch.tensor([0])
    assert axis.error(said, truth).item() == pytest.approx(1)
    signed = FORMS["circular"](8, 1.0, True)
    assert torch.allclose(perfect(signed, torch.tensor([-1])), perfect(axis, torch.tensor([7])))


@pytest.mark.parametrize("side", [2, 3, 8])
@pytest.mark.parametrize("form, signed", CASES)
def test_chance_is_what_a_searched_constant_gets(form: str, signed: bool, side: int) -> None:
    """Descent from eight starts over the constant itself, on every pair of places: nothing is better than `chance`."""
    axis = FORMS[form](side, 2.0, signed)
    pairs = torch.tensor([i - j if signed else abs(i - j) for i in range(side) for j in range(side)])
    said = torch.randn(8, 1, axis.answers, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    said.requires_grad_()
    search = torch.optim.Adam([said], lr=0.5)
    for step in range(400):
        search.param_groups[0]["lr"] = 0.5 * (1 - step / 400)
        each = axis.loss(said.expand(-1, len(pairs), -1), pairs.expand(8, -1)).mean(dim=1)
        search.zero_grad()
        each.sum().backward()
        search.step()
    assert each.min().item() == pytest.approx(axis.chance(), rel=1e-3)
    assert each.min().item() > axis.chance() - 1e-9


def test_chance_of_a_side_of_eight() -> None:
    """The distances 0 .. 7 have 8, 14, 12, .. 2 of the 64 pairs."""
    counts = [8, 14, 12, 10, 8, 6, 4, 2]
    assert FORMS["regression"](8, 8.0, False).chance() == 0.1953125
    assert FORMS["ce"](8, 8.0, False).chance() == pytest.approx(-sum(n / 64 * math.log(n / 64) for n in counts))
    assert FORMS["circular"](8, 8.0, True).chance() == pytest.approx(1)  # round the circle, all are equally likely


@pytest.mark.parametrize("form", FORMS)
def test_an_axis_of_one_cell_asks_nothing(form: str) -> None:
    axis = FORMS[form](1, 1.0, True)
    said = torch.ones(3, axis.answers, dtype=torch.float64)
    assert axis.chance() <= 0 and axis.loss(said, torch.zeros(3, dtype=torch.int64)).isfinite().all()
