"""What a probe judges: a frozen encoder, what it says of a whole split, and how right that is.

Images are seen once, without augmentation, in evaluation mode, in float32 without autocast or TF32. Accuracies are over
the whole split, never a mean over batches; of equal scores the lowest class is first. This shelf alone opens test data.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sandglass.backbones.grid import Encoder, Features, judging
from sandglass.data.loader import Split, open_split
from sandglass.data.splits import label_fraction
from sandglass.errors import Exit, Problem
from sandglass.runs import write_atomic
from sandglass.study import PROTOCOL
from sandglass.views.recipes import evaluation_view

Row = dict[str, Any]  # metric, value, split, n; of a share also ci_lo and ci_hi
Head = Callable[[Features], Tensor]  # to class scores (B,classes)


@dataclass(frozen=True)
class FeatureSet:
    """Pooled features, float32 (N,D), and labels, int64 (N,), of the three splits; val may be empty.

    Of train, only the images whose labels may be used.
    """

    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int


@dataclass(frozen=True)
class Subject:
    """What a probe is given."""

    encoder: Encoder
    packed: Path  # folder of the packed data set
    size: int  # px
    device: torch.device
    labels: float  # share of the training labels that may be used
    seed: int  # which they are
    pretrained: Path | None  # folder of the pretraining's results; None: random weights
    kept: Path | None = None  # folder where features of whole splits wait for the next probe; one for each architecture
    answers: dict[str, Tensor] = field(default_factory=dict)  # a probe leaves `predicted` here: a class per test image

    @cached_property
    def labelled(self) -> np.ndarray:
        """The rows of train whose labels may be used, ascending int64: nested and stratified."""
        return label_fraction(open_split(self.packed, "train").labels, self.labels, seed=self.seed)

    @cached_property
    def features(self) -> FeatureSet:
        return feature_set(self.encoder, self.packed, self.size, self.device, self.labelled, self.kept)


def feature_set(
    encoder: Encoder,
    packed: Path,
    size: int,
    device: torch.device,
    labelled: np.ndarray | None = None,
    kept: Path | None = None,
) -> FeatureSet:
    """Features of a packed data set, on `device`; `size` in px; `labelled`: rows of train, None for all.

    What is `kept` of a whole split is taken from there; a part is always computed, so that no bit depends on the past.
    """
    train = open_split(packed, "train")
    splits = {"train": train, "test": open_split(packed, "test", evaluating=True)}
    if train.info["counts"].get("val"):
        splits["val"] = open_split(packed, "val")
    rows = {name: np.arange(len(split)) for name, split in splits.items()}
    if labelled is not None:
        rows["train"] = labelled
    found: dict[str, Tensor] = {}
    for name, split in splits.items():
        if kept is None or len(rows[name]) < len(split):
            found[name] = extract(encoder, split, size, device, rows=rows[name])
        else:
            found[name] = _once(kept, name, encoder, split, size, device)
    found |= {
        f"{name}_labels": torch.as_tensor(split.labels[rows[name]], device=device) for name, split in splits.items()
    }
    nothing = {"val": found["train"][:0], "val_labels": found["train_labels"][:0]}
    return FeatureSet(**nothing | found, classes=len(train.info["classes"]))


def _once(kept: Path, name: str, encoder: Encoder, split: Split, size: int, device: torch.device) -> Tensor:
    """Features of a whole split; the file's name says of which weights and images, and how and where they were seen."""
    facts = hashlib.sha256(f"{split.info['fingerprint']} {name} {size} {device.type} {PROTOCOL['probe']}".encode())
    for key, value in encoder.state_dict().items():
        facts.update(key.encode())
        facts.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    file = kept / f"{facts.hexdigest()}.npy"
    if file.is_file():
        return torch.from_numpy(np.load(file)).to(device)
    features = extract(encoder, split, size, device)
    content = io.BytesIO()
    np.save(content, features.cpu().numpy())
    kept.mkdir(parents=True, exist_ok=True)
    write_atomic(file, content.getvalue())
    return features


def extract(
    encoder: Encoder,
    split: Split,
    size: int,
    device: torch.device,
    batch_size: int = 256,
    rows: np.ndarray | None = None,
) -> Tensor:
    """The pooled feature of every image of a split, or of those in `rows`: float32 (N,D) on `device`."""
    return _answers(encoder, lambda images: encoder(images).pooled, split, size, device, batch_size, rows)


