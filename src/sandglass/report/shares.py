"""Accuracy by share of the labels: where labels are few is where pretraining should pay."""

from __future__ import annotations

import numpy as np
import pandas as pd
from markupsafe import Markup

from sandglass.report import figures
from sandglass.report.experiments import Experiment, label, telling
from sandglass.report.finding import PROBES
from sandglass.report.parts import Section

CURVES = ("init", "objective", "auxiliary")  # told apart in one chart; everything else is another chart


def label_shares(stages: dict[str, list[Experiment]]) -> Section:
    """A curve for each init, objective and auxiliary task that was judged at several shares; empty if none was."""
    section = Section("shares", "Fewer labels")
    for stage, kind in (("finetune", "finetuned"), ("probe", "frozen")):
        some = [one for one in stages.get(stage, []) if len(one.values("top1"))]
        columns = [column for column in telling(some) if column != "label fraction"]
        charts: dict[str, dict[str, list[Experiment]]] = {}
        for one in some:
            chart = label(one, [column for column in columns if column not in CURVES])
            line = label(one, [column for column in columns if column in CURVES])
            charts.setdefault(chart, {}).setdefault(line, []).append(one)
        for chart, lines in charts.items():
            found = {line: curve for line, these in lines.items() if (curve := share_curve(these))}
            curves = {f"{line} (n = {len(curve[1])})".lstrip(): curve for line, curve in found.items()}
            if curves:
                words = [PROBES.get(word, word) for word in chart.split(", ") if word]
                section.charts.append((", ".join(words or [kind]), Markup(figures.shares(curves))))
    if section.charts:
        section.text.append("Lines are means over seeds, bands one deviation to either side; tables have intervals.")
    return section


def share_curve(some: list[Experiment]) -> tuple[np.ndarray, np.ndarray] | None:
    """shares (F,) ascending and accuracies (seeds, F), of the seeds that have all shares; None for a single share."""
    found = {float(one.ids["label fraction"]): one.values("top1") for one in some}
    table = pd.DataFrame(dict(sorted(found.items()))).dropna()
    return (table.columns.to_numpy(float), table.to_numpy()) if len(table) and len(found) > 1 else None
