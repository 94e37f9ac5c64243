"""Image by image: what withstands every attack on a model, and which of two models is right where the other errs.

Every attack only finds an upper bound of what the strongest one leaves, so the nearest we know is their worst case:
right_worst = right_clean * product over attacks of right_attack, for attacks on one model, on the same images, in one
ball (norm, epsilon, space, clipping). The clean image lies in the ball too. Read from predictions.npz of finished runs.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sandglass.errors import Exit, Problem
from sandglass.report import words
from sandglass.report.collect import arrays
from sandglass.report.experiments import Experiment, against, experiments, names, telling
from sandglass.report.parts import Table
from sandglass.report.statistics import ALPHA, Discordance, bootstrap, discordance, holm, over_seeds, smallest_p

RATES = {  # of the means of what is right clean and attacked, (D, 2) -> (D,)
    "clean_top1": lambda means: means[:, 0],
    "robust_top1": lambda means: means[:, 1],
    "drop": lambda means: means[:, 1] - means[:, 0],
    "retention": lambda means: means[:, 1] / means[:, 0],
}


@dataclass(frozen=True)
class Seen:
    """What one model got right, bool (N,): of clean images, and at each epsilon (1/255) of one attack."""

    model: str
    images: tuple[Any, ...]  # equal for the same images
    ball: tuple[str, str, bool]  # norm, space of epsilon, whether clipped
    attack: str
    clean: np.ndarray
    right: dict[float, np.ndarray]

    def rates(self, epsilon: float) -> dict[str, float]:
        """Each of RATES; no retention where nothing was right."""
        means = np.array([[self.clean.mean(), self.right[epsilon].mean()]])
        return {name: float(of(means)[0]) for name, of in RATES.items() if name != "retention" or means[0, 0]}

    def interval(self, metric: str, epsilon: float) -> tuple[float, float]:
        """Of one of RATES, over the images alone."""
        return bootstrap(np.stack([self.clean, self.right[epsilon]], axis=1), RATES[metric])


def seen(some: list[Experiment], runs: list[dict[str, Any]], results: Path) -> dict[str, Seen]:
    """By the run's name, for those of the runs of `some` (with an epsilon) that kept their predictions.

    Raises Problem R-113, R-114 (65) for a file that is damaged, or that says something else than the run's result.
    """
    about = {run["name"]: run for run in runs if run["stage"] == "attack"}
    found = {}
    for one in some:
        for name, rows in one.rows.groupby("run", sort=False):
            file = results / "attack" / str(name) / "predictions.npz"
            if held := arrays(file):
                found[str(name)] = _seen(about[str(name)], held, rows, file)
    return found


def _seen(run: dict[str, Any], held: dict[str, np.ndarray], rows: pd.DataFrame, file: Path) -> Seen:
    told = rows[rows["metric"] == "robust_top1"].set_index("epsilon")[["value", "n"]]
    why = "its accuracies are others than those of result.json"
    try:
        clean = held["clean"] == held["labels"]
        right = {float(e): at == held["labels"] for e, at in zip(held["epsilons"], held["attacked"], strict=True)}
        agree = all(
            len(right[e]) == len(clean) == n and abs(right[e].mean() - v) < 1e-6 for e, v, n in told.itertuples()
        )
    except (KeyError, ValueError, TypeError) as error:
        agree, why = False, f"{type(error).__name__}: {error}"
    if not agree:
        raise Problem(
            "R-114",
            Exit.CONTENT,
            f"{file} is not what its run predicted",
            why=why,
            fix=f"remove {file.parent} and run again",
            kept="no report was written",
        )
    settings, needs = run["settings"], dict(key.split("/", 1) for key in run["needs"])
    ((attack, values),) = settings["attack"].items()
    ball = ("l-2" if attack.endswith("_l2") else "l-inf", values.get("space", "pixel"), values.get("clip", True))
    images = (needs["data"], settings["size"], settings.get("images"))
    return Seen(needs["finetune"], images, ball, attack, clean, right)


def worst_cases(some: list[Experiment], found: dict[str, Seen]) -> list[Experiment]:
    """The worst case over the attacks of each model, as experiments of an attack "worst of ..."; `found` gets them too.

    Which attacks is in its name: only what withstood the same ones is grouped over seeds, or compared.
    """
    first = {str(name): rows.iloc[0].to_dict() for one in some for name, rows in one.rows.groupby("run", sort=False)}
    tried: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for name, one in found.items():
        for epsilon in filter(None, one.right):  # at 0 there is nothing but the clean image
            tried[one.model, one.images, one.ball, epsilon].append(name)
    joined: dict[tuple[str, ...], dict[float, np.ndarray]] = defaultdict(dict)
    for (*_, epsilon), several in tried.items():
        if len(several) > 1:
            withstood = [right for name in several for right in (found[name].clean, found[name].right[epsilon])]
            joined[tuple(several)][epsilon] = np.logical_and.reduce(withstood)
    table = []
    for members, right in joined.items():
        parts = [found[member] for member in members]
        lead, attack = parts[0], f"worst of {', '.join(part.attack for part in parts)}"
        if all(0.0 in part.right for part in parts):
            right[0.0] = lead.clean
        one = Seen(lead.model, lead.images, lead.ball, attack, lead.clean, right)
        name = f"{attack}: {lead.model}: {len(found)}"
        found[name] = one
        row = first[members[0]] | {"attack": attack, "run": name, "n": len(one.clean), "split": "test"}
        row["setting"] = _setting([first[member]["setting"] for member in members], one.ball)
        for epsilon in sorted(right):
            values = one.rates(epsilon)
            table += [row | {"metric": metric, "value": value, "epsilon": epsilon} for metric, value in values.items()]
    return experiments(pd.DataFrame(table), "attack") if table else []


def _setting(texts: list[str], ball: tuple[str, str, bool]) -> str:
    """What all attacks have in common: the settings of the model, and a ball that is not the usual one."""
    shared = [part for part in texts[0].split(", ") if all(part in text.split(", ") for text in texts)]
    own = [f"space {ball[1]}"] * (ball[1] != "pixel") + ["not clipped"] * (not ball[2])
    return ", ".join(filter(None, [*shared, *own]))


def disagreements(some: list[Experiment], found: dict[str, Seen], epsilon: float, where: str) -> Table | None:
    """McNemar's test, seed by seed, of each model against the one without its auxiliary task or its pretraining.

    Only of two models that were shown the same images in the same ball.
    """
    pairs: list[tuple[Experiment, str, list[Discordance]]] = []
    for column, base in (("auxiliary", "none"), ("init", "scratch")):
        for one, other in against(some, column, base).items():
            ours, theirs = (_by_seed(each, found, epsilon) for each in (one, other))
            both = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
            same = [(a, b) for a, b in both if (a.images, a.ball) == (b.images, b.ball)]
            if same:
                pairs.append((one, base, [discordance(a.right[epsilon], b.right[epsilon]) for a, b in same]))
    if not pairs:
        return None
    tests = [test for _, _, tests_of in pairs for test in tests_of]
    corrected = iter(holm([test.p for test in tests]))
    columns, rows, pooled = telling(some), [], []
    for one, base, tests_of in pairs:
        pooled.append(over_seeds(tests_of))
        counts = "\n".join(f"{test.first} : {test.second}" for test in tests_of)
        ps = "\n".join(words.probability(test.p) for test in tests_of)
        adjusted = "\n".join(words.probability(next(corrected)) for _ in tests_of)
        rows.append([*names(one, columns), base, str(len(tests_of)), counts, ps, adjusted, words.cell(pooled[-1])])
    head = [*columns, "against", "n", "right only here : only there", "p", "p, corrected", "over seeds"]
    notes = [
        f"A line for each seed: how many of {tests[0].n:,} images only one of its two networks gets right at this ε, "
        f"and McNemar's exact p, alone and after Holm's correction for {words.times(len(tests), 'test')}. This p is of "
        "these networks on other images. Of other seeds only the last column speaks: there the seed is the unit.",
        *words.limits(pooled),
    ]
    few = next(k for k in range(99) if smallest_p(k, k, paired=True) <= ALPHA)
    if any(test.first + test.second < few for test in tests):
        notes.insert(1, f"Two networks that disagree on fewer than {few} images cannot be told apart by them.")
    return Table(
        head, len(columns) + 1, rows, folded=f"Two models on the same images at ε = {epsilon:g}/255{where}", notes=notes
    )


def _by_seed(one: Experiment, found: dict[str, Seen], epsilon: float) -> dict[Any, Seen]:
    runs = one.rows.drop_duplicates("seed").set_index("seed")["run"]
    return {s: found[run] for s, run in runs.items() if run in found and epsilon in found[run].right}
