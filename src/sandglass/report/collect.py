"""Run folders -> one tidy table: a row per number, with everything that identifies it in columns of its own.

Runs that differ in a setting without a column (a sweep of weights, of sizes, of epochs) get it spelled out in
`setting`, so that grouping by the columns never takes two different experiments for seeds of one. Runs that collapsed,
and those that stand on them, are an experiment of their own: `outcome` says so, and no mean has both kinds.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from sandglass.errors import Exit, Problem
from sandglass.runs import read_json, write_atomic

# What identifies a number besides its seed. `label fraction` is "labels" in a run's columns.
NAMES = ("data set", "backbone", "objective", "optimisation", "views", "auxiliary", "init", "label fraction")
FIRST = (  # as published: what comes later is appended
    "stage", "data set", "backbone", "objective", "views", "auxiliary", "init", "label fraction", "attack", "epsilon",
    "seed", "metric", "value",
)  # fmt: skip
LAST = ("probe", "split", "n", "setting", "run", "optimisation", "outcome")
NUMBERS = ("label fraction", "epsilon", "seed", "value", "n")
ROW = ("metric", "value", "split", "n", "attack", "epsilon")  # what a result's row may say; other words go to `setting`
IDENTITY = ("stage", *NAMES, "attack", "probe", "outcome", "setting")  # groups of these are seeds of one experiment

FORMULA = tuple("=+-@\t\r＝＋－＠")  # how a cell starts that a spreadsheet may run


def collect(root: Path, runs: Iterable[str]) -> pd.DataFrame:
    """Every number of the finished ones of `runs` ("stage/name"), in the columns FIRST and LAST.

    `root` holds results/. epsilon is in 1/255 of the pixel range, nan where there is none; a null value is nan.
    Raises Problem: R-101 (65) a file that is not JSON, R-111 (65) a result that is not a list of numbers.
    """
    found = {key: _Run(root, key) for key in runs if (root / "results" / key / "result.json").is_file()}
    settings, rows = _settings(root, found), {key: list(run.rows()) for key, run in found.items()}
    fallen = {key for key, own in rows.items() if any(row["metric"] == "collapsed" and row["value"] for row in own)}
    outcomes = {key: "collapsed" if fallen & set(_line(key, found)) else "" for key in found}
    tidy = [
        row | {"setting": _joined(settings[key], row["setting"]), "outcome": outcomes[key]}
        for key, own in rows.items()
        for row in own
    ]
    frame = pd.DataFrame(tidy, columns=[*FIRST, *LAST])
    texts = frame.columns.difference(NUMBERS)
    frame[texts] = frame[texts].fillna("").astype(str)
    return frame.astype({name: "float64" for name in NUMBERS}).astype({"seed": "Int64", "n": "Int64"})


def missing(root: Path, runs: Iterable[str]) -> list[str]:
    """Those of `runs` that have no result."""
    return [key for key in runs if not (root / "results" / key / "result.json").is_file()]


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write the table; text that a spreadsheet would run gets a quotation mark in front, numbers stay as they are."""
    safe = frame.copy()
    for name in safe.select_dtypes(exclude="number").columns:
        safe[name] = [f"'{text}" if str(text).startswith(FORMULA) else text for text in safe[name]]
    write_atomic(path, safe.to_csv(index=False))


