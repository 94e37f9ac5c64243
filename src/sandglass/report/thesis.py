"""Tables 4.1 to 4.6 of the thesis laid out as they were printed, and ours beside theirs.

Theirs are single runs, chosen by the test set. Ours are means over seeds, each with its interval and the exact test
against cross-entropy alone, corrected over the table; what so few runs cannot decide is said in words.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pandas as pd

from sandglass.report import published, words
from sandglass.report.parts import Table
from sandglass.report.statistics import Comparison, compare, holm, summarise

MODELS = {"resnet312": "ResNet", "vit312": "ViT", "t2t312": "T2T", "cvt312": "CvT"}
SETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}  # by name, else by format
COPIES = {"cifar10_jpeg": "CIFAR-10"}  # JPEG of quality 75, training and test images alike
TASKS = {"drloc", "masked_embedding"}
BASE = "cross-entropy"
EPSILON = 1.0  # in 1/255
TEST_IMAGES = 10_000  # theirs
CELL = ["table", "data set", "model", "setting", "metric", "optimisation", "reading"]
FAMILIES = (BASE, "DRLoc", "ME", "both")


def place(run: dict[str, Any], packed: dict[str, Any]) -> tuple[str, str, str] | None:
    """Where the thesis prints a finetuned model: (data set, model, setting), or None if nowhere.

    `run` and `packed` are the settings of the finetuning and of its data.
    """
    data = (SETS | COPIES).get(packed["data"]) or SETS.get(packed.get("format", ""))
    model, tasks = MODELS.get(run["backbone"]), run["auxiliary"]
    if data is None or model is None or run["init"] != "scratch" or not set(tasks) <= TASKS:
        return None
    drloc, me = tasks.get("drloc", {"weight": 0.0}), tasks.get("masked_embedding", {"weight": 0.0, "ratio": 0.0})
    return data, model, published.auxiliaries(drloc["weight"], me["weight"], me["ratio"])


def reading(attack: dict[str, Any]) -> str:
    """Which of the attacks that the thesis may have meant this is; "" if none. `attack` is the setting of a run."""
    fgsm = attack.get("fgsm")
    if not fgsm or EPSILON not in fgsm["epsilons"]:
        return ""
    return f"epsilon in {fgsm['space']} units, {'clipped to [0, 1]' if fgsm['clip'] else 'not clipped'}"


def beside(name: str, runs: list[dict[str, Any]], frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each number of the published table or source `name`, each optimisation of ours, each reading of FGSM.

    `runs` are the finished runs of the plan, `frame` their numbers (collect.py). Raises Problem, see published.answers.
    """
    ours = _Ours(runs, frame)
    rows = [row | answer for row in published.answers(name).to_dict("records") for answer in ours.answers(row)]
    table = pd.DataFrame(rows)
    if len(table):
        table["against base"] = _against_base(table)
        table["holm"] = _holm(table)
    return table


