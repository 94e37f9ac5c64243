"""Class by class: which are recognised, what is taken for what, and what pretraining changes about it.

From predictions.npz of probes and finetuned models, for one pair of each kind: a pretrained network and the one that
differs from it in nothing else, at the largest share of labels. Nothing here was chosen by its accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from sandglass.errors import Exit, Problem
from sandglass.report import figures, words
from sandglass.report.collect import arrays
from sandglass.report.experiments import Experiment, against, label, telling
from sandglass.report.finding import PROBES
from sandglass.report.parts import Section, Table

PAIRS = 3  # at most so many
DRAWN = 20  # classes that a matrix still shows; beyond it the commonest confusions are told
TOLD = 15  # of them


def by_class(stages: dict[str, list[Experiment]], results: Path, classes: Callable[[str], list[str]]) -> Section:
    """The section; `classes` gives the names of a data set's classes. Raises Problem R-113 or R-115 (65)."""
    section = Section("classes", "Class by class")
    for stage, base in (("finetune", "scratch"), ("probe", "random")):
        some = [one for one in stages.get(stage, []) if len(one.values("top1"))]
        for pair in _pairs(some, base):
            names = classes(pair[0].ids["data set"])
            every = {one: confusions(one, results / stage, len(names)) for one in pair if names}
            if counts := {one: found for one, found in every.items() if len(found)}:
                _told(section, counts, telling(some), names)
    return section


def confusions(one: Experiment, folder: Path, classes: int) -> np.ndarray:
    """int64 (seeds, C, C): how many test images of a class (row) were taken for a class (column); of the seeds that
    kept their predictions. Raises Problem R-113, R-115 (65) for a file that is damaged or not of its run."""
    tables = [np.zeros((0, classes, classes), dtype=np.int64)]
    for name, rows in one.rows.groupby("run", sort=False):
        file = folder / str(name) / "predictions.npz"
        if held := arrays(file):
            labels, predicted = held["labels"].astype(int), held["predicted"].astype(int)
            told = rows[(rows["metric"] == "top1") & (rows["split"] == "test")]["value"]
            agree = abs(float(np.mean(labels == predicted)) - float(told.iloc[0])) < 1e-6
            if not agree or max(labels.max(), predicted.max()) >= classes:
                raise Problem(
                    "R-115",
                    Exit.CONTENT,
                    f"{file} is not what its run predicted",
                    why="its accuracy or its classes are others than those of result.json and of the data",
                    fix=f"remove {file.parent} and run again",
                    kept="no report was written",
                )
            counts = np.bincount(labels * classes + predicted, minlength=classes**2)
            tables.append(counts.reshape(1, classes, classes))
    return np.concatenate(tables)


def _pairs(some: list[Experiment], base: str) -> Iterator[list[Experiment]]:
    """A pretrained experiment and its base, for each data set and probe; one alone where there is no pair."""
    plain = [one for one in some if one.ids["auxiliary"] in ("none", "")]
    most = max((one.ids["label fraction"] for one in plain), default=1.0)
    these = [one for one in plain if one.ids["label fraction"] == most or pd.isna(most)]
    bases, seen = against(these, "init", base), set[tuple[str, str]]()
    for one in sorted(these, key=lambda one: one not in bases):
        kind = one.ids["data set"], one.ids["probe"]
        if kind not in seen and one.ids["probe"] != "clusters" and len(seen) < PAIRS:
            seen.add(kind)
            yield [one, *([bases[one]] if one in bases else [])]


def _told(section: Section, counts: dict[Experiment, np.ndarray], columns: list[str], names: list[str]) -> None:
    first, few = next(iter(counts)), len(names) <= DRAWN
    shared = label(first, [column for column in columns if column in ("data set", "backbone", "label fraction")])
    about = ", ".join(filter(None, [PROBES.get(first.ids["probe"], "Finetuned"), shared]))
    for one, found in counts.items() if few else ():
        caption = f"{about}, {one.ids['init']}: shares of each class in %, mean of {words.times(len(found), 'seed')}"
        section.charts.append((caption, Markup(figures.confusion(_mean(found), names))))
    n = ", ".join(f"{one.ids['init']} n = {len(found)}" for one, found in counts.items())
    head = ["class", "test images"]
    for one in counts:
        head += [f"{one.ids['init']}, %", "95 % interval"]
    rows = [_row(name, k, counts) for k, name in enumerate(names)]
    notes = ["* One seed: the interval is Wilson's, of this class's test images alone."]
    notes = notes if any(len(found) == 1 for found in counts.values()) else []
    images, right = counts[first][0].sum(axis=1), counts[first].trace(axis1=1, axis2=2) / counts[first].sum(axis=(1, 2))
    notes += words.test_size(list(right), int(np.median(images[images > 0])))
    folded = f"Accuracy of each of {len(names)} classes: {about}"
    section.tables.append(Table(head, 1, rows, f"{n}.", folded, notes))
    if not few:
        section.tables.append(_commonest(first, counts[first], names, about))


def _row(name: str, k: int, counts: dict[Experiment, np.ndarray]) -> list[str]:
    images, cells = 0, list[str]()
    for found in counts.values():
        images = int(found[0, k].sum())
        values = list(found[:, k, k] / images) if images else []
        cells += [words.percent(values), words.interval(values, images)] if values else ["–", "–"]
    return [name, f"{images:,}", *cells]


def _commonest(one: Experiment, found: np.ndarray, names: list[str], about: str) -> Table:
    """The confusions that most images of a class fall into."""
    told = _mean(found) * (1 - np.eye(found.shape[1]))
    rows = []
    for place in np.argsort(-told, axis=None, kind="stable")[:TOLD]:
        true, taken = divmod(int(place), len(told))
        if told[true, taken]:
            values = found[:, true, taken] / found[:, true].sum(axis=1)
            rows.append([names[true], names[taken], str(len(values)), words.percent(list(values))])
    caption = f"What is most often taken for something else, {one.ids['init']}. {about}."
    return Table(["class", "taken for", "n", "share of its images, %"], 2, rows, caption)


def _mean(found: np.ndarray) -> np.ndarray:
    """(seeds, C, C) -> shares of each row (C, C), mean over seeds; zeros for a class without images."""
    return (found / np.maximum(found.sum(axis=2, keepdims=True), 1)).mean(axis=0)
