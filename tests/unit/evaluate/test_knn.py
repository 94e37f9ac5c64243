"""kNN against lightly's own and scikit-learn's, and at the ends of its two settings."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightly.utils.benchmarking import knn_predict
from sklearn.datasets import load_digits
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from sandglass.config import resolve
from sandglass.evaluate import PROBES, knn
from sandglass.evaluate.features import FeatureSet


def digits() -> FeatureSet:
    """Real pixels as features, without the origin in the middle: 1,797 images, the last 500 for val and test."""
    x, y = load_digits(return_X_y=True)
    features, labels = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    return FeatureSet(
        features[:1297], labels[:1297], features[1297:1497], labels[1297:1497], features[1497:], labels[1497:], 10
    )


def probe(features: FeatureSet, labels: float = 1.0, **overrides: Any) -> dict[str, float]:
    subject = SimpleNamespace(features=features, labels=labels, answers={})
    rows = knn.run(subject, resolve(PROBES, "knn", overrides), seed=0)
    return {("val_" if row["split"] == "val" else "") + row["metric"]: row["value"] for row in rows}


@pytest.mark.parametrize("k, temperature", [(200, 0.1), (20, 0.07), (1, 1.0)])
def test_equals_lightly(k: int, temperature: float) -> None:
    d = digits()
    bank = F.normalize(d.train, dim=1)
    theirs = knn_predict(F.normalize(d.test, dim=1), bank.T, d.train_labels, 10, k, temperature)
    scores = knn.vote(d.test, d.train, d.train_labels, 10, k, temperature)
    assert torch.equal(scores.argmax(dim=1), theirs[:, 0])
    found = probe(d, k=k, temperature=temperature)
    assert found["top1"] == float((theirs[:, 0] == d.test_labels).double().mean())
    if k > 1:  # with one neighbour nine classes are tied, and theirs come in no order
        assert found["top5"] == float((theirs[:, :5] == d.test_labels[:, None]).any(dim=1).double().mean())


def test_one_neighbour_equals_scikit_learn() -> None:
    d = digits()
    theirs = KNeighborsClassifier(1, metric="cosine").fit(d.train, d.train_labels)
    found = probe(d, k=1)
    assert found["top1"] == pytest.approx(theirs.score(d.test, d.test_labels))
    assert found["val_top1"] == pytest.approx(theirs.score(d.val, d.val_labels))


def test_all_neighbours_with_equal_votes_elect_the_commonest_class() -> None:
    d = digits()
    scores = knn.vote(d.test, d.train, d.train_labels, 10, len(d.train), 1e6)
    torch.testing.assert_close(scores, d.train_labels.bincount(minlength=10).float().expand(300, 10), rtol=1e-4, atol=0)


def test_the_nearest_decides_as_the_temperature_falls_and_nothing_overflows() -> None:
    d = digits()
    scores = knn.vote(d.test, d.train, d.train_labels, 10, 200, 0.001)  # exp(1 / 0.001) is no float32
    assert scores.isfinite().all()
    cold = knn.vote(d.test, d.train, d.train_labels, 10, 200, 1e-6)
    assert torch.equal(cold.argmax(1), knn.vote(d.test, d.train, d.train_labels, 10, 1, 1.0).argmax(1))


def test_k_is_at_most_the_bank_and_is_told() -> None:
    d = digits()
    few = FeatureSet(d.train[:7], d.train_labels[:7], d.val, d.val_labels, d.test, d.test_labels, 10)
    assert probe(few, k=200)["k"] == 7
    assert probe(few, k=200) == probe(few, k=7)


@pytest.mark.parametrize(
    ("k", "images", "labels", "used"),
    [(200, 97, 0.01, 9), (200, 947, 0.1, 20), (5, 947, 0.1, 5), (200, 7, 0.01, 1), (200, 947, 1.0, 200)],
)
def test_with_few_labels_there_are_at_most_twenty_neighbours_and_no_more_than_a_class_has(
    k: int, images: int, labels: float, used: int
) -> None:
    """Counts of ImageNette at 1 % and 10 % of its labels, ten classes."""
    assert knn.neighbours(k, images, 10, labels) == used


def test_few_labels_are_told_from_the_share_that_may_be_used() -> None:
    d = digits()
    assert probe(d, labels=0.1) == probe(d, k=20) != probe(d)


def test_the_mean_over_classes_differs_from_that_over_images() -> None:
    """Scikit-learn's balanced accuracy, where one class has most of the images."""
    d = digits()
    keep = (d.test_labels == 8) | (torch.arange(300) % 3 == 0)
    uneven = FeatureSet(d.train, d.train_labels, d.val, d.val_labels, d.test[keep], d.test_labels[keep], 10)
    theirs = KNeighborsClassifier(1, metric="cosine").fit(d.train, d.train_labels).predict(uneven.test)
    found = probe(uneven, k=1)
    assert found["macro_top1"] == pytest.approx(balanced_accuracy_score(uneven.test_labels, theirs))
    assert found["macro_top1"] != pytest.approx(found["top1"], abs=1e-4)


def test_chunks_and_scale_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    d = digits()
    whole = probe(d)
    monkeypatch.setattr(knn, "CHUNK", 1)
    scaled = FeatureSet(4 * d.train, d.train_labels, d.val, d.val_labels, 8 * d.test, d.test_labels, 10)
    assert probe(scaled) == whole


def test_without_a_validation_split_there_is_no_validation_figure() -> None:
    d = digits()
    found = probe(FeatureSet(d.train, d.train_labels, d.val[:0], d.val_labels[:0], d.test, d.test_labels, 10))
    assert set(found) == {"top1", "top5", "macro_top1", "k"}
