"""Nearest training images of a few test images in feature space, by the cosine of the angle between pooled features.

A probe leaves which they are; the report fetches the pictures from the packed data, so that a run's folder stays small.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from sandglass.data.loader import open_split
from sandglass.evaluate.features import Subject
from sandglass.views.recipes import evaluation_view

QUERIES, NEAREST = 8, 5


def nearest(subject: Subject) -> dict[str, np.ndarray]:
    """test (Q,), the rows of evenly spaced test images (many test sets are sorted by class); train (Q,K), the rows of
    their nearest images among those of train whose labels may be used, nearest first; cosine (Q,K)."""
    features = subject.features
    count = min(QUERIES, len(features.test))
    rows = torch.arange(count) * len(features.test) // count
    queries, bank = (F.normalize(some.float(), dim=1) for some in (features.test[rows], features.train))
    cosine, which = (queries @ bank.T).topk(min(NEAREST, len(bank)), dim=1)
    return {"test": rows.numpy(), "train": subject.labelled[which.cpu().numpy()], "cosine": cosine.cpu().numpy()}


def pictured(
    packed: Path, found: dict[str, np.ndarray], size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What `nearest` found, from the packed data: the test images (Q,3,size,size) uint8 and their labels (Q,), the
    training images (Q,K,3,size,size) and theirs (Q,K). Raises Problem D-115 or D-116 where the data is not whole."""
    pixels, labels = [], []
    for split, rows in (("test", found["test"]), ("train", found["train"])):
        images = open_split(packed, split, evaluating=split == "test")
        seen = evaluation_view(*images.take(rows.ravel()), size)
        pixels.append((seen * 255).round().byte().numpy().reshape(*rows.shape, 3, size, size))
        labels.append(images.labels[rows])
    return pixels[0], labels[0], pixels[1], labels[1]
