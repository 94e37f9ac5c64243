"""A published table laid out as it was printed, and ours beside theirs.

Ours is the mean over the seeds that did not collapse; those that did are counted and not averaged in. The two numbers
of a cell are seldom of one protocol. What forbids to compare them is said in words: below the table what holds for all
of its cells, inside a cell what holds for that one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from sandglass.report import published, words
from sandglass.report.parts import Table
from sandglass.report.statistics import summarise

# A name in print -> the objective, and the settings that tell it from others of that objective.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "BarlowTwins": ("barlow_twins", {}),
    "SimCLR": ("simclr", {}),
    "SimSiam": ("simsiam", {}),
    "SwaV": ("swav", {}),
    "BYOL": ("byol", {}),
    "VICReg": ("vicreg", {}),
    **{f"VICRegL-a{alpha:.2f}": ("vicregl", {"alpha": alpha}) for alpha in (0.95, 0.75, 0.5, 0.25)},
}
POLICIES = {
    "Baseline": "baseline",
    "SimCLR": "simclr",
    "Orthogonality": "orthogonality",
    "LoRot-I": "lorot",
    "DCL": "dcl",
}
SETS = {
    "ImageNette": "imagenette_v1",
    "ImageNette v2-160": "imagenette160",
    "ImageWoof": "imagewoof",
    "NABirds": "nabirds",
}

# How ours was judged -> what a cell calls it, and what it is.
EVALUATIONS = {
    "linear_augmented": ("probe", "a linear classifier on frozen features, trained on crops and flips"),
    "online": ("online", "a linear classifier trained beside the objective, which does not feel it"),
}
COSTS = {"minutes": ("minutes", "min", "min"), "peak_gb": ("peak_memory_gib", "GB", "GiB")}  # ours, their unit, ours
NO_COMPARISON = (
    "Their minutes are no comparison of methods: at equal shapes they change two- to threefold with the view policy, "
    "so the making of views set the pace, and VICRegL seems to have been run on 59 % of the pixels. Ours are of the "
    "steps alone, theirs perhaps not. Their GB are taken for GiB; neither device nor precision is stated."
)


def answers(columns: dict[str, Any], settings: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether a pretraining run, by its columns and settings, is the method and policy of a published number."""
    objective, own = METHODS[row["model"]]
    same = (columns["objective"], columns["views"]) == (objective, POLICIES[row["setting"]])
    return same and own.items() <= settings["objective"][objective].items()


