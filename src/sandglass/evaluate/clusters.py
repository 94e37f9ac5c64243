"""Cluster probe: how well the clusters that an objective made by itself are the classes, without training anything.

A test image is in the cluster of its largest score, `assign` of the objective with the weights it was left with. Counts
of (cluster, class) give: `hungarian_top1`, the one-to-one assignment of clusters to classes that gets most images right
(clusters without a class are wrong); `majority_top1`, each cluster named after its commonest class; both are fitted on
the images that they count, as is usual, and so optimistic. `transferred_` ones name clusters by the training images.
nmi, ami and ari are scikit-learn's. Amrani et al. 2022 (arXiv 2103.10994) judge Self-Classifier so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from sandglass import weights
from sandglass.errors import Exit, Problem
from sandglass.evaluate.features import Row, Subject, plain_float32, share_row
from sandglass.objectives import OBJECTIVES
from sandglass.objectives._base import Objective
from sandglass.runs import read_json

PAPER = "arXiv 2103.10994"

SETTINGS: dict[str, Any] = {}


def run(subject: Subject, settings: dict[str, Any], seed: int) -> list[Row]:
    """Shares right and agreement on test. Draws nothing: `seed` changes nothing.

    Raises Problem E-130 (78) for what was not pretrained by an objective that makes clusters, E-131 (65) for weights
    that are not those of its objective.
    """
    from sklearn import metrics  # not at the top: it adds half a second to the start of every job

    objective, features = left_by(subject), subject.features
    with torch.no_grad(), plain_float32(subject.device):
        scores = [objective.assign(rows) for rows in (features.train, features.test)]
    train, test = (score.argmax(1).cpu().numpy() for score in scores)
    known, labels = features.train_labels.cpu().numpy(), features.test_labels.cpu().numpy()
    shape = scores[0].shape[1], features.classes
    rows = []
    for prefix, counts in (("", count(test, labels, shape)), ("transferred_", count(train, known, shape))):
        for name, names in (("hungarian", one_to_one(counts)), ("majority", commonest(counts))):
            rows.append(share_row(f"{prefix}{name}_top1", torch.from_numpy(names[test] == labels), "test"))
    numbers = {
        "nmi": metrics.normalized_mutual_info_score(labels, test),
        "ami": metrics.adjusted_mutual_info_score(labels, test),
        "ari": metrics.adjusted_rand_score(labels, test),
        "clusters": shape[0],
        "clusters_used": len(np.unique(test)),
    }
    return rows + [{"metric": k, "value": float(v), "split": "test", "n": len(test)} for k, v in numbers.items()]


def left_by(subject: Subject) -> Objective:
    """The objective of a finished pretraining, with the weights that `assign` needs, for evaluation."""
    file = subject.pretrained / "objective.safetensors" if subject.pretrained else None
    if file is None or not file.is_file():
        able = [name for name in OBJECTIVES if OBJECTIVES.get(name).kept]
        what = "there are no clusters to judge: no objective that makes any left its weights"
        fix = f"probe.init: pretrained, with pretrain.objective: {' or '.join(able)}"
        raise Problem("E-130", Exit.CONFIG, what, where=str(subject.pretrained or "random weights"), fix=fix)
    (name, values), *_ = read_json(file.parent / "run.json")["settings"]["objective"].items()
    objective: Objective = OBJECTIVES.get(name)(subject.encoder, values, subject.features.classes)
    kept, own = weights.read(file), objective.state_dict()
    wanted = {key: own[key].shape for key in own if key.startswith(objective.kept)}
    if wanted != {key: value.shape for key, value in kept.items()}:
        what = f"the weights are not those of {name} as it was set"
        raise Problem("E-131", Exit.CONTENT, what, where=str(file), fix=f"remove {file.parent} and run again")
    objective.load_state_dict(kept, strict=False)
    return objective.to(subject.device).eval()


def count(clusters: np.ndarray, labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(N,) and (N,) -> how many images of each class are in each cluster, int64 (clusters, classes)."""
    found = np.zeros(shape, dtype=np.int64)
    np.add.at(found, (clusters, labels), 1)
    return found


def one_to_one(counts: np.ndarray) -> np.ndarray:
    """Counts (K, C) -> the class of each cluster (K,), no class twice, -1 for clusters left over; most are right."""
    names = np.full(len(counts), -1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    names[rows] = columns
    return names


def commonest(counts: np.ndarray) -> np.ndarray:
    """Counts (K, C) -> the commonest class of each cluster (K,), -1 for empty ones."""
    return np.where(counts.any(1), counts.argmax(1), -1)
