"""Real images of any size without a download: windows of the two photographs that scikit-learn carries.

A window has the side that is asked for, so that source and view are of one size, as in CIFAR (32 px) and STL-10
(96 px): how long a crop takes depends on both. Small digits made larger would have neither colour nor detail.
china.jpg and flower.jpg are by danielbuechele and vultilion, CC BY 2.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sandglass.runs import write_json

CREDIT = "windows of china.jpg (danielbuechele) and flower.jpg (vultilion), CC BY 2.0, from scikit-learn"


def windows(side: int, count: int) -> Iterator[tuple[np.ndarray, int]]:
    """(window (side, side, 3) uint8, which photograph), the two in turn; no window twice."""
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    random = np.random.default_rng(0)
    places = [random.permutation((p.shape[0] - side + 1) * (p.shape[1] - side + 1)) for p in photographs]
    for number in range(count):
        photograph = photographs[number % 2]
        top, left = divmod(int(places[number % 2][number // 2]), photograph.shape[1] - side + 1)
        yield photograph[top : top + side, left : left + side], number % 2


def pack_windows(folder: Path, side: int, count: int) -> Path:
    """Write `count` windows of side x side px as the packed split `train` of a data set; returns `folder`."""
    pixels, labels = np.empty((count, 3, side, side), np.uint8), np.empty(count, np.int64)
    for row, (window, label) in enumerate(windows(side, count)):
        pixels[row], labels[row] = window.transpose(2, 0, 1), label
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "train.npy", pixels)
    np.save(folder / "train_labels.npy", labels)
    np.save(folder / "train_sizes.npy", np.full((count, 2), side, np.int64))
    info: dict[str, Any] = {
        "name": "photographs",
        "classes": ["china", "flower"],
        "counts": {"train": count},
        "licence": CREDIT,
    }
    info |= {"mean": [float(pixels[:, c].mean() / 255) for c in range(3)]}
    info |= {"std": [float(pixels[:, c].std() / 255) for c in range(3)]}
    write_json(folder / "info.json", info)
    return folder
