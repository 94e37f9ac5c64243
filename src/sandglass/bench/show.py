"""results/bench: a table for each command, and one page that shows all that have been made.

The page is drawn from the tables alone, so that a command renews it without repeating the others.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from sandglass.bench.floor import REST
from sandglass.bench.photographs import CREDIT
from sandglass.bench.ratios import Ratio
from sandglass.bench.speed import KERNELS, LIGHTLY, MEMORY, OURS, SHIPPED, SHIPPED_MEMORY, Measured
from sandglass.report import figures
from sandglass.report.collect import write_csv
from sandglass.report.parts import Section, Table
from sandglass.report.rendering import render
from sandglass.runs import git_state, versions, write_atomic

FEEDS = (KERNELS, MEMORY, OURS, LIGHTLY, SHIPPED_MEMORY, SHIPPED)
FED = {
    KERNELS: "our step's convolutions and linear maps alone",
    MEMORY: "our step, views in memory",
    OURS: "our step, our input",
    LIGHTLY: "our step, lightly's input",
    SHIPPED_MEMORY: "lightly's step, views in memory",
    SHIPPED: "lightly as shipped",
}


def facts() -> dict[str, Any]:
    """What a number was measured on: the leading columns of every table."""
    import torch

    gpu = torch.cuda.is_available()
    commit = git_state(Path()).get("commit", "unknown")[:12]
    return {
        "device": torch.cuda.get_device_name() if gpu else _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "commit": commit,
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def keep(folder: Path, name: str, about: dict[str, Any], rows: Iterable[dict[str, Any]]) -> None:
    """Write the table `name`.csv and renew the page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(pd.DataFrame([about | row for row in rows]), folder / f"{name}.csv")
    page(folder)


def rounds(measured: Iterable[Measured]) -> list[dict[str, Any]]:
    """Every time that was measured, a row each."""
    return [
        {"case": one.case.name, "feed": feed, "round": number, "ms_per_image": milliseconds}
        for one in measured
        for feed, times in one.times.items()
        for number, milliseconds in enumerate(times)
    ]


def page(folder: Path) -> Path:
    """Draw index.html from the tables that are there."""
    tables = {file.stem: pd.read_csv(file) for file in sorted(folder.glob("*.csv"))}
    makers = {"rounds": _speed, "floor": _floor, "start": _start, "parity": _parity, "growth": _growth}
    sections = [maker(tables[name]) for name, maker in makers.items() if name in tables]
    if (folder / "views.npz").is_file():
        sections.append(_views(dict(np.load(folder / "views.npz"))))
    text = render("bench.html.j2", sections=sections, versions=versions(), tables=sorted(tables))
    write_atomic(folder / "index.html", text)
    return folder / "index.html"


def table(rows: pd.DataFrame) -> Table:
    """Feeds by case, from the table `rounds`."""
    cells = []
    for case, some in rows.groupby("case", sort=False):
        times = {str(feed): list(part["ms_per_image"]) for feed, part in some.groupby("feed", sort=False)}
        for feed in (feed for feed in FEEDS if feed in times):
            ratios = (Ratio.of(times[above], times[feed]) for above in (MEMORY, LIGHTLY, SHIPPED))
            rate = 1000 / float(np.median(times[feed]))
            cells.append([str(case), FED[feed], str(len(times[feed])), f"{rate:,.0f}", *map(str, ratios)])
    head = ["case", "fed by", "rounds", "images/s", "of the ceiling", "over lightly's input", "over lightly as shipped"]
    return Table(head, 2, cells)


def _speed(rows: pd.DataFrame) -> Section:
    section = Section("speed", "Is the model the only limit?")
    section.text.append(
        "The ceiling is the same training step on views that are in memory already. Ratios are formed within rounds: "
        "median, and in brackets the least and the largest. Where rounds differ by more than 25 % there is no ratio. "
        "Convolutions and linear maps alone are what no step can beat."
    )
    shown = table(rows)
    shown.caption, shown.notes = _measured(rows), _settings(rows)
    section.tables.append(shown)
    for case, some in rows.groupby("case", sort=False):
        ceiling = some[some["feed"] == MEMORY].sort_values("round")["ms_per_image"].to_numpy()
        lines = []
        for feed in FEEDS:
            times = some[some["feed"] == feed].sort_values("round")["ms_per_image"].to_numpy()
            if feed not in (MEMORY, KERNELS) and len(times):
                lines.append((FED[feed], feed, list(ceiling / times)))
        chart = figures.dots(lines, "% of the ceiling, a dot a round", (0.0, 1.0))
        section.charts.append((str(case), Markup(chart)))
    return section


