"""What attacks, corruptions and the signs of a masked gradient say about the models of a study.

Each norm has a table of its own, at the strength where its attacks are compared; curves over epsilon carry a band of
one deviation over seeds. A raised flag stands in words beside the numbers that it makes doubtful.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from sandglass.evaluate.attacks.signs import SIGNS
from sandglass.report import figures, words
from sandglass.report.experiments import (
    Experiment,
    against,
    common,
    compared,
    label,
    names,
    panels,
    strength,
    telling,
    test_size,
)
from sandglass.report.images import Seen, disagreements, seen, worst_cases
from sandglass.report.parts import Section, Table
from sandglass.report.statistics import Comparison, summarise

ATTACKS = {
    "fgsm": "FGSM",
    "fgsm_l2": "FGSM in l-2",
    "pgd": "PGD",
    "pgd_l2": "PGD in l-2",
    "square": "Square",
    "autoattack": "AutoAttack",
    "autoattack_l2": "AutoAttack in l-2",
    "corruptions": "Common corruptions",
}
THREAT = (
    "Threat model: the attacker knows the weights, the normalisation and the true label of each test image, and may "
    "change the image by at most ε: every pixel and colour by ε (l-inf), or all of them together by a Euclidean "
    "length of ε (l-2), in 1/255 of the pixel range. The model does not change while it is attacked, runs in float32 "
    "and is judged by its first answer. Accuracy under one attack is an upper bound of what a stronger one leaves."
)
WORST = (
    "Worst of several attacks: an image counts only if the model is right on it as it is and after each of them. No "
    "other number on this page is as near to what a strong attacker leaves, and it is still an upper bound."
)
CORRUPTED = (
    "Common corruptions have no adversary. They are computed here, the same images for every model; they are not the "
    "published set, and their numbers may not be set beside those of other papers."
)
METRICS = ("clean_top1", "robust_top1", "drop", "retention")
HEAD = ["clean, %", "robust, %", "drop, points", "retention, %"]


def robustness(some: list[Experiment], seeds: int, runs: list[dict[str, Any]], results: Path) -> Section:
    """The section, from the experiments of the attack stage and their finished `runs`; `seeds` were asked for."""
    section = Section("robustness", "Robustness")
    swept = [one for one in some if one.epsilons()]
    found = seen(swept, runs, results)
    worst = worst_cases(swept, found)
    swept += worst
    for norm, where in (("l-inf", ""), ("l-2", " in l-2")):
        these = [one for one in swept if one.ids["attack"].endswith("_l2") == (norm == "l-2")]
        epsilon = strength(these)
        if epsilon is not None:
            section.text = [THREAT, *([WORST] if worst else [])]
            columns, caption = telling(these), f"Accuracy at ε = {epsilon:g}/255{where}."
            section.tables.append(_main(these, columns, epsilon, caption, seeds, found))
            section.tables += [_by_epsilon(these, columns, seeds), _all_strengths(these, columns, where, seeds, found)]
            nearest = [one for one in these if one in worst and epsilon in one.epsilons()] or these
            if paired := disagreements(nearest, found, epsilon, where):
                section.tables.append(paired)
    corrupted = [one for one in some if one.ids["attack"] == "corruptions"]
    if corrupted:
        section.text.append(CORRUPTED)
        columns = telling(corrupted)
        caption = "Mean accuracy over fifteen common corruptions at five levels."
        section.tables += [_main(corrupted, columns, None, caption, seeds, {}), _each_corruption(corrupted, columns)]
    section.tables += _masking([one for one in some if one.ids["attack"] == "masking"], seeds)
    for panel, lines in panels(swept, ("auxiliary",)):
        curves = {name: curve for name, one in lines if (curve := epsilon_curve(one))}
        if curves:
            section.charts.append((panel, Markup(figures.epsilons(curves))))
    return section


def _main(
    some: list[Experiment],
    columns: list[str],
    epsilon: float | None,
    caption: str,
    seeds: int,
    found: dict[str, Seen],
) -> Table:
    """Clean, robust, drop and retention, and what auxiliary tasks change."""
    base, tests, rows = against(some, "auxiliary", "none"), list[Comparison](), []
    for one in some:
        robust = one.values("robust_top1", epsilon)
        if len(robust):
            test = compared(one, base[one], "robust_top1", epsilon, paired=True) if one in base else None
            tests += [test] if test else []
            cells = [*_cells(one, epsilon, found), *([words.cell(test)] if base else [])]
            rows.append([*names(one, columns), words.of(len(robust), seeds), *cells])
    head = [*columns, "n", *HEAD, *(["robust against none"] if base else [])]
    notes = [*_doubts(some), *words.limits(tests), *test_size(some, "clean_top1")]
    if any(len(one.values("robust_top1", epsilon)) == 1 for one in some):
        notes.append("* One seed: the interval is of the test images alone, Wilson's, or bootstrapped.")
    text = f"{caption} Mean ± deviation, and the 95 % interval. {words.sentence(common(some, columns))}"
    return Table(head, len(columns), rows, text, notes=notes)


def _cells(one: Experiment, epsilon: float | None, found: dict[str, Seen]) -> list[str]:
    """Each of METRICS: the mean and deviation, and below them the interval, over images where there is one seed."""
    return [_cell(one, metric, epsilon, found) for metric in METRICS]


def _cell(one: Experiment, metric: str, epsilon: float | None, found: dict[str, Seen]) -> str:
    by_seed, interval = one.values(metric, epsilon), ""
    values = list(by_seed)
    if not values:
        return "–"
    if metric in ("clean_top1", "robust_top1"):
        interval = words.interval(values, one.images(metric))
    elif len(values) > 1:
        over = summarise(values)
        interval = words.between(over.low if metric == "drop" else max(over.low, 0), over.high)
    elif epsilon is not None and (own := found.get(one.rows[one.rows["seed"] == by_seed.index[0]]["run"].iloc[0])):
        interval = f"{words.between(*own.interval(metric, epsilon))} *"
    return f"{words.percent(values)}\n{interval}".rstrip()


def _by_epsilon(some: list[Experiment], columns: list[str], seeds: int) -> Table:
    strengths = sorted({epsilon for one in some for epsilon in one.epsilons()})
    rows = []
    for one in some:
        found = [one.values("robust_top1", epsilon) for epsilon in strengths]
        cells = [words.percent(list(values)) if len(values) else "–" for values in found]
        rows.append([*names(one, columns), words.of(len(max(found, key=len)), seeds), *cells])
    head = [*columns, "n", *(f"{epsilon:g}" for epsilon in strengths)]
    return Table(head, len(columns), rows, "Accuracy in %, by ε in 1/255 of the pixel range.")


def _all_strengths(some: list[Experiment], columns: list[str], where: str, seeds: int, found: dict[str, Seen]) -> Table:
    rows = [
        [*names(one, columns), f"{e:g}", words.of(len(one.values("robust_top1", e)), seeds), *_cells(one, e, found)]
        for one in some
        for e in one.epsilons()
    ]
    folded = f"Clean, robust, drop and retention at every strength{where}"
    return Table([*columns, "ε, 1/255", "n", *HEAD], len(columns), rows, folded=folded)


def _each_corruption(some: list[Experiment], columns: list[str]) -> Table:
    """A row per corruption, a column per model: the mean over levels, and each level."""
    metrics = [metric for metric in dict.fromkeys(some[0].rows["metric"]) if metric.startswith("top1_")]
    means = [metric for metric in metrics if not metric[-1].isdigit()]
    rows = []
    for one in some:
        for mean in means:
            levels = [metric for metric in metrics if metric.startswith(f"{mean}_")]
            cells = [words.percent(list(one.values(metric))) for metric in (mean, *levels)]
            rows.append([*names(one, columns), mean.removeprefix("top1_").replace("_", " "), *cells])
    levels = [metric[-1] for metric in metrics if metric.startswith(f"{means[0]}_")]
    head = [*columns, "corruption", "mean, %", *(f"level {level}" for level in levels)]
    return Table(head, len(columns) + 1, rows, folded=f"Each of {len(means)} corruptions, at each level")


def _masking(some: list[Experiment], seeds: int) -> Iterator[Table]:
    """The raised flags of each model in words, and folded the number behind each."""
    if not some:
        return
    columns, raised, numbers = telling(some), [], []
    for one in some:
        found = {sign: (one.values(sign).mean(), one.values(f"flag_{sign}").max() > 0) for sign in SIGNS}
        flags = [SIGNS[sign] for sign, (_, up) in found.items() if up]
        raised.append([*names(one, columns), "; ".join(flags) or "none", words.of(len(one.values("flags")), seeds)])
        numbers.append([*names(one, columns), *(f"{value:.3f}{' ⚑' if up else ''}" for value, up in found.values())])
    caption = f"Signs of a masked gradient, in at least one seed. {words.sentence(common(some, columns))}"
    meaning = (
        "Where a flag is raised, robust accuracies are upper bounds. That none is raised is no proof of the contrary."
    )
    yield Table([*columns, "raised flags", "n"], len(columns) + 1, raised, caption, notes=[meaning])
    head = [*columns, *(sign.replace("_", " ") for sign in SIGNS)]
    yield Table(head, len(columns), numbers, folded="The number behind each flag, near 0 for an honest gradient")


def epsilon_curve(one: Experiment) -> tuple[np.ndarray, np.ndarray] | None:
    """epsilons (E,) and accuracies (seeds, E) of the seeds that have all of them."""
    found = {epsilon: one.values("robust_top1", epsilon) for epsilon in one.epsilons()}
    table = pd.DataFrame(found).dropna()
    return (table.columns.to_numpy(float), table.to_numpy()) if len(table) else None


def _doubts(some: list[Experiment]) -> Iterator[str]:
    """Signs that an attack, and not the model, is what is weak."""
    columns = telling(some)
    for one in some:
        name = label(one, columns) or "the model"
        mean = [one.values("robust_top1", epsilon).mean() for epsilon in one.epsilons()]
        if any(later > earlier + 0.005 for earlier, later in pairwise(mean)):
            yield f"Check {name}: accuracy rises with ε, which a working attack does not allow."
        zeros = one.values("zero_gradient_share")
        if len(zeros) and zeros.max() > 0.5:
            share = f"{100 * zeros.max():.0f} % of its input gradients are exactly zero"
            yield f"Check {name}: {share}, so gradient attacks prove little."