def beside(name: str, runs: list[dict[str, Any]], frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each number of the published table `name`, each optimisation of ours, and each way to judge it.

    `runs` are the finished runs of the plan, `frame` their numbers (collect.py). Raises Problem, see published.answers.
    """
    theirs = pd.concat([published.answers(name), published.costs(name)], ignore_index=True)
    ours = _Ours(runs, frame)
    rows = [row | answer for row in theirs.to_dict("records") for answer in ours.answers(row)]
    return pd.DataFrame(rows)


class _Ours:
    """What the runs of a study have to say to a published number."""

    def __init__(self, runs: list[dict[str, Any]], frame: pd.DataFrame) -> None:
        self.pretrained = [run for run in runs if run["stage"] == "pretrain"]
        self.optimisations = list(dict.fromkeys(run["columns"].get("optimisation", "") for run in self.pretrained))
        rows = frame[frame["split"] != "val"]
        keys = zip(rows["stage"], rows["run"], rows["metric"])
        self.numbers = dict(zip(keys, zip(rows["value"].tolist(), rows["n"].fillna(0).tolist())))
        self.collapsed = set(frame[frame["outcome"] == "collapsed"]["run"])
        self.probes: dict[tuple[str, str], str] = {}
        for run in runs:
            if run["stage"] == "probe" and run["columns"].get("labels", 1.0) == 1.0:
                for need in run["needs"]:
                    self.probes.setdefault((need, run["columns"]["probe"]), run["name"])

    def answers(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        here = [run for run in self.pretrained if run["columns"]["data set"] == SETS[row["data set"]]]
        here = here or [run for run in self.pretrained if run["columns"]["data set"] not in SETS.values()]
        for optimisation in self.optimisations:
            named = [run for run in here if run["columns"].get("optimisation", "") == optimisation]
            some = [run for run in named if answers(run["columns"], run["settings"], row)]
            standing = [run for run in some if run["name"] not in self.collapsed]
            fallen = len(some) - len(standing)
            for evaluation in [""] if row["metric"] in COSTS else ["linear_augmented", "online"]:
                found = [self.number(run, evaluation, row["metric"]) for run in standing]
                values = [number[0] for number in found if number]
                images = max((int(number[1]) for number in found if number), default=0)
                yield {
                    "optimisation": optimisation,
                    "evaluation": evaluation,
                    "n": len(values),
                    "collapsed": fallen,
                    "values": values,
                    "test images": images,
                    "not comparable": list(_reasons(row, some[0] if some else None)),
                }

    def number(self, run: dict[str, Any], evaluation: str, metric: str) -> tuple[float, float] | None:
        """The value and its count of images."""
        if evaluation == "linear_augmented":
            return self.numbers.get(("probe", self.probes.get((f"pretrain/{run['name']}", evaluation), ""), metric))
        name = f"online_{metric}" if evaluation else COSTS[metric][0]
        return self.numbers.get(("pretrain", run["name"], name))


def _reasons(row: dict[str, Any], run: dict[str, Any] | None) -> Iterator[str]:
    """Why a number of ours may not be compared with a published one."""
    protocol = published.TABLES[row["table"]].protocol
    if row["status"] == "disputed":
        yield row["note"]
    if run:
        ours = {"data set": run["columns"]["data set"], "backbone": run["settings"]["backbone"]}
        ours |= {"size": run["settings"]["size"], "epochs": run["settings"]["train"]["epochs"]}
        ours |= {"batch size": run["settings"]["train"]["batch_size"]}
        for key, value in ours.items():
            theirs = SETS[row["data set"]] if key == "data set" else protocol[key]
            if value != theirs:
                yield f"{key} {value}, theirs {theirs}"
    if row["metric"] not in COSTS:
        yield f"protocol unknown: {protocol['evaluation']}"
        yield "theirs is one run: no seeds, no spread"
        if protocol["split"] != "validation":
            yield f"their split: {protocol['split']}"
        if "upsampled from" in protocol:
            yield f"both enlarge images of {protocol['upsampled from']} px"


def tables(rows: pd.DataFrame, seeds: int) -> Iterator[Table]:
    """The published layout, methods by policies, once for each optimisation; then, where they were printed, costs."""
    for (name, optimisation), part in rows.groupby(["table", "optimisation"], sort=False):
        cost = part["metric"].isin(COSTS)
        for some in (part[~cost], part[cost]):
            if some["n"].sum() + some["collapsed"].sum():
                yield _table(str(name), str(optimisation), some, seeds)


def _table(name: str, optimisation: str, rows: pd.DataFrame, seeds: int) -> Table:
    costs = bool(rows["metric"].isin(COSTS).all())
    shared = set.intersection(*(set(some) for some in rows["not comparable"]))
    columns = rows["setting"]
    if not costs and rows["metric"].nunique() > 1:
        columns = columns + ", " + rows["metric"]
    cells = {
        key: "\n".join(_cell(some.to_dict("records"), shared, seeds))
        for key, some in rows.groupby([rows["model"], columns], sort=False)
    }
    head = list(dict.fromkeys(columns))
    body = [[model, *(cells.get((model, column), "–") for column in head)] for model in dict.fromkeys(rows["model"])]
    what = "minutes and peak memory" if costs else "accuracy in %, our mean with its 95 % interval"
    caption = f"{name}: {what}, n = {seeds} where no other is given. "
    caption += f"Ours trained by the values named {optimisation or 'in the study'}."
    return Table(["method", *head], 1, body, caption, notes=list(_notes(rows, shared, costs)))


def _cell(rows: Sequence[dict[str, Any]], shared: set[str], seeds: int) -> Iterator[str]:
    """The lines of one cell: theirs, ours by each way to judge it, and what is wrong with this cell alone."""
    first, found = rows[0], [row for row in rows if row["n"]]
    if first["metric"] in COSTS:
        yield "theirs " + ", ".join(f"{row['printed']} {COSTS[row['metric']][1]}" for row in rows)
        if found:
            yield "ours " + ", ".join(f"{_mean(row):.1f} {COSTS[row['metric']][2]}" for row in found)
    else:
        yield f"theirs {100 * first['value']:.1f}" + ", disputed" * (first["status"] == "disputed")
        for row in found:
            interval = words.interval(row["values"], row["test images"])
            yield f"{EVALUATIONS[row['evaluation']][0]} {100 * _mean(row):.1f} ({interval})"
    if first["n"] < seeds:
        yield f"ours n = {first['n']}" + f", {first['collapsed']} collapsed" * (first["collapsed"] > 0)
    yield from (reason for reason in first["not comparable"] if reason not in shared)


def _mean(row: dict[str, Any]) -> float:
    return summarise(row["values"]).mean


def _notes(rows: pd.DataFrame, shared: set[str], costs: bool) -> Iterator[str]:
    if costs:
        yield NO_COMPARISON
    reasons = [reason for reason in rows["not comparable"].iloc[0] if reason in shared]
    if reasons:
        yield f"No cell is a comparison: {'; '.join(reasons)}."
    for evaluation, some in rows[rows["n"] > 0].groupby("evaluation", sort=False):
        if evaluation:
            yield f"{': '.join(EVALUATIONS[str(evaluation)])}; {some['test images'].max():,} test images."
    if (rows["n"] == 1).any() and not costs:
        yield "* One seed: the interval is Wilson's, of the test images alone."
    if rows["collapsed"].any():
        yield "Collapsed seeds, whose images all had nearly the same representation at the end, are in no mean."


def csv(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows as flat columns: our mean, deviation and interval over seeds instead of the values themselves."""
    found = [summarise(values) if values else None for values in rows["values"]]
    flat = rows.drop(columns=["values", "value"]).rename(columns={"printed": "theirs"})
    for key in ("mean", "deviation", "low", "high"):
        flat[key] = [getattr(s, key) if s else None for s in found]
    return flat.assign(**{"not comparable": rows["not comparable"].map("; ".join)})
