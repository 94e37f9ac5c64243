"""One static page for one run: its numbers, curves, pictures, settings and provenance, from its folder alone.

It is made when somebody asks for it and stays out of the folder: the study's report is what is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from sandglass.report import figures
from sandglass.report.collect import arrays, history
from sandglass.report.rendering import render
from sandglass.runs import read_json

CURVES = 12  # at most so many


def page(folder: Path, title: str) -> str:
    """The page of the finished run in `folder`, results/<stage>/<run>.

    Raises Problem R-101, R-112 or R-113 (65) for a damaged file.
    """
    about, result = read_json(folder / "run.json"), read_json(folder / "result.json")
    data = next((folder.parents[1] / key / "info.json" for key in about["needs"] if key.startswith("data/")), folder)
    classes = [str(name) for name in read_json(data)["classes"]] if data.is_file() else []
    text = " · ".join(f"{key} {value}" for key, value in about["columns"].items())
    facts = {key: result[key] for key in ("steps", "attempts", "minutes", "images_per_second") if key in result}
    facts = about["derived"] | facts | {"begun": about["started"], "needs": ", ".join(about["needs"])}
    return render(
        "run.html.j2",
        title=title,
        about=about,
        text=text,
        numbers=[_number(row) for row in result["rows"]],
        charts=_charts(folder, result["rows"], classes),
        sheets=_sheets(folder, classes),
        settings=list(_leaves(about["settings"])),
        facts={key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in facts.items()},
        versions=", ".join(f"{name} {version}" for name, version in about["versions"].items()),
    )


def _charts(folder: Path, rows: list[dict[str, Any]], classes: list[str]) -> list[tuple[str, Markup]]:
    charts, logged = [], history(folder)
    for metric in [name for name in logged if name not in ("step", "epoch")][:CURVES]:
        known = logged.dropna(subset=[metric])
        line = (known["epoch"].to_numpy(float), known[metric].to_numpy(float))
        charts.append((metric, figures.curves({metric: [line]}, metric)))
    robust = {row["epsilon"]: row["value"] for row in rows if row["metric"] == "robust_top1"}
    if robust:
        line = (np.array(list(robust)), np.array([list(robust.values())]))
        charts.append(("accuracy by strength of attack", figures.epsilons({"accuracy": line})))
    if found := arrays(folder / "embedding.npz"):
        charts.append(("map of the test images", figures.embedding(found["xy"], found["labels"], classes)))
    return [(caption, Markup(chart)) for caption, chart in charts]


def _sheets(folder: Path, classes: list[str]) -> list[tuple[str, list[dict[str, Any]]]]:
    sheets = []
    if found := arrays(folder / "views.npz"):
        made = [found[f"view{v}"] for v in range(len(found) - 1)]
        caption = "What the network saw: from top to bottom the original and its views"
        sheets.append((caption, figures.views(found["original"], made)))
    if found := arrays(folder / "examples.npz"):
        columns, factor = figures.attacked(found, classes)
        sheets.append((f"From top to bottom clean, the change × {factor:g} around grey, attacked", columns))
    return sheets


def _number(row: dict[str, Any]) -> list[str]:
    """metric, on what, n, value."""
    strength = f"ε {row['epsilon']:g}/255" if row.get("epsilon") is not None else ""
    value = "–" if row["value"] is None else f"{row['value']:.4g}"
    return [row["metric"], " ".join(filter(None, [row.get("split"), strength])), str(row.get("n") or ""), value]


def _leaves(tree: dict[str, Any], at: str = "") -> Any:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", str(value)
