"""The report's numbers as small files for programs that compare versions of a study (`dvc metrics`, `dvc plots`).

metrics.json has the mean of every row of the main tables, accuracy.csv a row per seed, curves/ the training loss of
each experiment, mean over its seeds. Rows are called by the same words whatever else the study holds: they match.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from sandglass.report.collect import history
from sandglass.report.experiments import SHOWN, Experiment, label, strength, telling
from sandglass.runs import write_atomic, write_json

# What always tells rows of a stage apart; where a study varies something else, that is added.
OWN = {
    "pretrain": ("objective",),
    "probe": ("probe", "init"),
    "finetune": ("init", "auxiliary"),
    "attack": ("attack", "init", "auxiliary"),
}


def write(results: Path, stages: dict[str, list[Experiment]], folder: Path) -> None:
    """Write metrics.json, accuracy.csv and curves/*.csv into `folder`; curves of a former page go."""
    means: dict[str, dict[str, dict[str, float]]] = {}
    seeds = []
    for stage in ("probe", "finetune", "attack"):
        for name, one in named(stages.get(stage, []), stage).items():
            alike = [other for other in stages[stage] if other.ids["attack"] == one.ids["attack"]]
            metric, epsilon = ("robust_top1", strength(alike)) if stage == "attack" else ("top1", None)
            values = one.values(metric, epsilon)
            if len(values):
                title = metric if epsilon is None else f"{metric}_{epsilon:g}_255"
                means.setdefault(stage, {})[name] = {title: float(values.mean())}
                seeds += [(f"{stage}/{name}", seed, value) for seed, value in values.items()]
    write_json(folder / "metrics.json", means)
    table = pd.DataFrame(seeds, columns=["experiment", "seed", "accuracy"])
    write_atomic(folder / "accuracy.csv", table.to_csv(index=False))
    drawn = {}
    for stage in ("pretrain", "finetune"):
        for name, one in named(stages.get(stage, []), stage).items():
            rows = pd.concat([history(results / stage / run) for run in one.runs])
            if "loss" in rows:
                file = folder / "curves" / (re.sub(r"[^A-Za-z0-9_.+]+", "-", f"{stage}-{name}") + ".csv")
                drawn[file] = rows.dropna(subset="loss").groupby("epoch")["loss"].mean()
    for old in (folder / "curves").glob("*.csv"):
        if old not in drawn:
            old.unlink()
    for file, curve in drawn.items():
        write_atomic(file, curve.to_csv())


def named(some: list[Experiment], stage: str) -> dict[str, Experiment]:
    """The experiments of a stage by what they are called."""
    columns = {*telling(some), *OWN[stage]}
    return {label(one, [c for c in SHOWN if c in columns]).replace(", ", "/"): one for one in some}
