"""Real images of any size without a download: windows of the two photographs that scikit-learn carries.

A window has the side that is asked for, so that source and view are of one size, as in CIFAR (32 px) and STL-10
(96 px): how long a crop takes depends on both. Small digits made larger would have neither colour nor detail.
china.jpg and flower.jpg are by danielbuechele and vultilion, CC BY 2.0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sandglass.runs import write_json

CREDIT = "windows of china.jpg (danielbuechele) and flower.jpg (vultilion), CC BY 2.0, from scikit-learn"


def pack_windows(folder: Path, side: int, count: int) -> Path:
    """Write `count` windows of side x side px as the packed split `train` of a data set; returns `folder`."""
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    random = np.random.default_rng(0)
    windows = np.empty((count, 3, side, side), np.uint8)
    labels = np.arange(count) % len(photographs)
    for window, label in zip(windows, labels):
        height, width, _ = photographs[label].shape
        top, left = random.integers(height - side + 1), random.integers(width - side + 1)
        window[:] = photographs[label][top : top + side, left : left + side].transpose(2, 0, 1)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "train.npy", windows)
    np.save(folder / "train_labels.npy", labels.astype(np.int64))
    np.save(folder / "train_sizes.npy", np.full((count, 2), side, np.int64))
    info: dict[str, Any] = {
        "name": "photographs",
        "classes": ["china", "flower"],
        "counts": {"train": count},
        "licence": CREDIT,
    }
    info |= {"mean": [float(windows[:, c].mean() / 255) for c in range(3)]}
    info |= {"std": [float(windows[:, c].std() / 255) for c in range(3)]}
    write_json(folder / "info.json", info)
    return folder
