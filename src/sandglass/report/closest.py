"""Nearest training images of a few test images, pretrained beside random: what a network takes for alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sandglass.errors import Problem
from sandglass.report import figures
from sandglass.report.collect import arrays
from sandglass.report.experiments import Experiment, label, telling
from sandglass.report.parts import Gallery, Picture, Section

GALLERIES, NETWORKS = 2, 4  # at most so many data sets, and so many networks in each
LARGEST = 64  # px, to which larger images are made smaller


def neighbours(
    some: list[Experiment], runs: list[dict[str, Any]], results: Path, classes: Callable[[str], list[str]]
) -> Section:
    """From neighbours.npz of the experiments of probes; `classes` gives the names of a data set's classes."""
    section = Section("neighbours", "Nearest neighbours")
    about = {run["name"]: run for run in runs if run["stage"] == "probe"}
    columns = [column for column in telling(some) if column not in ("probe", "data set")]
    for data in list(dict.fromkeys(one.ids["data set"] for one in some))[:GALLERIES]:
        these: dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]] = {}
        for one in [one for one in some if one.ids["data set"] == data]:
            found = arrays(results / "probe" / one.runs[0] / "neighbours.npz")
            if found:
                these.setdefault(label(one, columns) or "the network", (about[one.runs[0]], found))
        gallery = _gallery(dict(list(these.items())[:NETWORKS]), results, classes(data))
        if gallery:
            gallery.caption = f"{data}, {gallery.caption}"
            section.galleries.append(gallery)
    if section.galleries:
        section.text.append(
            "A few test images, evenly spaced over the test split, and the training images whose features are nearest "
            "to theirs, nearest first. A frame marks another class."
        )
    return section


def _gallery(
    these: dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]], results: Path, classes: Sequence[str]
) -> Gallery | None:
    """None where there are no neighbours, or the packed images are not there any more."""
    from sandglass.evaluate.neighbours import pictured  # not at the top: it imports torch

    rows: list[list[list[Picture]]] = []
    head, scores = ["image"], []
    for name, (run, found) in these.items():
        packed = next(key for key in run["needs"] if key.startswith("data/"))
        try:
            images, labels, near, theirs = pictured(results / packed, found, min(run["settings"]["size"], LARGEST))
        except Problem:  # a clone may hold results without the data
            continue
        rows = rows or [[[_picture(image, k, classes)]] for image, k in zip(images, labels)]
        for row, k, pictures, others in zip(rows, labels, near, theirs):
            row.append([_picture(picture, other, classes, k) for picture, other in zip(pictures, others)])
        same = theirs == labels[:, None]
        head.append(name)
        scores.append(f"{name} {int(same.sum())} of {same.size}")
    caption = f"one seed each; of the same class {', '.join(scores)}"
    return Gallery(caption, head, rows) if rows else None


def _picture(image: np.ndarray, label: int, classes: Sequence[str], right: int | None = None) -> Picture:
    name = classes[label] if 0 <= label < len(classes) else str(label)
    return Picture(name, figures.picture(image), right is not None and label != right)