def _floor(rows: pd.DataFrame) -> Section:
    section = Section("floor", "What views cost")
    section.text.append(
        "CPU microseconds of one core for the two views of an image, by the function that spends them, torch's work "
        "included. lightly's transforms do the same one image at a time."
    )
    section.notes.append(_measured(rows))
    for size, some in rows.groupby("size", sort=False):
        parts = some[some["way"] == "ours"]
        theirs = float(some[some["way"] == "lightly"]["us_per_image"].sum())
        ours = float(parts["us_per_image"].sum())
        named = parts[parts["part"] != REST].head(12)
        rest = ours - float(named["us_per_image"].sum())
        lines = [("lightly, all of it", "lightly", theirs), ("ours, all of it", "all", ours)]
        lines += [(str(part), "part", us) for part, us in zip(named["part"], named["us_per_image"])]
        chart = figures.bars([*lines, (REST, "part", rest)], "µs an image")
        section.charts.append((f"{size} px: {theirs / ours:.1f} times less than lightly", Markup(chart)))
    return section


def _start(rows: pd.DataFrame) -> Section:
    section = Section("start", "From the start of a job to its first batch")
    whole = rows[rows["part"] == "whole"]
    seconds = (
        f"{whole['cpu_s'].median():.2f} CPU seconds (n = {len(whole)}), {whole['wall_s'].median():.2f} s on the wall"
    )
    section.text.append(
        f"{seconds}. Where the CPU seconds of one more start went, by package and by what the job does:"
    )
    section.notes.append(_measured(rows))
    parts = rows[rows["part"] != "whole"]
    lines = [
        (str(part), "import" if str(part).startswith("import ") else "work", seconds)
        for part, seconds in zip(parts["part"], parts["cpu_s"])
    ]
    section.charts.append(("a training job", Markup(figures.bars(lines, "CPU seconds"))))
    return section


def _parity(rows: pd.DataFrame) -> Section:
    section = Section("parity", "Are they the same views?")
    rows["bound"] = ["–" if pd.isna(bound) else f"{bound:g}" for bound in rows["bound"]]
    cells = [[row["operation"], f"{row['difference']:.3f}", row["bound"]] for row in rows.to_dict("records")]
    caption = f"Mean absolute difference to torchvision's views of the same draws, in 1/255. {_measured(rows)}"
    section.tables.append(Table(["operation", "difference", "at most"], 1, cells, caption))
    return section


def _growth(rows: pd.DataFrame) -> Section:
    section = Section("growth", "What becomes dearer with more")
    section.text.append(
        "Each point is one command in a process of its own. Both axes are multiples of the smallest size; the grey "
        "line is a cost that grows as its cause."
    )
    section.notes.append(_measured(rows))
    for cause, some in rows.groupby("cause", sort=False):
        lines = {}
        for step, points in some.groupby("step", sort=False):
            for column, name in (("cpu_s", "CPU seconds"), ("peak_mib", "memory"), ("bytes", "bytes left")):
                lines[f"{step}: {name}"] = (
                    points["times"].to_numpy(),
                    (points[column] / points[column].iloc[0]).to_numpy(),
                )
        least, most = some["count"].min(), some["count"].max()
        section.charts.append(
            (f"{least:,} to {most:,} {cause}", Markup(figures.growth(lines, f"times as many {cause}")))
        )
    cells = [
        [
            row["cause"],
            row["step"],
            f"{row['count']:,}",
            f"{row['cpu_s']:.2f}",
            f"{row['peak_mib']:.0f}",
            f"{row['bytes'] / 1024:,.0f}",
        ]
        for row in rows.to_dict("records")
    ]
    section.tables.append(Table(["of", "command", "count", "CPU s", "memory, MiB", "left, KiB"], 2, cells))
    return section


def _views(found: dict[str, np.ndarray]) -> Section:
    section = Section("views", "Views of both kinds")
    names = list(found)
    columns = [
        {"pictures": [(name, figures.picture(found[name][k])) for name in names]} for k in range(len(found["original"]))
    ]
    section.sheets.append((f"From top to bottom: {', '.join(names)}", columns))
    section.notes.append(f"Images: {CREDIT}.")
    return section


def _measured(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return (
        f"{first['device']}, {first['cores']} cores, load {first['load']:g} at the start, torch {first['torch']}, "
        f"commit {first['commit']}, {first['date']}."
    )


def _settings(rows: pd.DataFrame) -> list[str]:
    first = rows.iloc[0]
    if first["clock"] == "cpu":
        return ["Clock: CPU seconds of one thread; lightly's loader without workers, which could only cost here."]
    return [
        f"Clock: seconds on the wall, {first['threads']} threads; lightly's loader with {first['workers']} workers."
    ]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
