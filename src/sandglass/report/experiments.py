"""The table's rows as experiments: the seeds of one setting, what tells two apart, and which is compared to which.

Two experiments are compared only if they differ in nothing but the column that is asked about. Runs of one seed share
their labelled images and the order of their batches, so finetuned models are compared in pairs; a pretrained and a
random network share nothing, so probes are not.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from sandglass.report import words
from sandglass.report.collect import IDENTITY
from sandglass.report.statistics import Comparison, compare

# What tells experiments apart, in the order in which it is asked for; what follows from the ones before is left out.
TELLING = (
    "init", "auxiliary", "data set", "backbone", "objective", "optimisation", "views", "label fraction", "attack",
    "probe", "outcome", "setting",
)  # fmt: skip
SHOWN = (
    "data set", "backbone", "probe", "attack", "label fraction", "objective", "optimisation", "views", "init",
    "auxiliary", "setting", "outcome",
)  # fmt: skip
EPSILON = 1.0  # in 1/255: one 8-bit level, the published point


@dataclass(frozen=True, eq=False)
class Experiment:
    """All seeds of one setting: `ids` are the columns of IDENTITY, `rows` its part of the table."""

    ids: dict[str, Any]
    rows: pd.DataFrame

    @cached_property
    def _numbers(self) -> dict[tuple[str, float | None], dict[Any, float]]:
        found: dict[tuple[str, float | None], dict[Any, float]] = defaultdict(dict)
        columns = (self.rows[name].tolist() for name in ("metric", "split", "epsilon", "seed", "value"))
        for metric, split, epsilon, seed, value in zip(*columns):
            if split != "val" and not math.isnan(value):
                found[metric, None].setdefault(seed, value)
                found[metric, epsilon].setdefault(seed, value)
        return dict(found)

    def values(self, metric: str, epsilon: float | None = None) -> pd.Series:
        """The numbers of a metric by seed (at one strength of attack), not those of the validation split."""
        return pd.Series(self._numbers.get((metric, epsilon), {}), dtype="float64")

    def images(self, metric: str) -> int:
        """How many images one number of the metric is of; 0 if that was not written down."""
        judged = self.rows[(self.rows["metric"] == metric) & (self.rows["split"] != "val")]
        counts = judged["n"].dropna()
        return int(counts.iloc[0]) if len(counts) else 0

    def epsilons(self) -> list[float]:
        """The strengths of attack with an accuracy, ascending."""
        return sorted(self.rows[self.rows["metric"] == "robust_top1"]["epsilon"].dropna().unique().tolist())

    @property
    def runs(self) -> list[str]:
        """Names of its runs, in plan order."""
        return list(dict.fromkeys(self.rows["run"]))

    @property
    def seed(self) -> Any:
        """The seed of the first of its runs."""
        return self.rows["seed"].iloc[0]


def experiments(frame: pd.DataFrame, stage: str) -> list[Experiment]:
    """The experiments of a stage, sorted by the columns as they are shown, each in the order of the plan."""
    rows = frame[frame["stage"] == stage]
    parts = rows.groupby(list(IDENTITY), sort=False, dropna=False)
    some = [Experiment(dict(zip(IDENTITY, ids)), part) for ids, part in parts]
    place = {column: {str(value): k for k, value in enumerate(rows[column].unique())} for column in SHOWN}
    return sorted(some, key=lambda one: [place[column][str(one.ids[column])] for column in SHOWN])


def telling(some: list[Experiment]) -> list[str]:
    """The fewest columns, in the order to show them, that tell these experiments apart."""
    kept: list[str] = []
    told = 1
    for column in TELLING:
        distinct = len({tuple(str(e.ids[key]) for key in (*kept, column)) for e in some})
        if distinct > told:
            kept, told = [*kept, column], distinct
    return [column for column in SHOWN if column in kept]


def common(some: list[Experiment], columns: list[str]) -> str:
    """In words, what is not in `columns` because it is the same for all that have it."""
    words = []
    for column in SHOWN:
        values = {shown(column, e.ids[column]) for e in some} - {"–", "none"}
        if column not in columns and len(values) == 1:
            words.append(f"{column} {values.pop()}")
    return ", ".join(words)


def label(one: Experiment, columns: list[str]) -> str:
    """What tells it apart, in words."""
    words = [(column, shown(column, one.ids[column])) for column in columns]
    return ", ".join(word for column, word in words if word != "–" and (column, word) != ("objective", "none"))


def shown(column: str, value: Any) -> str:
    """One identifying value as a reader sees it."""
    if column == "label fraction":
        return "–" if pd.isna(value) else f"{100 * value:g} %"
    return str(value).replace("+", " + ") or "–"


def names(one: Experiment, columns: list[str]) -> list[str]:
    """The same, cell by cell."""
    return [shown(column, one.ids[column]) for column in columns]


def test_size(some: list[Experiment], metric: str) -> list[str]:
    """What the number of test images leaves open, where all have the same."""
    images = {one.images(metric) for one in some}
    values = [value for one in some for value in one.values(metric)]
    return words.test_size(values, images.pop()) if len(images) == 1 else []


def panels(some: list[Experiment], by: tuple[str, ...]) -> list[tuple[str, list[tuple[str, Experiment]]]]:
    """Charts of (label, experiment): what `by` tells apart shares a chart, everything else is another chart."""
    columns = telling(some)
    inside, outside = [c for c in columns if c in by], [c for c in columns if c not in by]
    charts: dict[str, list[tuple[str, Experiment]]] = {}
    for one in some:
        charts.setdefault(label(one, outside), []).append((label(one, inside), one))
    return list(charts.items())


def against(some: list[Experiment], column: str, base: str) -> dict[Experiment, Experiment]:
    """Each experiment -> the one that differs from it only in `column`, which is `base` there.

    What exists only through that column may differ too: without pretraining there is no objective and no views of it,
    and a setting of the pretraining or of an auxiliary task has no counterpart where there is none.
    """
    free = {column, "setting", *(("objective", "optimisation", "outcome") if column == "init" else ())}

    def rest(one: Experiment) -> tuple[str, ...]:
        own = free | ({"views"} if one.ids["stage"] == "probe" else set())
        return tuple(str(value) for key, value in one.ids.items() if key not in own)

    found = {}
    for one in some:
        if one.ids[column] != base:
            bases = [other for other in some if other.ids[column] == base and rest(other) == rest(one)]
            same = [other for other in bases if other.ids["setting"] == one.ids["setting"]] or bases
            if len(same) == 1:
                found[one] = same[0]
    return found


def strength(some: list[Experiment]) -> float | None:
    """The epsilon at which attacks are compared: 1/255 if it was tried, else the middle one above 0."""
    tried = sorted({epsilon for one in some for epsilon in one.epsilons() if epsilon > 0})
    if not tried:
        return None
    return EPSILON if EPSILON in tried else tried[len(tried) // 2]


def compared(
    one: Experiment, base: Experiment, metric: str, epsilon: float | None = None, *, paired: bool
) -> Comparison | None:
    """The test of one experiment against its base; in pairs, over the seeds that both have. None without numbers."""
    a, b = one.values(metric, epsilon), base.values(metric, epsilon)
    if paired:
        both = a.index.intersection(b.index)
        a, b = a[both], b[both]
    return compare(list(a), list(b), paired=paired) if len(a) and len(b) else None
