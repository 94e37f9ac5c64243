"""Weighted k-nearest-neighbour probe: neighbours among the training images vote, each with exp(cosine / temperature).

score_c = sum over the k nearest j of exp(s_j / T) [y_j = c].
Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, arXiv 1805.01978.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sandglass.evaluate.features import Row, Subject, hit_rows, places

PAPER = "arXiv 1805.01978"

SETTINGS = {
    "k": (200, 1, 100000),  # neighbours; see `neighbours`
    "temperature": (0.1, 0.001, 100.0),
}

PRESETS = {
    "lightly": {"k": 200, "temperature": 0.1},
    "dino": {"k": 20, "temperature": 0.07},
}

CHUNK = 2**24  # similarities held at once


def run(subject: Subject, settings: dict[str, Any], seed: int) -> list[Row]:
    """Accuracies on test and, if there is one, val; the k that was used. Draws nothing: `seed` changes nothing."""
    features = subject.features
    k = neighbours(settings["k"], len(features.train), features.classes, subject.labels)

    def scores(queries: Tensor) -> Tensor:
        return vote(queries, features.train, features.train_labels, features.classes, k, settings["temperature"])

    rows, test = [], scores(features.test)
    if len(features.val):
        rows = hit_rows(places(scores(features.val), features.val_labels), features.val_labels, "val")
    rows += hit_rows(places(test, features.test_labels), features.test_labels, "test")
    subject.answers["predicted"] = test.argmax(dim=1)
    return [*rows, {"metric": "k", "value": k, "split": "test"}]


def neighbours(k: int, images: int, classes: int, labels: float) -> int:
    """Of the k asked for, as many as there are `images` with labels.

    Where only a share of the labels may be used, at most 20 and at most an average class: with 97 images of ten classes
    the 200 nearest would be all of them, and most of another class.
    """
    return min(k, images) if labels == 1 else min(k, 20, max(1, images // classes))


def vote(queries: Tensor, bank: Tensor, bank_labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """queries (Q,D), bank (N,D), bank_labels (N,) -> scores (Q,classes), up to a factor of each row's own."""
    queries, bank = F.normalize(queries.float(), dim=1), F.normalize(bank.float(), dim=1)
    scores = []
    for some in queries.split(max(1, CHUNK // len(bank))):
        nearest, which = (some @ bank.T).topk(k, dim=1)
        weight = ((nearest - nearest[:, :1]) / temperature).exp()  # from the nearest, so that none overflows
        scores.append(weight.new_zeros(len(some), classes).scatter_add_(1, bank_labels[which], weight))
    return torch.cat(scores)