class _Ours:
    """What the runs of a study have to say to a published number."""

    def __init__(self, runs: list[dict[str, Any]], frame: pd.DataFrame) -> None:
        self.packed = {f"data/{run['name']}": run["settings"] for run in runs if run["stage"] == "data"}
        self.trained: dict[tuple[str, ...], dict[int, dict[str, Any]]] = defaultdict(dict)
        self.attacks: dict[tuple[str, str], str] = {}
        for run in runs:
            if run["stage"] == "finetune":
                where = place(run["settings"], self.packed[next(need for need in run["needs"] if need in self.packed)])
                if where:  # of several settings that the thesis does not tell apart, the first of the plan
                    self.trained[*where, run["columns"].get("optimisation", "")].setdefault(run["seed"], run)
            if run["stage"] == "attack" and (named := reading(run["settings"]["attack"])):
                for need in run["needs"]:
                    self.attacks.setdefault((need, named), run["name"])
        self.fallen = set(frame[(frame["stage"] == "finetune") & (frame["outcome"] == "collapsed")]["run"])
        self.optimisations = list(dict.fromkeys(key[-1] for key in self.trained))
        self.readings = list(dict.fromkeys(named for _, named in self.attacks))
        self.numbers: dict[tuple[Any, ...], tuple[float, int]] = {}
        columns = (frame[name].tolist() for name in ("stage", "run", "metric", "split", "epsilon", "value", "n"))
        for stage, run, metric, split, epsilon, value, n in zip(*columns):
            if metric in ("top1", "robust_top1") and (math.isnan(epsilon) or epsilon == EPSILON):
                self.numbers[stage, run, metric, split] = value, 0 if pd.isna(n) else int(n)

    def answers(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        attacked = row["metric"] == "robust_top1"
        for optimisation in self.optimisations:
            some = self.trained.get((row["data set"], row["model"], row["setting"], optimisation), {})
            for named in self.readings if attacked else [""]:
                found = {seed: self.number(run, named) for seed, run in some.items()}
                fallen = {seed for seed, run in some.items() if run["name"] in self.fallen}
                judged = {seed: number for seed, number in found.items() if number and seed not in fallen}
                chosen = [self.numbers.get(("finetune", run["name"], "top1", "val")) for run in some.values()]
                yield {
                    "optimisation": optimisation,
                    "reading": named,
                    "n": len(judged),
                    "collapsed": len(fallen),
                    "values": [number[0] for number in judged.values()],
                    "validation": [number[0] for number in chosen if number],
                    "test images": max((number[1] for number in judged.values()), default=0),
                    "not comparable": list(self.reasons(row, next(iter(some.values()), None))),
                }

    def number(self, run: dict[str, Any], named: str) -> tuple[float, int] | None:
        """The value and its count of images, clean or under the attack that is `named` so."""
        if not named:
            return self.numbers.get(("finetune", run["name"], "top1", "test"))
        attack = self.attacks.get((f"finetune/{run['name']}", named), "")
        return self.numbers.get(("attack", attack, "robust_top1", "test"))

    def reasons(self, row: dict[str, Any], run: dict[str, Any] | None) -> Iterator[str]:
        """Why a number of ours may not be compared with the published one."""
        if run is None:
            return
        protocol, settings, train = published.TABLES[row["table"]].protocol, run["settings"], run["settings"]["train"]
        if settings["arguments"]:
            yield f"{settings['backbone']} with {', '.join(f'{k} {v}' for k, v in settings['arguments'].items())}"
        if run["columns"]["data set"] not in SETS:
            copy = " (JPEG of quality 75)" if run["columns"]["data set"] in COPIES else ""
            yield f"data set {run['columns']['data set']}{copy}"
        for key, value in (
            ("size", settings["size"]),
            ("epochs", train["epochs"]),
            ("batch size", train["batch_size"]),
        ):
            if value != protocol[key]:
                yield f"{key} {value}, theirs {protocol[key]}"
        if settings["split"] == "train":
            yield "ours holds validation images out"
        optimiser = f"{train['optimizer'].capitalize()}, {train['lr_per_256'] * train['batch_size'] / 256:g}"
        if optimiser.lower() != protocol["optimiser"].lower().replace("1e-4", "0.0001"):
            yield f"optimiser {optimiser}, theirs {protocol['optimiser']}"


def _against_base(table: pd.DataFrame) -> list[Comparison | None]:
    """Each cell's exact test against cross-entropy alone, of the same table, model, data, optimisation and reading."""
    keys = [column for column in CELL if column != "setting"]
    rows = table.to_dict("records")
    bases = {tuple(row[key] for key in keys): row["values"] for row in rows if row["setting"] == BASE}
    found: list[Comparison | None] = []
    for row in rows:
        base = bases.get(tuple(row[key] for key in keys), [])
        tested = row["setting"] != BASE and row["values"] and base
        found.append(compare(row["values"], base) if tested else None)
    return found


def _holm(table: pd.DataFrame) -> list[float]:
    """The p values of each table, optimisation and reading, corrected for their number; nan where there is none."""
    adjusted = [math.nan] * len(table)
    places = table.reset_index(drop=True).groupby(["table", "metric", "optimisation", "reading"], sort=False).groups
    for some in places.values():
        tested = [i for i in some if table["against base"].iloc[i]]
        for i, p in zip(tested, holm([table["against base"].iloc[i].p for i in tested])):
            adjusted[i] = p
    return adjusted


# --------------------------------------------------------------------------------------------- layout


def tables(rows: pd.DataFrame, seeds: int) -> Iterator[Table]:
    """The six tables, each once for every optimisation, and Table 4.6 for every reading of its attack."""
    for (name, optimisation), part in rows.groupby(["table", "optimisation"], sort=False):
        if not part["n"].sum() + part["collapsed"].sum():
            continue
        if name == "thesis/4.4":
            yield _best(part, rows[rows["optimisation"] == optimisation], optimisation, seeds)
        elif name == "thesis/4.6":
            yield from _attacked(part, optimisation, seeds)
        else:
            yield _grid(part, list(dict.fromkeys(part["setting"])), part["setting"], optimisation, seeds)


def _grid(
    rows: pd.DataFrame, head: list[str], columns: pd.Series, optimisation: str, seeds: int, about: str = ""
) -> Table:
    """Models by settings, for each data set."""
    name = rows["table"].iloc[0]
    cells = {key: some.to_dict("records") for key, some in rows.groupby([rows["data set"], rows["model"], columns])}
    told = _told(rows)
    bases = {
        (row["data set"], row["model"], row["metric"]): row for row in rows[rows["setting"] == BASE].to_dict("records")
    }

    def text(some: list[dict[str, Any]]) -> str:
        bare = [bases.get((row["data set"], row["model"], row["metric"])) for row in some]
        return "\n".join(line for row, base in zip(some, bare) for line in _cell(row, base, told, seeds)) or "–"

    models = dict.fromkeys(zip(rows["data set"], rows["model"]))
    body = [[data, model, *(text(cells.get((data, model, column), [])) for column in head)] for data, model in models]
    caption = (
        f"Table {name.partition('/')[2]}, {published.TABLES[name].caption.lower()}: accuracy in %{about}, ours as mean "
        f"± deviation with its 95 % interval, n = {seeds} where no other is given. {_trained(optimisation)}"
    )
    return Table(["data set", "model", *head], 2, body, caption, notes=list(_notes(rows, told)))


def _attacked(rows: pd.DataFrame, optimisation: str, seeds: int) -> Iterator[Table]:
    """Clean and attacked accuracy side by side, for each reading of the attack."""
    for named in dict.fromkeys(rows[rows["n"] > 0]["reading"]):
        if not named:
            continue
        some = rows[rows["reading"].isin(["", named])]
        family = some["setting"].map(_family)
        columns = family + some["metric"].map({"top1": ", clean", "robust_top1": ", FGSM"})
        head = [f"{one}, {what}" for one in FAMILIES for what in ("clean", "FGSM")]
        table = _grid(some, head, columns, optimisation, seeds, f" on clean images and under FGSM of 1/255, {named}")
        table.notes.append(
            "A change in a column of FGSM is one of accuracy under attack. What an attack takes away (the drop) also "
            "grows with the accuracy on clean images."
        )
        yield table


def _best(rows: pd.DataFrame, everything: pd.DataFrame, optimisation: str, seeds: int) -> Table:
    """The best weight of each task: theirs as printed, ours by the validation images where there are some."""
    tried = everything[everything["table"].isin(["thesis/4.1", "thesis/4.2", "thesis/4.3"]) & (everything["n"] > 0)]
    tried = tried.drop_duplicates(["data set", "model", "setting"])
    judged, how = "values", "by the test images themselves, as theirs were: what is chosen so is optimistic"
    if tried["validation"].map(len).gt(0).all():
        judged, how = "validation", "by the mean accuracy on validation images"
    told = _told(tried)

    def text(data: str, model: str, family: str) -> str:
        theirs, ours = (
            some[(some["data set"] == data) & (some["model"] == model) & (some["setting"].map(_family) == family)]
            for some in (rows, tried)
        )
        lines = [f"theirs {printed}: {' or '.join(some['setting'])}" for printed, some in theirs.groupby("printed")]
        if len(ours):
            best = ours.loc[ours[judged].map(lambda values: summarise(values).mean).idxmax()].to_dict()
            lines += [best["setting"], *list(_cell(best, None, told, seeds))[1:]]
        return "\n".join(lines) or "–"

    models = dict.fromkeys(zip(rows["data set"], rows["model"]))
    body = [[data, model, *(text(data, model, family) for family in FAMILIES)] for data, model in models]
    caption = f"Table 4.4, the best of each: accuracy in %. Our weights are chosen {how}. {_trained(optimisation)}"
    return Table(["data set", "model", *FAMILIES], 2, body, caption, notes=list(_notes(tried, told)))


def _trained(optimisation: str) -> str:
    return f"Ours trained by the values named {optimisation or 'in the study'}."


def _family(setting: str) -> str:
    return "both" if " + " in setting else setting.split(" ")[0]


def _cell(row: dict[str, Any], base: dict[str, Any] | None, told: dict[str, set[str]], seeds: int) -> Iterator[str]:
    """The lines of one cell: theirs, ours, the change against cross-entropy alone, and what is wrong with this cell."""
    text = f"theirs {row['printed']}"
    if row["setting"] != BASE and base:
        change = row["value"] - base["value"]
        text += f" ({words.signed(change)}{'?' * (abs(change) < _noise(row['value'], base['value']))})"
    yield text
    if row["n"]:
        yield f"ours {words.percent(row['values'])} ({words.interval(row['values'], row['test images'])})"
        if row["against base"] is not None:
            yield f"{words.cell(row['against base'])}, Holm {words.probability(row['holm'])}"
    if row["n"] < seeds:
        yield f"ours n = {row['n']}" + (f", {row['collapsed']} collapsed" if row["collapsed"] else "")
    known = told[""] | told[row["data set"]] | told[row["model"]]
    yield from (reason for reason in row["not comparable"] if reason not in known)


def _noise(a: float, b: float) -> float:
    """Half the 95 % interval of a difference of two accuracies on TEST_IMAGES images each, by the images alone."""
    return 1.96 * math.sqrt((a * (1 - a) + b * (1 - b)) / TEST_IMAGES)


def _told(rows: pd.DataFrame) -> dict[str, set[str]]:
    """What is said below a table: of all its cells (""), of a data set, of a model. A cell says what is its alone."""
    some = rows[rows["n"] > 0]
    told = {"": _shared(some)}
    for column in ("data set", "model"):
        told |= {name: _shared(some[some[column] == name]) - told[""] for name in rows[column].unique()}
    return told


def _shared(rows: pd.DataFrame) -> set[str]:
    reasons = [set(some) for some in rows["not comparable"]]
    return set.intersection(*reasons) if reasons else set()


def _notes(rows: pd.DataFrame, told: dict[str, set[str]]) -> Iterator[str]:
    reasons = [*sorted(told[""]), "what theirs says nothing of: augmentation, schedule, precision"]
    first = "; ".join(reasons)
    yield f"No cell is a comparison of equals: {first}; theirs is one run, the weight chosen by the test images."
    for name, own in told.items():
        if name and own:
            yield f"Ours of {name}: {', '.join(sorted(own))}."
    yield (
        f"? marks a change between two of their single runs that {TEST_IMAGES:,} test images alone leave open (95 %); "
        "what another seed would have changed is unknown and comes on top."
    )
    tests = [test for test in rows["against base"] if test is not None]
    if tests:  # as groups: five pairs cannot reach 0.05, five against five can
        yield from words.limits(tests)
        yield "Runs of one seed share the order of their images, which makes a test between groups cautious."
    if (rows["n"] == 1).any():
        yield "* One seed: the interval is Wilson's, of the test images alone."


def csv(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows as flat columns: our mean, deviation and interval over seeds, the change and its p values."""
    found = [summarise(values) if values else None for values in rows["values"]]
    flat = rows.drop(columns=["values", "value", "validation", "against base"]).rename(columns={"printed": "theirs"})
    for key in ("mean", "deviation", "low", "high"):
        flat[key] = [getattr(s, key) if s else None for s in found]
    flat["change"] = [test.difference if test else None for test in rows["against base"]]
    flat["p"] = [test.p if test else None for test in rows["against base"]]
    flat["not comparable"] = ["; ".join(some) for some in flat["not comparable"]]
    return flat
