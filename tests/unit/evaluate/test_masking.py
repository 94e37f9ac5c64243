"""Square attack, and the signs of a masked gradient: an honest model raises no flag, three that hide theirs do."""

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sandglass.config import resolve
from sandglass.evaluate import ATTACKS
from sandglass.evaluate.attacks import masking
from sandglass.evaluate.attacks._ball import Ball
from sandglass.evaluate.attacks._base import Shown
from sandglass.evaluate.attacks.signs import SIGNS
from sandglass.evaluate.attacks.square import squares


@cache
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A network on 8x8 digits, and 200 images it has not seen."""
    x, y = load_digits(return_X_y=True)
    images = torch.tensor(x / 16, dtype=torch.float32).mul(255).round().div(255).view(-1, 1, 8, 8).repeat(1, 3, 1, 1)
    labels = torch.tensor(y)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 10))
    search = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(150):
        rows = torch.randint(1497, (128,), generator=torch.Generator().manual_seed(step))
        search.zero_grad()
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        search.step()
    return model.eval(), images[1497:1697], labels[1497:1697]


class Saturated(nn.Module):
    """So sure of everything that the softmax is exactly 0 and 1, and its gradient 0."""

    def forward(self, images: Tensor) -> Tensor:
        return 1e4 * trained()[0](images)


class Stepped(nn.Module):
    """The input in 12 levels: no slope anywhere."""

    def forward(self, images: Tensor) -> Tensor:
        return trained()[0]((images * 12).round() / 12)


class Shattered(nn.Module):
    """The right values with slopes that point anywhere: a ripple far finer than epsilon."""

    def forward(self, images: Tensor) -> Tensor:
        return trained()[0](images + 1e-3 * torch.sin(3e4 * images))


def signs(model: nn.Module) -> dict[str, float]:
    _, images, labels = trained()
    few = resolve(ATTACKS, "masking", {"epsilons": [4.0, 16.0, 32.0], "restarts": 2, "queries": 150})
    rows, _, _ = ATTACKS.get("masking")(model, images, labels, few, 0)
    return {row["metric"]: row["value"] for row in rows}


def raised(found: dict[str, float]) -> set[str]:
    return {name for name in SIGNS if found[f"flag_{name}"]}


def test_an_honest_model_raises_no_flag() -> None:
    found = signs(trained()[0])
    assert raised(found) == set() and found["flags"] == 0
    assert set(found) == {*SIGNS, *(f"flag_{name}" for name in SIGNS), "flags"}


@pytest.mark.parametrize("model", [Saturated(), Stepped(), Shattered()], ids=lambda model: type(model).__name__)
def test_a_model_that_hides_its_gradient_is_caught(model: nn.Module) -> None:
    found = signs(model)
    assert {"only_black_box", "survives_far"} <= raised(found)
    assert ("zero_gradient" in raised(found)) == (not isinstance(model, Shattered))
    assert found["flags"] == len(raised(found))


def test_a_ratio_has_its_own_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its bound a sign raises no flag, above it does."""
    value = signs(trained()[0])["noise_does_it_too"]
    for bound, flag in ((value, 0), (value - 1e-9, 1)):
        monkeypatch.setitem(masking.BOUNDS, "noise_does_it_too", bound)
        assert signs(trained()[0])["flag_noise_does_it_too"] == flag


def test_squares_find_the_edge_of_a_linear_model() -> None:
    """All weights alike: the least score of the ball is that of the image without epsilon, and squares get there."""
    images, labels = torch.full((2, 3, 4, 4), 0.6), torch.tensor([1, 1])

    def model(x: Tensor) -> Tensor:
        score = (x - 0.5).sum(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], dim=1)

    settings: dict[str, Any] = {"queries": 2000, "share": 1.0}
    for radius, fooled in ((0.09, False), (0.11, True)):
        ball = Ball("linf", radius, torch.ones(1, 1, 1), True)
        moved = squares(settings, 0, Shown(model, images, labels, range(2)), ball)
        assert ((model(moved).argmax(1) != labels) == fooled).all()
        assert float((moved - images).abs().max()) <= radius + 1e-6
        if not fooled:
            torch.testing.assert_close(moved, images - radius)


def test_squares_need_no_gradient_and_do_not_depend_on_batches() -> None:
    _, images, labels = trained()
    ball, model = Ball("linf", 64 / 255, torch.ones(1, 1, 1), True), Stepped()
    settings: dict[str, Any] = {"queries": 100, "share": 0.8}
    with torch.no_grad():
        whole = squares(settings, 3, Shown(model, images[:40], labels[:40], range(40)), ball)
        part = squares(settings, 3, Shown(model, images[30:40], labels[30:40], range(30, 40)), ball)
        clean, left = ((model(x).argmax(1) == labels[:40]).double().mean() for x in (images[:40], whole))
    torch.testing.assert_close(part, whole[30:])
    assert left < clean / 2