def predict_logits(
    encoder: Encoder, split: Split, size: int, device: torch.device, head: Head | None = None, batch_size: int = 256
) -> Tensor:
    """The class scores of every image of a split: float32 (N,classes) on `device`."""
    head = head or encoder.logits
    return _answers(encoder, lambda images: head(encoder(images)), split, size, device, batch_size)


def classify(
    encoder: Encoder, packed: Path, split: str, size: int, device: torch.device, head: Head | None = None
) -> list[Row]:
    """Judge a classifier, by default the encoder's own, on one split."""
    return accuracy_rows(*scored(encoder, packed, split, size, device, head), split)


def scored(
    encoder: Encoder, packed: Path, split: str, size: int, device: torch.device, head: Head | None = None
) -> tuple[Tensor, Tensor]:
    """The class scores of every image of a split, float32 (N,classes), and the labels (N,)."""
    images = open_split(packed, split, evaluating=split == "test")
    return predict_logits(encoder, images, size, device, head), torch.as_tensor(images.labels, device=device)


def said(labels: Tensor, predicted: Tensor) -> dict[str, np.ndarray]:
    """What predictions.npz holds, for the report: of each image its class and the one it was taken for, int16 (N,)."""
    return {"labels": labels.short().cpu().numpy(), "predicted": predicted.short().cpu().numpy()}


def accuracy_rows(scores: Tensor, labels: Tensor, split: str) -> list[Row]:
    """scores (N,classes), logits; labels (N,) -> the rows of `hit_rows`, and cross_entropy in nats."""
    loss = float(F.cross_entropy(scores.double(), labels))
    rows = hit_rows(places(scores, labels), labels, split)
    return [*rows, {"metric": "cross_entropy", "value": loss, "split": split, "n": len(labels)}]


def hit_rows(place: Tensor, labels: Tensor, split: str) -> list[Row]:
    """place (N,) as `places` gives it, labels (N,) -> top1 and top5, and macro_top1: the mean over classes of top1."""
    rows = [share_row(f"top{k}", place < k, split) for k in (1, 5)]
    recalls = [share(place[labels == label] < 1) for label in labels.unique()]  # of the classes that occur
    return [*rows, {"metric": "macro_top1", "value": float(np.mean(recalls)), "split": split, "n": len(labels)}]


def share_row(metric: str, right: Tensor, split: str) -> Row:
    """The share of True in `right` (N,) with Wilson's 95 % interval."""
    from scipy import stats  # not at the top: it adds a tenth to the start of every job

    interval = stats.binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    ends = {"ci_lo": float(interval.low), "ci_hi": float(interval.high)}
    return {"metric": metric, "value": share(right), "split": split, "n": len(right)} | ends


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
    encoder: Encoder,
    ask: Callable[[Tensor], Tensor],
    split: Split,
    size: int,
    device: torch.device,
    batch_size: int,
    rows: np.ndarray | None = None,
) -> Tensor:
    """ask(views) for the whole split, with every module of the encoder in evaluation mode, and then as it was."""
    rows = np.arange(len(split)) if rows is None else rows
    found = []
    with judging(encoder), plain_float32(device):
        for start in range(0, len(rows), batch_size):
            images, sizes = split.take(rows[start : start + batch_size])
            found.append(ask(evaluation_view(images.to(device), sizes, size)).float())
    answers = torch.cat(found)
    if not answers.isfinite().all():
        bad = int((~answers.isfinite().all(dim=1)).sum())
        raise Problem(
            "E-101",
            Exit.DIVERGED,
            f"the encoder's answers are not finite for {bad:,} of {len(rows):,} images",
            why="its weights are not finite, or its activations overflow float32",
            fix="train again with a lower learning rate or with clip_norm",
        )
    return answers


def refuse_blind_choice(probe: str, setting: str, values: Sequence[float]) -> None:
    """Raises Problem E-120 (78) if a probe would have to choose among `values` with no validation split to do it on."""
    if len(set(values)) > 1:
        what = f"the probe {probe} chooses {setting} on a validation split, and there is none"
        fix = f"data.val_fraction above 0, or one value in probes.{probe}.{setting}"
        raise Problem("E-120", Exit.CONFIG, what, fix=fix)
