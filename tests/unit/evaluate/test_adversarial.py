"""Attacks by hand on a linear model, in their limits, and against a network that was trained on real digits."""

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sandglass.config import resolve
from sandglass.errors import Problem
from sandglass.evaluate import ATTACKS
from sandglass.evaluate.attacks import _base
from sandglass.evaluate.attacks._ball import Ball

Rows = dict[tuple[str, float | None], float]


def attack(
    name: str, model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, seed: int = 0, **overrides: Any
) -> tuple[Rows, dict[str, np.ndarray]]:
    rows, examples, _ = ATTACKS.get(name)(model, images, labels, resolve(ATTACKS, name, overrides), seed)
    return {(row["metric"], row.get("epsilon")): row["value"] for row in rows}, examples


class Linear(nn.Module):
    """Two classes; the score of the second is w.x, that of the first 0."""

    def __init__(self, weight: Tensor, std: Tensor | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.std = std

    def forward(self, images: Tensor) -> Tensor:
        score = (images * self.weight).sum(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], dim=1)


@cache
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small convolutional network on 8x8 digits, and 300 images it has not seen."""
    x, y = load_digits(return_X_y=True)
    images = torch.tensor(x / 16, dtype=torch.float32).mul(255).round().div(255).view(-1, 1, 8, 8).repeat(1, 3, 1, 1)
    labels = torch.tensor(y)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(1024, 10),
    )
    search = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(150):
        rows = torch.randint(1497, (128,), generator=torch.Generator().manual_seed(step))
        search.zero_grad()
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        search.step()
    return model.eval(), images[1497:], labels[1497:]


def test_fgsm_on_a_linear_model_by_hand() -> None:
    """d/dw of the loss of class 1 is -p0 w: each pixel goes by epsilon against the sign of its weight."""
    weight = torch.tensor([1.0, -2.0, 0.0]).view(3, 1, 1)
    images, labels = torch.full((1, 3, 1, 1), 0.5), torch.tensor([1])
    _, seen = attack("fgsm", Linear(weight), images, labels, epsilons=[51.0])  # 0.2
    np.testing.assert_allclose(seen["adversarial"].ravel(), [0.3, 0.7, 0.5], atol=1e-6)
    _, seen = attack("fgsm", Linear(weight), images, 1 - labels, epsilons=[51.0])
    np.testing.assert_allclose(seen["adversarial"].ravel(), [0.7, 0.3, 0.5], atol=1e-6)


def test_a_linear_model_falls_exactly_at_its_margin() -> None:
    """score = 3 * 0.1 * (x - 0.5) summed is 0.03; epsilon moves it by 0.3 epsilon: the margin is 0.1 = 25.5 / 255."""
    images, labels = torch.full((1, 3, 1, 1), 0.6), torch.tensor([1])
    weight = torch.full((3, 1, 1), 0.1)

    def model(x: Tensor) -> Tensor:
        return Linear(weight)(x - 0.5)

    for name in ("fgsm", "pgd"):
        rows, _ = attack(name, model, images, labels, epsilons=[0.0, 25.0, 26.0])
        assert [rows["robust_top1", e] for e in (0.0, 25.0, 26.0)] == [1, 1, 0]
        assert [rows["drop", e] for e in (0.0, 25.0, 26.0)] == [0, 0, -1]


def test_one_step_of_pgd_without_a_random_start_is_fgsm() -> None:
    model, images, labels = trained()
    single = {"steps": 1, "step_scale": 1.0, "random_start": False}
    for epsilon in (1.0, 8.0):
        fgsm_rows, fgsm_seen = attack("fgsm", model, images, labels, epsilons=[epsilon])
        pgd_rows, pgd_seen = attack("pgd", model, images, labels, epsilons=[epsilon], **single)
        np.testing.assert_allclose(pgd_seen["adversarial"], fgsm_seen["adversarial"], atol=1e-7)
        assert pgd_rows == fgsm_rows


def test_a_trained_model_breaks_and_stronger_is_worse() -> None:
    """Robust accuracy falls with epsilon, PGD is no weaker than FGSM, and 64/255 leaves nothing."""
    model, images, labels = trained()
    epsilons = [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    fgsm, _ = attack("fgsm", model, images, labels, epsilons=epsilons)
    pgd, seen = attack("pgd", model, images, labels, epsilons=epsilons, restarts=2)
    steps = [pgd["robust_top1", e] for e in epsilons]
    assert steps == sorted(steps, reverse=True)
    assert all(pgd["robust_top1", e] <= fgsm["robust_top1", e] for e in epsilons)
    assert pgd["robust_top1", 64.0] == 0
    assert np.abs(seen["adversarial"] - seen["clean"]).max() <= 64 / 255 + 1e-6
    right = float((model(images).argmax(1) == labels).double().mean())
    assert right > 0.8  # else there was nothing to break
    for e in epsilons:
        assert fgsm["clean_top1", e] == pytest.approx(right)
        assert fgsm["drop", e] == pytest.approx(fgsm["robust_top1", e] - right)
        assert fgsm["retention", e] == pytest.approx(fgsm["robust_top1", e] / right)


def test_noise_of_the_same_size_is_harmless() -> None:
    """What breaks the model is the direction, not the distance."""
    model, images, labels = trained()
    signs = torch.randint(2, images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noisy = model((images + 8 / 255 * signs).clamp(0, 1)).argmax(1)
    fgsm, _ = attack("fgsm", model, images, labels, epsilons=[8.0])
    lost = fgsm["clean_top1", 8.0] - float((noisy == labels).double().mean())
    assert lost < -fgsm["drop", 8.0] / 2


def test_an_image_survives_only_if_it_survives_every_restart() -> None:
    """Starts decide, steps hardly count: each fools with (1 - 0.5 + 0.01) / 2, and n leave (1 - 0.255)^n images."""
    radius = 25.5 / 255
    images, labels = torch.full((400, 3, 1, 1), 0.5), torch.ones(400, dtype=torch.int64)
    weight = torch.tensor([1.0, 0, 0]).view(3, 1, 1)

    def model(x: Tensor) -> Tensor:
        return Linear(weight)(x - 0.5 + radius / 2)

    for restarts in (1, 4, 8):
        found, _ = attack("pgd", model, images, labels, epsilons=[25.5], steps=1, step_scale=0.01, restarts=restarts)
        expected = 0.745**restarts
        assert abs(found["robust_top1", 25.5] - expected) < 4 * (expected * (1 - expected) / 400) ** 0.5


def test_whole_levels_stay_on_the_8_bit_grid_when_clipped() -> None:
    model, images, labels = trained()
    _, seen = attack("fgsm", model, images, labels, epsilons=[3.0])
    levels = seen["adversarial"] * 255
    np.testing.assert_allclose(levels, levels.round(), atol=1e-3)
    assert seen["adversarial"].min() >= 0 and seen["adversarial"].max() <= 1


def test_unclipped_is_the_literal_formula() -> None:
    """Black pixels go below black: every pixel with a gradient has moved by epsilon."""
    model, images, labels = trained()
    _, seen = attack("fgsm", model, images, labels, preset="thesis")
    moved = (seen["adversarial"] - seen["clean"]) * 255
    np.testing.assert_allclose(np.abs(moved), 1, atol=1e-3)
    assert seen["adversarial"].min() < 0


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_results_do_not_depend_on_batches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, labels = trained()
    settings = {"epsilons": [4.0]} | ({"steps": 3, "restarts": 2} if name == "pgd" else {})
    whole_rows, whole = attack(name, model, images[:40], labels[:40], **settings)
    monkeypatch.setattr(_base, "BATCH", 7)
    rows, seen = attack(name, model, images[:40], labels[:40], **settings)
    assert rows == pytest.approx(whole_rows)
    for key in whole:
        np.testing.assert_allclose(seen[key], whole[key], atol=1e-6)


def test_random_starts_follow_the_seed() -> None:
    model, images, labels = trained()
    once = {"epsilons": [4.0], "steps": 1, "restarts": 1}
    seen = [attack("pgd", model, images[:8], labels[:8], seed=seed, **once)[1]["adversarial"] for seed in (0, 0, 1)]
    assert np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], seen[2])


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_normalised_epsilon_is_epsilon_times_std(name: str) -> None:
    """With std 0.25 for all channels, 4 of what the network sees is 1 of 255 pixel levels; channels may differ."""
    weight, images, labels = torch.randn(3, 4, 4), torch.rand(6, 3, 4, 4) * 0.5 + 0.25, torch.tensor([0, 1] * 3)
    model = Linear(weight, std=torch.full((1, 3, 1, 1), 0.25))
    _, seen = attack(name, model, images, labels, epsilons=[4.0], space="normalised")
    _, expected = attack(name, model, images, labels, epsilons=[1.0])
    np.testing.assert_allclose(seen["adversarial"], expected["adversarial"], atol=1e-6)
    model = Linear(weight, std=torch.tensor([0.25, 0.5, 1.0]).view(1, 3, 1, 1))
    _, seen = attack(name, model, images, labels, epsilons=[4.0], space="normalised")
    reach = np.abs(seen["adversarial"] - seen["clean"]).max(axis=(0, 2, 3)) * 255
    np.testing.assert_allclose(reach, [1, 2, 4], atol=1e-3)


def test_dead_gradients_are_told() -> None:
    """A saturated model looks robust because its gradient is exactly zero: the share says so."""
    images, labels = torch.full((4, 3, 2, 2), 0.9), torch.ones(4, dtype=torch.int64)
    weight = torch.ones(3, 2, 2)
    rows, _ = attack("fgsm", Linear(1e4 * weight), images, labels, epsilons=[255.0])
    assert rows["robust_top1", 255.0] == 1 and rows["zero_gradient_share", None] == 1
    half = torch.cat([weight[:, :1], 0 * weight[:, 1:]], dim=1)
    assert attack("fgsm", Linear(half), images, labels)[0]["zero_gradient_share", None] == 0.5


def test_examples_are_spread_over_the_set() -> None:
    model, images, labels = trained()
    _, seen = attack("fgsm", model, images, labels, epsilons=[1.0, 8.0])
    chosen = np.arange(8) * 300 // 8
    assert np.array_equal(seen["clean"], images[chosen].numpy())
    assert np.array_equal(seen["labels"], labels[chosen].numpy())
    with torch.no_grad():
        shown = model(torch.tensor(seen["adversarial"])).argmax(1).numpy()
        before = model(images[chosen]).argmax(1).numpy()
    assert np.array_equal(seen["adversarial_prediction"], shown)
    assert np.array_equal(seen["clean_prediction"], before)
    assert set(seen["epsilon"]) == {8.0}


def test_what_would_make_the_number_meaningless_is_refused() -> None:
    model, images, labels = trained()
    noisy = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 10))
    company = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 10))  # batch statistics
    broken = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    nn.init.constant_(broken[1].weight, torch.nan)
    refused: list[tuple[str, Any, Tensor, dict[str, Any]]] = [
        ("C-111", model, images, {"epsilons": [-1.0]}),
        ("C-111", model, images, {"epsilons": []}),
        ("E-111", model, images * 255, {}),
        ("E-111", model, images - 0.5, {}),
        ("E-111", model, images[:0], {}),
        ("E-111", model, images * torch.nan, {}),
        ("E-112", model, images, {"space": "normalised"}),
        ("E-113", broken, images, {}),
        ("E-114", noisy, images, {}),
        ("E-114", company, images, {}),
        ("E-115", nn.Sequential(model, nn.Softmax(dim=1)), images, {}),
    ]
    for id, wrong, shown, overrides in refused:
        with pytest.raises(Problem) as caught:
            attack("fgsm", wrong, shown, labels[: len(shown)], **overrides)
        assert caught.value.id == id


def test_autoattack_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    model, images, labels = trained()
    with pytest.raises(Problem) as caught:
        attack("autoattack", model, images, labels)
    assert caught.value.id == "E-117" and "robust" in caught.value.fix


@pytest.mark.parametrize("name", ["fgsm_l2", "pgd_l2"])
def test_l2_goes_along_the_gradient_by_hand(name: str) -> None:
    """The gradient of the loss of class 1 is along -w: by a length of 0.3 of w = (2, -1, 2) / 3, and no further."""
    weight = torch.tensor([2.0, -1.0, 2.0]).view(3, 1, 1) / 3
    images, labels = torch.full((1, 3, 1, 1), 0.5), torch.tensor([1])
    still = {"random_start": False} if name == "pgd_l2" else {}
    _, seen = attack(name, Linear(weight), images, labels, epsilons=[76.5], **still)
    np.testing.assert_allclose(seen["adversarial"].ravel(), [0.3, 0.6, 0.3], atol=1e-6)
    std = torch.tensor([0.5, 0.25, 0.5]).view(1, 3, 1, 1)
    _, seen = attack(name, Linear(weight, std), images, labels, epsilons=[76.5], space="normalised", **still)
    change = (seen["adversarial"] - 0.5).ravel() / std.ravel().numpy()
    assert np.linalg.norm(change) == pytest.approx(0.3)  # what the network sees has moved by 0.3 ...
    np.testing.assert_allclose(change / 0.3, -np.array([4, -1, 4]) / 33**0.5, atol=1e-6)  # ... along its own gradient


def test_a_faint_gradient_still_has_a_direction() -> None:
    """Its squares vanish in float32, and its length must not; no gradient gives no step, and not one that is not a
    number."""
    ball = Ball("l2", 1.0, torch.ones(1, 1, 1), True)
    faint = ball.steepest(torch.tensor([3e-30, 4e-30, 0.0]).view(1, 3, 1, 1))
    np.testing.assert_allclose(faint.ravel(), [0.6, 0.8, 0], atol=1e-6)
    assert not ball.steepest(torch.zeros(1, 3, 2, 2)).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_fill_the_ball(norm: str) -> None:
    """Of a ball in 12 dimensions 0.9^12 lies within 0.9 of its radius; to five standard errors of 2000 draws."""
    x, unit = torch.full((2000, 3, 2, 2), 0.5), torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1)
    generators = [torch.Generator().manual_seed(k) for k in range(2000)]
    change = ((Ball(norm, 0.1, unit, True).anywhere(x, generators) - x) / unit).flatten(1)
    reach = change.norm(dim=1) if norm == "l2" else change.abs().amax(dim=1)
    share, expected = float((reach < 0.09).double().mean()), 0.9**12
    assert reach.max() <= 0.1 + 1e-6 and abs(share - expected) < 5 * (expected * (1 - expected) / 2000) ** 0.5
    assert (change.mean(dim=0).abs() < 5 * change.std(dim=0) / 2000**0.5).all()


def test_the_margin_finds_what_saturation_hides_from_the_cross_entropy() -> None:
    """With logits of thousands the softmax is exactly 0 and 1: cross-entropy has no gradient, the margin has."""
    model, images, labels = trained()
    sure = nn.Sequential(model, _Times(1e4))
    left = {}
    for loss in ("cross_entropy", "margin", "both"):
        rows, _ = attack("pgd", sure, images, labels, epsilons=[64.0], restarts=1, loss=loss)
        left[loss] = rows["robust_top1", 64.0]
    assert left["cross_entropy"] > 0.5 and left["margin"] == left["both"] == 0


class _Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return self.factor * logits


def test_an_image_that_was_wrong_already_is_not_made_right() -> None:
    """A search may pass the error and come out on the other side: the score is right only beyond 0.05 of the image."""
    images, labels = torch.full((1, 3, 1, 1), 0.5), torch.tensor([1])

    def model(x: Tensor) -> Tensor:
        score = (x - 0.5).square().sum(dim=(1, 2, 3)) - 0.05**2
        return torch.stack([torch.zeros_like(score), score], dim=1)

    rows, _ = attack("pgd", model, images, labels, epsilons=[51.0], step_scale=100.0, restarts=3)
    assert rows["clean_top1", 51.0] == rows["robust_top1", 51.0] == 0


def test_the_area_is_the_mean_of_the_curve() -> None:
    """Right up to 0.1 = 25.5 / 255: accuracies 1, 1, 0 at 0, 10, 30 have the area 10 + 10 of 30."""
    images, labels = torch.full((1, 3, 1, 1), 0.6), torch.tensor([1])
    weight = torch.full((3, 1, 1), 0.1)
    rows, _ = attack("fgsm", lambda x: Linear(weight)(x - 0.5), images, labels, epsilons=[0.0, 10.0, 30.0])
    assert rows["robust_area", None] == pytest.approx(2 / 3)