def history(folder: Path) -> pd.DataFrame:
    """metrics.jsonl of a run: the loss and what validation said, then whatever else was logged; empty if there is none.

    Raises Problem R-112 (65) for a line that is not a JSON object.
    """
    path = folder / "metrics.jsonl"
    rows = []
    for number, line in enumerate(path.read_text().splitlines() if path.is_file() else [], start=1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise _damaged("R-112", f"line {number} of {path} is not a JSON object", str(error), folder) from None
    table = pd.DataFrame(rows)
    return table[sorted(table, key=lambda name: name != "loss" and not name.startswith("val_"))]


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, without pickles; {} if there is none. Raises Problem R-116 (65) if it is damaged."""
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise _damaged("R-116", f"{path} cannot be read", str(error), path.parent) from None


class _Run:
    """One finished run on disk."""

    def __init__(self, root: Path, key: str) -> None:
        self.key, self.folder = key, root / "results" / key
        self.about = read_json(self.folder / "run.json")
        self.result = read_json(self.folder / "result.json")
        if not isinstance(self.about, dict) or not isinstance(self.about.get("columns"), dict):
            raise self.wrong("run.json has no columns")
        if not isinstance(self.result, dict) or not isinstance(self.result.get("rows"), list):
            raise self.wrong("result.json has no rows")

    def wrong(self, why: str) -> Problem:
        return _damaged("R-111", f"the result of {self.key} is not what it should be", why, self.folder)

    def rows(self) -> Iterator[dict[str, Any]]:
        columns, (stage, _, name) = self.about["columns"], self.key.partition("/")
        shared = {key: columns.get(key, "") for key in NAMES} | {"label fraction": columns.get("labels")}
        shared |= {"stage": stage, "run": name, "seed": self.about.get("seed")}
        shared |= {key: columns.get(key, "") for key in ("attack", "probe")} | {"setting": ""}
        rows = list(self.result["rows"])
        if "minutes" in self.result and not any(
            isinstance(row, dict) and row.get("metric") == "minutes" for row in rows
        ):
            rows.append({"metric": "minutes", "value": self.result["minutes"]})
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict) or not isinstance(row.get("metric"), str) or "value" not in row:
                raise self.wrong(f"row {number} has no metric and value: {str(row)[:80]}")
            for key in ("value", "epsilon", "n"):
                if not (row.get(key) is None or _number(row[key])):
                    raise self.wrong(f"row {number}: {key} is {row[key]!r}, not a number")
            known = {key: row[key] for key in ROW if key in row}
            extra = {key: value for key, value in row.items() if key not in ROW and isinstance(value, str | int)}
            yield shared | known | {"setting": ", ".join(f"{key} {value}" for key, value in extra.items())}


def _line(key: str, runs: dict[str, _Run]) -> Iterator[str]:
    """A run and all that it needs."""
    yield key
    for need in runs[key].about.get("needs", ()) if key in runs else ():
        yield from _line(need, runs)


def _settings(root: Path, runs: dict[str, _Run]) -> dict[str, str]:
    """For each run, the settings (its own and those of the runs it needs) in which runs with equal columns differ."""
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for key, run in runs.items():
        columns = run.about["columns"]
        alike[
            key.partition("/")[0], *(str(columns.get(name)) for name in (*NAMES, "labels", "attack", "probe"))
        ].append(key)
    flat: dict[str, dict[tuple[str, ...], str]] = {}
    texts = {}
    for keys in alike.values():
        own = keys[0].partition("/")[0]
        every = [_inherited(root, key, flat) for key in keys]
        paths = sorted({path for settings in every for path in settings}, key=lambda path: (path[0] != own, path))
        varying: dict[tuple[Any, ...], tuple[str, ...]] = {}
        for path in paths:
            values = tuple(settings.get(path, "-") for settings in every)
            if len(set(values)) > 1:
                varying.setdefault((path[1:], values), path)  # what a run shares with its parents is said once
        for key, settings in zip(keys, every):
            words = [
                [*([stage] if stage != own else []), *rest[-2:], settings.get((stage, *rest), "-")]
                for stage, *rest in varying.values()
            ]
            texts[key] = ", ".join(map(" ".join, words))
    return texts


def _inherited(root: Path, key: str, flat: dict[str, dict[tuple[str, ...], str]]) -> dict[tuple[str, ...], str]:
    """(stage, section, ..., setting) -> value as text, of a run and of all that it needs. `flat` remembers."""
    if key not in flat:
        stage, about = key.partition("/")[0], root / "results" / key / "run.json"
        facts = read_json(about) if about.is_file() else {}
        flat[key] = {(stage, *path): value for path, value in _leaves(facts.get("settings", {}))}
        for need in facts.get("needs", ()):
            flat[key] = _inherited(root, need, flat) | flat[key]
    return flat[key]


def _leaves(tree: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, (*at, str(key)))
    else:
        yield at, str(tree)


def _joined(*words: str) -> str:
    return ", ".join(filter(None, words))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isinf(value)


def _damaged(id: str, what: str, why: str, folder: Path) -> Problem:
    return Problem(id, Exit.CONTENT, what, why=why, fix=f"remove {folder} and run again", kept="no report was written")
