"""The augmented linear probe against its sums written out, and what it chooses from and looks at."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sandglass.backbones.grid import build
from sandglass.config import resolve
from sandglass.data import catalog, pack
from sandglass.data.loader import epoch_order, open_split, step_generator
from sandglass.errors import Exit, Problem
from sandglass.evaluate import PROBES, linear_augmented
from sandglass.evaluate.features import Subject
from sandglass.views.recipes import make_views

CPU = torch.device("cpu")
SIZE = 16  # px


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    pack.pack(catalog.CATALOG["digits"], None, folder, store_size=None, val_fraction=0.1, seed=0, on_bad_image="error")
    return folder


def subject(packed: Path, labels: float = 0.1) -> Subject:
    torch.manual_seed(0)
    net = build("toy", SIZE, 0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return Subject(net, packed, SIZE, CPU, labels, seed=4, pretrained=None)


def settings(**overrides: Any) -> dict[str, Any]:
    return resolve(PROBES, "linear_augmented", {"epochs": 3, "least_steps": 0, "batch_size": 32} | overrides)


def probe(judged: Subject, seed: int = 7, **overrides: Any) -> dict[str, float]:
    rows = linear_augmented.run(judged, settings(**overrides), seed)
    return {f"{row['split']} {row['metric']}": row["value"] for row in rows}


def seen(judged: Subject, batch_size: int, epochs: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Features, with a one for the bias, and one-hot labels of every step, in float64."""
    judged.encoder.eval()
    train, rows, steps = open_split(judged.packed, "train"), torch.tensor(judged.labelled), []
    for epoch in range(epochs):
        order = rows[epoch_order(len(rows), seed, epoch)]
        for step in range(len(rows) // batch_size):
            some = order[step * batch_size : (step + 1) * batch_size]
            generator = step_generator(seed, epoch, 0, "probe views")
            views = make_views("crop_flip", {}, *train.take(some), SIZE, generator, some)
            with torch.no_grad():
                pooled = judged.encoder(views[0]).pooled.double().numpy()
            steps.append((np.hstack([pooled, np.ones((len(pooled), 1))]), np.eye(10)[train.labels[some]]))
    return steps


def test_every_rate_learns_what_it_would_alone_and_by_hand(digits: Path) -> None:
    judged, grid = subject(digits), [0.03, 1.0, 3.0]
    heads = linear_augmented.fit(judged, grid, settings(), 7)
    steps = seen(judged, 32, 3, 7)
    assert len(steps) == 3 * (len(judged.labelled) // 32) == 12
    for lr, head in zip(grid, heads, strict=True):
        weights, velocity = np.zeros((33, 10)), np.zeros((33, 10))
        for t, (rows, wanted) in enumerate(steps):
            odds = np.exp(rows @ weights)
            velocity = 0.9 * velocity + rows.T @ (odds / odds.sum(1, keepdims=True) - wanted) / len(rows)
            weights -= lr * 32 / 256 * 0.5 * (1 + np.cos(np.pi * t / len(steps))) * velocity
        np.testing.assert_allclose(head.weight.T, weights[:-1], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(head.bias, weights[-1], rtol=1e-3, atol=1e-5)


def test_the_rate_is_chosen_on_val_and_test_is_only_told(digits: Path) -> None:
    judged = subject(digits, labels=0.3)
    found = probe(judged, epochs=12)
    tops = {lr: probe(judged, epochs=12, lr_per_256=[lr])["val top1"] for lr in settings()["lr_per_256"]}
    assert found["val top1"] == max(tops.values()) == tops[found["val lr_per_256"]] > min(tops.values())
    scrambled = subject(digits, labels=0.3)
    given = dataclasses.replace(judged.features, test_labels=judged.features.test_labels.flip(0))
    vars(scrambled)["features"] = given
    other = probe(scrambled, epochs=12)
    assert other["val lr_per_256"] == found["val lr_per_256"] and other["test top1"] < found["test top1"]


def test_the_encoder_is_left_as_it_was(digits: Path) -> None:
    judged = subject(digits)
    judged.encoder.train()
    state = {key: value.clone() for key, value in judged.encoder.state_dict().items()}
    probe(judged, epochs=1)
    assert judged.encoder.training and all(p.grad is None for p in judged.encoder.parameters())
    assert all(torch.equal(value, state[key]) for key, value in judged.encoder.state_dict().items())


def test_a_seed_repeats_itself_and_another_does_not(digits: Path) -> None:
    first, again, other = (linear_augmented.fit(subject(digits), [0.3], settings(), seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first.weight, again.weight) and not torch.equal(first.weight, other.weight)


@pytest.mark.parametrize(("given", "steps"), [({"least_steps": 10}, 12), ({"batch_size": 256}, 3), ({"epochs": 5}, 20)])
def test_few_images_make_small_batches_and_many_epochs(
    digits: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], steps: int
) -> None:
    """131 images: four batches of 32 or one of all."""
    taken: list[int] = []

    def counted(*arguments: Any) -> Any:
        taken.append(len(arguments[2]))
        return make_views(*arguments)

    monkeypatch.setattr(linear_augmented, "make_views", counted)
    judged = subject(digits)
    linear_augmented.fit(judged, [0.1], settings(**given), 0)
    assert len(taken) == steps and set(taken) == {min(len(judged.labelled), given.get("batch_size", 32))}


def test_a_choice_without_validation_is_refused(tmp_path: Path) -> None:
    pack.pack(catalog.CATALOG["digits"], None, tmp_path, store_size=None, val_fraction=0, seed=0, on_bad_image="error")
    judged = subject(tmp_path, labels=0.05)
    with pytest.raises(Problem, match="validation split") as caught:
        probe(judged)
    assert caught.value.exit == Exit.CONFIG
    assert "val top1" not in probe(judged, lr_per_256=[0.3])


def test_answers_that_are_not_finite_are_no_classifier(digits: Path) -> None:
    """The features of whole images are finite, those of some crops are not: without a look every image were a hit."""
    judged = subject(digits)
    assert judged.features.train.isfinite().all()
    judged.encoder.register_forward_hook(
        lambda module, given, found: dataclasses.replace(found, pooled=found.pooled / 0)
    )
    with pytest.raises(Problem) as caught:
        probe(judged)
    assert caught.value.exit == Exit.DIVERGED
