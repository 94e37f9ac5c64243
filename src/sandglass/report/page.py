"""One static page for a study: the finding in words, then the evidence, then where it all comes from.

The page opens offline and runs no script; everything is inside it. Every name is escaped by the template, every mean
stands beside its n, and every comparison says what this number of seeds could have decided.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from markupsafe import Markup

from sandglass.errors import Problem
from sandglass.report import blog, figures, numbers, published, thesis, words
from sandglass.report.citations import citing
from sandglass.report.classes import by_class
from sandglass.report.closest import neighbours
from sandglass.report.collect import arrays, collect, history, missing, write_csv
from sandglass.report.experiments import (
    Experiment,
    against,
    common,
    compared,
    experiments,
    label,
    names,
    panels,
    telling,
    test_size,
)
from sandglass.report.finding import PROBES, finding
from sandglass.report.parts import Section, Table
from sandglass.report.rendering import render
from sandglass.report.robustness import ATTACKS, robustness
from sandglass.report.shares import label_shares
from sandglass.report.statistics import Comparison, summarise
from sandglass.runs import read_json, write_atomic

LAID_OUT = {"blog": blog, "thesis": thesis}  # published sources whose tables stand beside ours as they were printed
UNCURVED = {"step", "epoch", "lr", "total", "gradient_norm"}  # logged, but not what a reader of the page looks for
CURVES, SHEETS, MAPS, INSIDES = 9, 4, 6, 2  # at most so many pictures of a kind
COST = {"minutes": "minutes", "images_per_second": "images per second", "peak_memory_gib": "peak memory, GiB"}


def write(
    root: Path, study: dict[str, Any], runs: list[dict[str, Any]], folder: Path, provenance: dict[str, Any]
) -> Path:
    """Write results.csv, the files of `numbers` and index.html into `folder`; the path of the page.

    `root` holds results/; `study` has name, title, about, published, seeds; `runs` are in plan order, each with stage,
    name, seed, settings, needs, columns and done. Raises Problem, see `collect` and `published.answers`.
    """
    keys = [f"{run['stage']}/{run['name']}" for run in runs]
    claimed = [key for key, run in zip(keys, runs) if run["done"]]
    absent = set(keys) - set(claimed) | set(missing(root, claimed))
    frame = collect(root, [key for key in keys if key not in absent])
    page = _Page(root, study, [run for key, run in zip(keys, runs) if key not in absent], frame)
    links = [(key, quote(os.path.relpath(root / "results" / key, folder)), key in absent) for key in keys]
    facts = {key: value for key, value in provenance.items() if isinstance(value, str) and "\n" not in value}
    texts = {key: value for key, value in provenance.items() if isinstance(value, str) and "\n" in value}
    text = render(
        "page.html.j2",
        study={"title": "Sandglass report", "about": ""} | study,
        finding=[*finding(page.stages), *page.spent()],
        sections=[section for section in page.sections() if section],
        links=links,
        absent=[key for key in keys if key in absent],
        git=provenance.get("git") or {},
        versions=provenance.get("versions") or {},
        facts=facts,
        texts=texts,
    )
    write_csv(frame, folder / "results.csv")
    if len(page.beside):
        write_csv(LAID_OUT[page.source].csv(page.beside), folder / "beside.csv")
    numbers.write(root / "results", page.stages, folder)
    write_atomic(folder / "index.html", text)
    return folder / "index.html"


class _Page:
    """What the page says, from the table and the folders of the finished runs."""

    def __init__(self, root: Path, study: dict[str, Any], runs: list[dict[str, Any]], frame: pd.DataFrame) -> None:
        self.results, self.study, self.runs = root / "results", study, runs
        self.stages = {stage: experiments(frame, stage) for stage in dict.fromkeys(frame["stage"])}
        self.frame = frame
        name = study.get("published") or ""
        self.source = name.partition("/")[0]
        laid_out = self.source in LAID_OUT
        self.beside = LAID_OUT[self.source].beside(name, runs, frame) if laid_out else pd.DataFrame()

    def sections(self) -> Iterator[Section]:
        yield self.probes()
        yield self.finetuned()
        yield label_shares(self.stages)
        yield by_class(self.stages, self.results, self._classes)
        yield self.robustness()
        yield self.published()
        yield self.curves("pretrain", "Pretraining", "objective")
        yield self.curves("finetune", "Finetuning", "auxiliary")
        yield self.views()
        yield neighbours(self.stages.get("probe", []), self.runs, self.results, self._classes)
        yield self.embeddings()
        yield self.inside()
        yield self.attacked()
        yield self.data()
        yield citing(self.runs)
        yield self.cost()
        yield self.everything()

    def having(self, stage: str, metric: str) -> list[Experiment]:
        """The experiments of a stage that have a number of this metric."""
        return [one for one in self.stages.get(stage, []) if len(one.values(metric))]

    # ------------------------------------------------------------------ results

    def probes(self) -> Section:
        section, some = Section("probes", "Frozen features"), self.having("probe", "top1")
        bases = {"against random": against(some, "init", "random")}
        self._accuracies(section, some, bases, paired=False)
        span, charts = _span(some, "top1"), []
        for probe in dict.fromkeys(one.ids["probe"] for one in some):
            these = [one for one in some if one.ids["probe"] == probe]
            for panel, lines in panels(these, ("init", "objective")):
                rows = [(name, one.ids["init"], list(one.values("top1"))) for name, one in lines]
                caption = ", ".join(filter(None, [PROBES.get(probe, probe), panel]))
                charts.append((caption, partial(figures.dots, rows, "test accuracy, %", span)))
        return _drawn(section, charts, "the table has them all.")

    def finetuned(self) -> Section:
        section, some = Section("finetuned", "Finetuned models"), self.having("finetune", "top1")
        bases = {
            "against none": against(some, "auxiliary", "none"),
            "against scratch": against(some, "init", "scratch"),
        }
        self._accuracies(section, some, bases, paired=True)
        span = _span(some, "top1")
        for panel, lines in panels(some, ("auxiliary" if "auxiliary" in telling(some) else "init",)):
            rows = [(name, name, list(one.values("top1"))) for name, one in lines]
            section.charts.append((panel, Markup(figures.dots(rows, "test accuracy, %", span))))
        return section

    def robustness(self) -> Section:
        return robustness(self.stages.get("attack", []), len(self.study.get("seeds") or []), self.runs, self.results)

    def published(self) -> Section:
        """The numbers that the study answers: as printed with their protocols, and ours beside theirs."""
        section, name = Section("published", "The published numbers this study answers"), self.study.get("published")
        if not name:
            return section
        source = published.SOURCES[name.partition("/")[0]]
        section.text.append(f"{source}. The protocols are not the same: what stands side by side is not a comparison.")
        if len(self.beside):
            section.tables += LAID_OUT[self.source].tables(self.beside, len(self.study.get("seeds") or []))
        kept = ["data set", "model", "setting", "metric", "printed", "status", "note"]
        for table, rows in published.answers(name).groupby("table", sort=False):
            about = published.TABLES[str(table)]
            facts = (f"{key}: {'not stated' if value is None else value}" for key, value in about.protocol.items())
            caption = f"Protocol. {'; '.join(facts) or 'Not recorded'}."
            folded = f"{table}: {about.caption} ({len(rows)} numbers)"
            section.tables.append(Table(kept, 4, rows[kept].to_numpy().tolist(), caption, folded))
        return section

    # ------------------------------------------------------------------ what can be seen

    def curves(self, stage: str, title: str, by: str) -> Section:
        section = Section(f"{stage}-curves", title, ["Thin lines are seeds, bold lines their mean."])
        charts = []
        for panel, lines in panels(self.stages.get(stage, []), (by,)):
            tables = {name: [history(self.results / stage / run) for run in one.runs] for name, one in lines}
            logged = dict.fromkeys(column for some in tables.values() for table in some for column in table.columns)
            for metric in [name for name in logged if name not in UNCURVED]:
                groups = {name: [_curve(table, metric) for table in some] for name, some in tables.items()}
                charts.append((", ".join(filter(None, [metric, panel])), partial(figures.curves, groups, metric)))
        return _drawn(section, charts, "metrics.jsonl in a run's folder has everything logged.")

    def views(self) -> Section:
        section = Section("views", "What the networks saw")
        seen: set[tuple[str, ...]] = set()
        for run in self.runs:
            data, recipe = run["columns"].get("data set", ""), run["columns"].get("views", "")
            about = (data, recipe, str(run["settings"].get("views")))
            if run["stage"] in ("pretrain", "finetune") and about not in seen and len(seen) < SHEETS:
                found = arrays(self.results / run["stage"] / run["name"] / "views.npz")
                if "original" in found:
                    seen.add(about)
                    made = [found[f"view{v}"] for v in range(len(found) - 1)]
                    caption = f"{recipe} on {data}, for {run['stage']}; from top to bottom the original and its views"
                    section.sheets.append((caption, figures.views(found["original"], made)))
        return section

    def embeddings(self) -> Section:
        section = Section("maps", "Maps of the features")
        seen: set[str] = set()
        section.text.append(
            "Test images in the plane of the first two principal components of their features: the directions of "
            "largest spread, chosen without labels. Classes that overlap here may be apart in other directions."
        )
        some = self.stages.get("probe", [])
        columns = [column for column in telling(some) if column != "probe"]
        for one in some:
            name = label(one, columns)
            if name not in seen and len(seen) < MAPS:
                found = arrays(self.results / "probe" / one.runs[0] / "embedding.npz")
                if found:
                    seen.add(name)
                    chart = figures.embedding(found["xy"], found["labels"], self._classes(one.ids["data set"]))
                    caption = f"seed {one.seed}, {len(found['xy']):,} test images"
                    section.charts.append((", ".join(filter(None, [name, caption])), Markup(chart)))
        return section

    def inside(self) -> Section:
        """Stages and attention of a trained network of each backbone, where weights and images are at hand."""
        section, seen = Section("inside", "Inside the networks"), set[str]()
        for run in sorted(self.runs, key=lambda run: run["stage"] != "pretrain"):
            folder, backbone = self.results / run["stage"] / run["name"], run["columns"].get("backbone", "")
            if (folder / "model.safetensors").is_file() and backbone not in seen and len(seen) < INSIDES:
                from sandglass.report import inside  # not at the top: it imports torch and timm

                seen.add(backbone)
                packed = self.results / next(key for key in run["needs"] if key.startswith("data/"))
                try:
                    gallery = inside.gallery(folder, packed)
                except (Problem, RuntimeError, NotImplementedError, AttributeError) as error:
                    section.notes.append(f"{backbone} could not be looked into: {error}")
                    continue
                if gallery:
                    said = [run["stage"], backbone, run["columns"].get("objective", ""), f"seed {run['seed']}"]
                    gallery.caption = ", ".join(filter(None, said))
                    section.galleries.append(gallery)
        section.text.append(
            "Cells of like colour are alike to a stage (three principal components as red, green and blue; colours of "
            "two stages have nothing to do with each other). Attention: what a cell gets from all others in the last "
            "layer of a stage, mean over heads; the brightest gets most."
        )
        return section

    def attacked(self) -> Section:
        section, some = Section("attacked", "Attacked images"), self.stages.get("attack", [])
        columns = [column for column in telling(some) if column != "attack"]
        for attack in dict.fromkeys(one.ids["attack"] for one in some):
            one = next(one for one in some if one.ids["attack"] == attack)
            found = arrays(self.results / "attack" / one.runs[0] / "examples.npz")
            if found and attack != "masking":
                pictures, factor = figures.attacked(found, self._classes(one.ids["data set"]))
                radius = ATTACKS.get(attack, attack.upper())
                if "epsilon" in found:
                    radius += f" at ε = {float(np.ravel(found['epsilon'])[0]):g}/255"
                name = ", ".join(filter(None, [radius, label(one, columns), f"seed {one.seed}"]))
                rows = f"from top to bottom clean, the change × {factor:g} around grey, attacked"
                section.sheets.append((f"{name}; {rows}", pictures))
        return section

    # ------------------------------------------------------------------ facts

    def data(self) -> Section:
        section = Section("data", "Data")
        for info in self._infos().values():
            counts = ", ".join(f"{split} {n:,}" for split, n in info.get("counts", {}).items())
            facts = {
                "images": counts,
                "classes": f"{len(info.get('classes', []))}",
                "licence": info.get("licence") or "not recorded: find it out before you publish",
                "citation": info.get("citation") or "not recorded",
                "homepage": info.get("homepage"),
                "fingerprint": info.get("fingerprint"),
            }
            rows = [[key, str(value)] for key, value in facts.items() if value]
            section.tables.append(Table([str(info.get("name")), ""], 2, rows))
        return section

    def spent(self) -> Iterator[tuple[str, str]]:
        """How long all of it took, for those who read no further than the finding."""
        took = self.frame[self.frame["metric"] == "minutes"].groupby("run")["value"].sum()
        if len(took):
            devices = {run["name"]: self._device(run) for run in self.runs}
            gpu = {name: device for name, device in devices.items() if device not in ("", "cpu")}
            hours = sum(took.get(name, 0.0) for name in gpu) / 60
            kinds = ", ".join(dict.fromkeys(gpu.values()))
            on = f"of these {hours:.1f} GPU hours ({kinds})" if gpu else "without a GPU"
            text = f"{words.minutes(took.sum())} in {words.times(len(took), 'run')}"
            yield "Cost", f"{text}, {on}. Energy was not measured."

    def cost(self) -> Section:
        section = Section("cost", "Cost")
        some = [one for stage in ("pretrain", "finetune") for one in self.stages.get(stage, [])]
        columns, rows = telling(some), []
        for one in some:
            found = [list(one.values(metric)) for metric in COST]
            if any(found):
                cells = [words.number(summarise(values)) if values else "–" for values in found]
                rows.append([one.ids["stage"], *names(one, columns), str(max(map(len, found))), *cells])
        if rows:
            section.tables.append(Table(["stage", *columns, "n", *COST.values()], 1 + len(columns), rows, "Per run."))
        minutes = (
            self.frame[self.frame["metric"] == "minutes"].groupby("stage", sort=False)["value"].agg(["sum", "size"])
        )
        parts = [
            f"{stage} {words.minutes(total)} ({words.times(n, 'run')})" for stage, total, n in minutes.itertuples()
        ]
        section.text.append(f"In all {words.minutes(minutes['sum'].sum())}: {', '.join(parts)}.")
        devices = Counter(filter(None, map(self._device, self.runs)))
        if devices:
            told = (f"{name} ({words.times(n, 'run')})" for name, n in devices.items())
            section.text.append(f"Devices: {', '.join(told)}.")
        return section

    def everything(self) -> Section:
        """Every number, summarised over seeds, for those who look for one."""
        section = Section("everything", "Every number")
        section.text.append("Shares are fractions here. results.csv beside this page has the number of every seed.")
        for stage, some in self.stages.items():
            columns, rows = telling(some), []
            for one in some:
                parts = one.rows.groupby(["metric", "split", "epsilon"], sort=False, dropna=False)["value"]
                for (metric, split, epsilon), values in parts:
                    found = list(values.dropna())
                    strength = "" if math.isnan(epsilon) else f"ε {epsilon:g}/255"
                    numbers = [str(len(found)), words.number(summarise(found)) if found else "–"]
                    rows.append([*names(one, columns), metric, " ".join(filter(None, [split, strength])), *numbers])
            head = [*columns, "metric", "on", "n", "mean ± deviation"]
            caption = words.sentence(common(some, columns))
            section.tables.append(Table(head, len(columns) + 2, rows, caption, f"{stage}: {len(rows)} numbers"))
        return section

    # ------------------------------------------------------------------ parts

    def _accuracies(
        self, section: Section, some: list[Experiment], bases: dict[str, dict[Experiment, Experiment]], paired: bool
    ) -> None:
        """A row per experiment: n, accuracy, interval, and the difference to each of its bases."""
        bases = {name: base for name, base in bases.items() if base}
        columns, rows = telling(some), []
        tests: list[Comparison] = []
        for one in some:
            values = one.values("top1")
            row = [*names(one, columns), self._n(values), words.percent(list(values))]
            row.append(words.interval(list(values), one.images("top1")))
            for base in bases.values():
                test = compared(one, base[one], "top1", paired=paired) if one in base else None
                tests += [test] if test else []
                row.append(words.cell(test))
            rows.append(row)
        if rows:
            head = [*columns, "n", "accuracy, %", "95 % interval", *bases]
            notes = [*words.limits(tests), *test_size(some, "top1")]
            if any(len(one.values("top1")) == 1 for one in some):
                notes.append("* One seed: the interval is Wilson's, of the test images alone.")
            section.tables.append(Table(head, len(columns), rows, words.sentence(common(some, columns)), notes=notes))

    def _n(self, values: pd.Series) -> str:
        """How many seeds, and of how many if some are missing."""
        asked = len(self.study.get("seeds") or [])
        return words.of(len(values), asked)

    def _infos(self) -> dict[str, dict[str, Any]]:
        """What packing wrote about each data set."""
        packed = {run["columns"].get("data set", ""): run["name"] for run in self.runs if run["stage"] == "data"}
        files = {data: self.results / "data" / name / "info.json" for data, name in packed.items()}
        return {data: read_json(file) for data, file in files.items() if file.is_file()}

    def _classes(self, data: str) -> list[str]:
        return [str(name) for name in self._infos().get(data, {}).get("classes", [])]

    def _device(self, run: dict[str, Any]) -> str:
        derived = read_json(self.results / run["stage"] / run["name"] / "run.json").get("derived") or {}
        return str(derived.get("device", ""))


def _curve(table: pd.DataFrame, metric: str) -> figures.Curve:
    """epochs and values of one seed where it has logged the metric."""
    rows = table.dropna(subset=[metric]) if metric in table else pd.DataFrame({"epoch": [], metric: []})
    return rows["epoch"].to_numpy(float), rows[metric].to_numpy(float)


def _span(some: list[Experiment], metric: str) -> tuple[float, float]:
    """The lowest and highest value over all seeds, so that charts beside each other share an axis."""
    values = [value for one in some for value in one.values(metric)]
    return (min(values), max(values)) if values else (0.0, 1.0)


def _drawn(section: Section, charts: Sequence[tuple[str, Callable[[], str]]], elsewhere: str) -> Section:
    """The section with the first of its charts."""
    section.charts = [(caption, Markup(draw())) for caption, draw in charts[:CURVES]]
    if len(charts) > CURVES:
        section.notes.append(f"{len(charts) - CURVES} more are not drawn; {elsewhere}")
    return section
