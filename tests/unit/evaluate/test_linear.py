"""The linear probe against scikit-learn's logistic regression, at the ends of its penalty, and what it looks at."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sandglass.config import resolve
from sandglass.errors import Problem
from sandglass.evaluate import PROBES, linear
from sandglass.evaluate.features import FeatureSet


def digits() -> FeatureSet:
    """Real pixels as features; three of the 64 never vary in the training part."""
    x, y = load_digits(return_X_y=True)
    features, labels = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    return FeatureSet(
        features[:800], labels[:800], features[800:1100], labels[800:1100], features[1100:], labels[1100:], 10
    )


def probe(features: FeatureSet, **overrides: Any) -> dict[str, float]:
    rows = linear.run(SimpleNamespace(features=features, answers={}), resolve(PROBES, "linear", overrides), seed=0)
    return {("val_" if row["split"] == "val" else "") + row["metric"]: row["value"] for row in rows}


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
def test_equals_scikit_learn(l2: float) -> None:
    """Their C weighs the sum of the losses, our l2 the penalty against their mean: C = 1 / (l2 n)."""
    d = digits()
    scaler = StandardScaler().fit(d.train.numpy())
    x = scaler.transform(d.train.numpy().astype(np.float64))
    theirs = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-10, max_iter=20_000).fit(x, d.train_labels.numpy())
    weights = linear.fit(torch.tensor(x), d.train_labels, l2, torch.zeros(65, 10, dtype=torch.float64), 5000)
    gradient = torch.func.grad(linear.objective)(weights, torch.tensor(x), d.train_labels, l2).norm()
    # the objective is l2-strongly convex in W, so a gradient g leaves an error of about |g| / l2
    np.testing.assert_allclose(weights[:-1].T, theirs.coef_, atol=2 * float(gradient) / l2)
    ours = (torch.tensor(x) @ weights[:-1] + weights[-1]).softmax(dim=1)
    np.testing.assert_allclose(ours, theirs.predict_proba(x), atol=1e-4)
    expected = theirs.score(scaler.transform(d.test.numpy().astype(np.float64)), d.test_labels.numpy())
    assert probe(d, l2=[l2])["top1"] == pytest.approx(expected, abs=1e-12)


def test_under_a_crushing_penalty_only_the_class_frequencies_are_left() -> None:
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 2])
    rows = torch.randn(10, 4, dtype=torch.float64)
    weights = linear.fit(rows, labels, 1e9, torch.zeros(5, 3, dtype=torch.float64), 5000)
    torch.testing.assert_close(weights[-1].softmax(0), torch.tensor([0.6, 0.3, 0.1]).double(), rtol=1e-5, atol=0)


def test_scale_shift_and_constant_dimensions_change_nothing() -> None:
    d = digits()

    def other(rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([rows * 32 + 64, torch.full((len(rows), 1), 7.3)], dim=1)  # exact in float32

    moved = dataclasses.replace(d, train=other(d.train), val=other(d.val), test=other(d.test))
    assert probe(moved, l2=[1e-2])["top1"] == probe(d, l2=[1e-2])["top1"]


def test_the_penalty_is_chosen_on_val_and_test_is_only_told() -> None:
    d = digits()
    found = probe(d)
    tops = {l2: probe(d, l2=[l2])["val_top1"] for l2 in resolve(PROBES, "linear", {})["l2"]}
    assert found["val_top1"] == max(tops.values()) == tops[found["val_l2"]]
    scrambled = probe(dataclasses.replace(d, test_labels=d.test_labels.flip(0)))
    assert (scrambled["val_l2"], scrambled["val_top1"]) == (found["val_l2"], found["val_top1"])
    assert scrambled["top1"] < found["top1"]
    assert found["gradient"] < 1e-6
    assert found["majority"] == float(d.test_labels.bincount().max()) / 697


def test_noise_wants_a_penalty_and_the_order_of_the_grid_is_of_no_account() -> None:
    torch.manual_seed(0)
    rows = torch.randn(4150, 100)
    labels = (rows[:, 0] + torch.randn(4150) > 0).long()  # one dimension of a hundred tells something
    d = FeatureSet(rows[:150], labels[:150], rows[150:2150], labels[150:2150], rows[2150:], labels[2150:], 2)
    assert probe(d)["val_l2"] >= 1e-2
    assert probe(d, l2=[1.0, 1e-6, 1e-3]) == probe(d, l2=[1e-3, 1.0, 1e-6, 1e-6])


def test_a_choice_without_validation_is_refused() -> None:
    d = digits()
    bare = dataclasses.replace(d, val=d.val[:0], val_labels=d.val_labels[:0])
    with pytest.raises(Problem, match="validation split"):
        probe(bare)
    assert "val_top1" not in probe(bare, l2=[1e-2])
