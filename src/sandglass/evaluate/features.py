"""What a frozen encoder says of a whole split, and how right it is.

Images are seen once, without augmentation, in evaluation mode, in float32 without autocast or TF32. Accuracies are over
the whole split, never a mean over batches; of equal scores the lowest class is first. This shelf alone opens test data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sandglass.backbones.grid import Encoder
from sandglass.data.loader import Split, open_split
from sandglass.errors import Exit, Problem
from sandglass.views.recipes import evaluation_view


@dataclass(frozen=True)
class FeatureSet:
    """Pooled features, float32 (N,D), and labels, int64 (N,), of the three splits; val may be empty."""

    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int


def feature_set(encoder: Encoder, data_folder: Path, size: int, device: torch.device) -> FeatureSet:
    """Features of a packed data set, on `device`; `size` in px."""
    train = open_split(data_folder, "train")
    splits = {"train": train, "test": open_split(data_folder, "test", evaluating=True)}
    if train.info["counts"].get("val"):
        splits["val"] = open_split(data_folder, "val")
    found = {name: extract(encoder, split, size, device) for name, split in splits.items()}
    found |= {f"{name}_labels": torch.as_tensor(split.labels, device=device) for name, split in splits.items()}
    nothing = {"val": found["train"][:0], "val_labels": found["train_labels"][:0]}
    return FeatureSet(**nothing | found, classes=len(train.info["classes"]))


def extract(encoder: Encoder, split: Split, size: int, device: torch.device, batch_size: int = 256) -> Tensor:
    """The pooled feature of every image of a split: float32 (N,D) on `device`."""
    return _answers(encoder, lambda images: encoder(images).pooled, split, size, device, batch_size)


def predict_logits(encoder: Encoder, split: Split, size: int, device: torch.device, batch_size: int = 256) -> Tensor:
    """The class scores of every image of a split: float32 (N,classes) on `device`."""
    return _answers(encoder, lambda images: encoder.logits(encoder(images)), split, size, device, batch_size)


def classify(encoder: Encoder, data_folder: Path, split: str, size: int, device: torch.device) -> list[dict[str, Any]]:
    """Judge the encoder's own classifier on one split: rows of metric, value, split, n, and the interval of a share."""
    images = open_split(data_folder, split, evaluating=split == "test")
    logits = predict_logits(encoder, images, size, device)
    return [row | {"split": split} for row in accuracy_rows(logits, torch.as_tensor(images.labels, device=device))]


def accuracy_rows(scores: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """scores (N,classes), labels (N,) -> rows: top1 and top5 with Wilson's 95 % interval, macro_top1, cross_entropy."""
    from scipy import stats  # not at the top: it adds a tenth to the start of every job

    place, n = places(scores, labels), len(labels)
    rows: list[dict[str, Any]] = []
    for k in (1, 5):
        right = int((place < k).sum())
        interval = stats.binomtest(right, n).proportion_ci(method="wilson")
        rows.append(
            {
                "metric": f"top{k}",
                "value": right / n,
                "n": n,
                "ci_lo": float(interval.low),
                "ci_hi": float(interval.high),
            }
        )
    hits = (place == 0).double()
    recalls = [float(hits[labels == label].mean()) for label in labels.unique()]
    rows.append({"metric": "macro_top1", "value": float(np.mean(recalls)), "n": n})  # over the classes that occur
    rows.append({"metric": "cross_entropy", "value": float(F.cross_entropy(scores.double(), labels)), "n": n})
    return rows


def places(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the right one: scores (N,classes), labels (N,) -> int64 (N,); 0 is a hit.

    Of equal scores the lowest index comes first.
    """
    own = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(dim=1)


def share(right: Tensor) -> float:
    """The share of True, from whole numbers."""
    return int(right.sum()) / len(right)


def embed(features: Tensor, labels: Tensor, limit: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """The first two principal components of at most `limit` rows, evenly spaced: float32 (n,2), and their labels (n,).

    The same features give the same picture: each axis is turned so that its largest loading is positive.
    """
    count = min(limit, len(features))
    rows = torch.arange(count) * len(features) // count
    chosen = features.detach().cpu().double()[rows]
    centred = chosen - chosen.mean(dim=0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]  # (2,D), or fewer rows if there are fewer dimensions
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    xy = torch.zeros(len(rows), 2)
    xy[:, : len(axes)] = (centred @ (axes * largest.sign()).T).float()
    return xy.numpy(), labels.cpu()[rows].numpy()


@contextmanager
def plain_float32(device: torch.device) -> Iterator[None]:
    """float32 as written: neither autocast nor TF32, whatever training chose."""
    cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    kept = {"enabled": cudnn.enabled, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    try:
        with torch.autocast(device.type, enabled=False), cudnn.flags(**kept, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _answers(
    encoder: Encoder, ask: Callable[[Tensor], Tensor], split: Split, size: int, device: torch.device, batch_size: int
) -> Tensor:
    """ask(views) for the whole split, with every module of the encoder in evaluation mode, and then as it was."""
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    found = []
    try:
        with torch.no_grad(), plain_float32(device):
            for start in range(0, len(split), batch_size):
                images, sizes = split.take(np.arange(start, min(start + batch_size, len(split))))
                found.append(ask(evaluation_view(images.to(device), sizes, size)).float())
    finally:
        for module, training in modes.items():
            module.training = training
    answers = torch.cat(found)
    if not answers.isfinite().all():
        bad = int((~answers.isfinite().all(dim=1)).sum())
        raise Problem(
            "E-101",
            Exit.DIVERGED,
            f"the encoder's answers are not finite for {bad:,} of {len(split):,} images",
            why="its weights are not finite, or its activations overflow float32",
            fix="train again with a lower learning rate or with clip_norm",
        )
    return answers
