"""Our attacks against those of the Adversarial Robustness Toolbox on the same tensors, and AutoAttack by pyautoattack.

Runs where the extra `robust` is installed, as the lock has it.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sandglass.config import resolve
from sandglass.errors import Problem
from sandglass.evaluate import ATTACKS
from sandglass.evaluate.attacks._ball import Ball
from sandglass.evaluate.attacks._base import Outcome, Shown, cross_entropy
from sandglass.evaluate.attacks.autoattack import standard
from sandglass.evaluate.attacks.fgsm import step
from sandglass.evaluate.attacks.pgd import search

pytest.importorskip("art")
pytest.importorskip("pyautoattack")

from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier

NORMS = {"linf": np.inf, "l2": 2}
RADII = [("linf", 1 / 255), ("linf", 8 / 255), ("l2", 0.25), ("l2", 1.0)]


def victim(classes: int = 10) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, classes)).eval()
    images = torch.rand(16, 3, 8, 8)
    return model, images, model(images).argmax(1)


def theirs(model: nn.Module) -> PyTorchClassifier:
    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(reduction="sum"), (3, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )


def ball(norm: str, radius: float) -> Ball:
    return Ball(norm, radius, torch.ones(1, 1, 1), True)


@pytest.mark.parametrize("norm, radius", RADII)
def test_fgsm_is_arts(norm: str, radius: float) -> None:
    model, images, labels = victim()
    attack = FastGradientMethod(theirs(model), norm=NORMS[norm], eps=radius)
    expected = attack.generate(images.numpy(), labels.numpy())
    ours = step(Shown(model, images, labels, range(16)), ball(norm, radius))
    np.testing.assert_allclose(ours, expected, atol=1e-7 if norm == "linf" else 1e-6)


@pytest.mark.parametrize("norm, radius", RADII)
def test_pgd_is_arts(norm: str, radius: float) -> None:
    """Twenty steps of 2.5 epsilon / 20 from the image itself: every step goes into the next."""
    model, images, labels = victim()
    attack = ProjectedGradientDescent(
        theirs(model), norm=NORMS[norm], eps=radius, eps_step=2.5 * radius / 20, max_iter=20, verbose=False
    )
    expected = attack.generate(images.numpy(), labels.numpy())
    ours = search(model, images, labels, ball(norm, radius), images, 20, 2.5, cross_entropy)
    np.testing.assert_allclose(ours, expected, atol=1e-6 if norm == "linf" else 1e-5)


def autoattack(name: str, epsilon: float, classes: int = 10) -> Outcome:
    model, images, labels = victim(classes)
    few = {"epsilons": [0.0, epsilon], "iterations": 10, "queries": 30}
    state = torch.get_rng_state()
    outcome: Outcome = ATTACKS.get(name)(model, images, labels, resolve(ATTACKS, name, few), 3)
    assert torch.equal(torch.get_rng_state(), state)
    return outcome


@pytest.mark.parametrize("name, epsilon", [("autoattack", 8.0), ("autoattack_l2", 127.5)])
def test_autoattack_stays_in_the_ball_and_repeats_itself(name: str, epsilon: float) -> None:
    rows, examples, predictions = autoattack(name, epsilon)
    table = {(row["metric"], row.get("epsilon")): row["value"] for row in rows}
    assert table["robust_top1", 0.0] == table["clean_top1", 0.0] == 1 > table["robust_top1", epsilon]
    assert table["robust_top1", epsilon] == (predictions["attacked"][1] == predictions["labels"]).mean()
    change = (examples["adversarial"] - examples["clean"]).reshape(8, -1)
    reach = np.linalg.norm(change, axis=1) if name.endswith("l2") else np.abs(change).max(axis=1)
    assert reach.max() <= epsilon / 255 + 1e-6 and reach.max() > 0
    assert examples["adversarial"].min() >= 0 and examples["adversarial"].max() <= 1
    assert autoattack(name, epsilon).rows == rows


def test_autoattack_leaves_no_more_than_pgd() -> None:
    """The published version, with all its iterations and queries, where PGD leaves some images right and not all."""
    model, images, labels = victim()
    radius = 2.5 / 255
    shown = Shown(model, images, labels, range(16))
    moved = search(model, images, labels, ball("linf", radius), images, 20, 2.5, cross_entropy)
    found = standard({"iterations": 100, "queries": 200}, 0, shown, ball("linf", radius))
    left = [int((model(x).argmax(1) == labels).sum()) for x in (moved, found)]
    assert 0 < left[0] < 16 and left[1] <= left[0]


def test_fewer_classes_have_fewer_targets_and_three_are_too_few() -> None:
    assert autoattack("autoattack", 8.0, classes=4).rows
    with pytest.raises(Problem) as caught:
        autoattack("autoattack", 8.0, classes=3)
    assert caught.value.id == "E-116"
