"""Settings -> plan: the runs of a study and what each needs. A pure function; imports no torch, touches no disk.

A run is named `<readable>-s<seed>-<8 hex>`. The hex is a hash of its stage, resolved settings, seed, the names of the
runs it needs, and the protocol version: a changed value is a new folder, a value put back finds its old results.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from sandglass.config import STAGE_MODELS, OwnBackbone, Params, Study, natively_list, registers, resolve
from sandglass.errors import Exit, Problem, did_you_mean

STAGES = ("data", "pretrain", "probe", "finetune", "attack", "report")

# Raise a stage's number when its code changes what it computes: its runs, and all below them, get new names.
PROTOCOL = {"data": 1, "pretrain": 3, "probe": 3, "finetune": 4, "attack": 3, "report": 1}


@dataclass(frozen=True)
class Run:
    """One execution of one stage with one resolved setting and one seed."""

    stage: str
    name: str
    seed: int | None
    settings: dict[str, Any] = field(repr=False)
    needs: tuple[str, ...]  # "stage/name" of the runs whose results it reads
    columns: dict[str, Any] = field(repr=False)  # what identifies it in a table

    @property
    def key(self) -> str:
        return f"{self.stage}/{self.name}"

    @property
    def folder(self) -> Path:
        """Below the results folder. The report of a study has one place, whatever it was made from."""
        return Path(self.stage, self.columns["study"] if self.stage == "report" else self.name)

    @property
    def result(self) -> Path:
        """The file whose presence means done."""
        return self.folder / (f"result-{self.name[-8:]}.json" if self.stage == "report" else "result.json")

    def need(self, stage: str) -> str:
        """The name of the run of `stage` that this one needs."""
        return next(key.partition("/")[2] for key in self.needs if key.startswith(f"{stage}/"))


def plan(params: Params, study: str | None = None) -> list[Run]:
    """All runs of a study, each after what it needs, the report last.

    Raises Problem C-120 (78) for an unknown study, C-122 for an optimisation nobody names, C-123 for a run that needs
    labels where there are none.
    """
    name = study or params.study
    if name not in params.studies:
        raise Problem("C-120", Exit.CONFIG, f"unknown study '{name}'", fix=did_you_mean(name, params.studies))
    return _Planner(params, name).plan()


class _Planner:
    def __init__(self, params: Params, name: str) -> None:
        self.params, self.name, self.study = params, name, params.studies[name]
        self.runs: dict[str, Run] = {}
        self.ideas: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        self.registers = registers()

    def plan(self) -> list[Run]:
        study = self.study
        for data, size, backbone, seed in itertools.product(
            _listed(study.data), _listed(study.size), _listed(study.backbone), study.seeds
        ):
            self.grid(study, data, size, backbone, seed)
        runs = list(self.runs.values())
        runs.sort(key=lambda run: STAGES.index(run.stage))  # stable: the order of the lists within a stage
        return [*runs, self.report(runs)]

    def grid(self, study: Study, data: str, size: int, backbone: str, seed: int) -> None:
        """The runs of one data set, size, backbone and seed."""
        packed = self.add("data", None, self.data_settings(data), (), {"data set": data}, data)
        if packed is None:
            return
        where = {"data": data, "size": size}
        about = {"data set": data, "size": size}
        pretrained: list[Run] = []
        for values in self.stage("pretrain"):
            model = values.pop("backbone") or backbone
            objective, views = values.pop("objective"), values.pop("views")
            optimisation = values.pop("optimisation") or ""  # its values are here
            if views == "default":
                views = _literal_views(self.registers["objectives"].rows[objective])
            settled = self.idea("objectives", objective, preset=optimisation)
            crops = self.registers["objectives"].about(objective).get("crops", {}).get(optimisation, {})
            for o, v in itertools.product(settled, self.idea("views", views)):
                settings = (
                    where
                    | self.backbone(model)
                    | {"objective": {objective: o}, "views": {views: v | crops}, "train": values}
                )
                columns = about | {
                    "backbone": model,
                    "objective": objective,
                    "views": views,
                    "optimisation": optimisation,
                    "init": "scratch",
                    "labels": 1.0,
                }
                run = self.add("pretrain", seed, settings, (packed,), columns, data, model, objective, views)
                if run:
                    pretrained.append(run)
        self.probes(packed, pretrained, where, about, backbone, seed)
        self.finetunes(packed, pretrained, where, about, backbone, seed)

    def probes(
        self, packed: Run, pretrained: list[Run], where: dict[str, Any], about: dict[str, Any], backbone: str, seed: int
    ) -> None:
        for values in self.stage("probe"):
            parents: list[Run | None] = list(pretrained) if values["init"] == "pretrained" else [None]
            for parent, p in itertools.product(parents, self.idea("probes", values["probe"])):
                model = parent.columns["backbone"] if parent else backbone
                own = {key: values[key] for key in ("init", "labels")}
                columns = about | {"backbone": model, "probe": values["probe"]} | own | _origin(parent)
                settings = where | self.backbone(model) | {"probe": {values["probe"]: p}} | own
                needs = (packed, parent) if parent else (packed,)
                origin = parent.columns["objective"] if parent else "random"
                self.add("probe", seed, settings, needs, columns, values["probe"], where["data"], model, origin)

    def finetunes(
        self, packed: Run, pretrained: list[Run], where: dict[str, Any], about: dict[str, Any], backbone: str, seed: int
    ) -> None:
        for values in self.stage("finetune"):
            model = values.pop("backbone") or backbone
            init, auxiliary, views, labels = (values.pop(key) for key in ("init", "auxiliary", "views", "labels"))
            split, optimisation = values.pop("split"), values.pop("optimisation") or ""  # its values are here
            stem = init in ("stem-frozen", "stem-tuned")
            if init == "pretrained":
                parents: list[Run | None] = [run for run in pretrained if run.columns["backbone"] == model]
            else:
                parents = list(pretrained) if stem else [None]
            if init != "stem-tuned":
                values.pop("stem_lr_scale")
            tasks = [] if auxiliary == "none" else auxiliary.split("+")
            sweeps = [self.idea("auxiliary", task, preset=optimisation) for task in tasks]
            for parent, v, *settled in itertools.product(parents, self.idea("views", views), *sweeps):
                settings = where | self.backbone(model) | {"init": init, "labels": labels, "views": {views: v}}
                settings |= {"split": split}
                settings |= {"auxiliary": dict(zip(tasks, settled)), "train": values}
                columns = about | {"backbone": model, "views": views, "init": init, "labels": labels}
                columns |= {"auxiliary": auxiliary} | _origin(parent, with_views=False)
                columns |= {"optimisation": optimisation} if optimisation else {}
                needs = (packed, parent) if parent else (packed,)
                origin = f"{init}.{parent.columns['objective']}" if parent else init
                run = self.add("finetune", seed, settings, needs, columns, where["data"], model, origin, auxiliary)
                if run:
                    self.attacks(packed, run)

    def attacks(self, packed: Run, model: Run) -> None:
        for values in self.stage("attack"):
            attack = values.pop("attack")
            for a in self.idea("attacks", attack):
                settings = {key: model.settings[key] for key in ("data", "size", "backbone", "arguments")}
                settings |= {"attack": {attack: a}} | values
                columns = {**model.columns, "attack": attack}
                words = (attack, *(str(model.columns[key]) for key in ("data set", "backbone", "init", "auxiliary")))
                self.add("attack", model.seed, settings, (packed, model), columns, *words)

    def report(self, runs: list[Run]) -> Run:
        needs = tuple(run.key for run in runs)
        settings = {"title": self.params.report.title, "about": self.study.about, "published": self.study.published}
        settings["pages"] = _report_sources()  # an edited template makes a new page
        name = _name((self.name,), None, _digest("report", settings, None, needs))
        return Run("report", name, None, settings, needs, {"study": self.name})

    # ------------------------------------------------------------------ parts

    def add(
        self,
        stage: str,
        seed: int | None,
        settings: dict[str, Any],
        needs: Iterable[Run],
        columns: dict[str, Any],
        *words: str,
    ) -> Run | None:
        """Register a run, once; None if the study excludes it (and so everything below it)."""
        keys = tuple(run.key for run in needs)
        name = _name(words, seed, _digest(stage, settings, seed, keys))
        run = Run(stage, name, seed, settings, keys, columns)
        if any(self.matches(run, row) for row in self.study.exclude):
            return None
        self.refuse_without_labels(run)
        return self.runs.setdefault(run.key, run)

    def refuse_without_labels(self, run: Run) -> None:
        """Raises Problem C-123 if the run needs labels and its data set is declared to have none."""
        data, s = run.settings.get("data"), run.settings
        own = self.params.data.sets.get(str(data))
        if own is None or own.format != "images":
            return
        needing = {
            run.stage: run.stage in ("probe", "finetune", "attack"),
            "pretrain.objective: supervised": "supervised" in s.get("objective", {}),
            "pretrain.online_probe": s.get("train", {}).get("online_probe", False),
        }
        if what := next((what for what, needs in needing.items() if needs), ""):
            raise Problem(
                "C-123",
                Exit.CONFIG,
                f"{what} needs labels, and no image of {data} has one",
                where=f"studies.{self.name}",
                why=f"data.sets.{data}.format: images",
                fix=f"leave it out, or exclude: [{{stage: {run.stage}, data set: {data}}}];\n"
                "with labels for some images: class folders and unlabelled/ beside them, format: folder",
                kept="nothing was started",
            )

    def matches(self, run: Run, row: dict[str, Any]) -> bool:
        """Whether a row of `exclude` names this run: all its keys agree; "drloc.weight" is a setting of an idea."""
        facts = {"stage": run.stage, "seed": run.seed, **run.columns}
        if any("." in key for key in row):
            facts |= self.ideas_of(run)
        return all(key in facts and facts[key] in _listed(value) for key, value in row.items())

    def ideas_of(self, run: Run) -> dict[str, Any]:
        """Every setting of every idea in this run and in those that it stands on: {"drloc.weight": 0.1}."""
        found: dict[str, Any] = {}
        for key in run.needs:
            found |= self.ideas_of(self.runs[key])
        for section in ("objective", "views", "auxiliary", "probe", "attack"):
            for name, values in run.settings.get(section, {}).items():
                found |= {f"{name}.{key}": value for key, value in values.items()}
        return found

    def data_settings(self, name: str) -> dict[str, Any]:
        """What packing depends on: not where archives lie, but what they are."""
        data = self.params.data
        own = data.sets.get(name)
        source: dict[str, Any] = {}
        if own:  # a checksum says what the data is wherever it lies
            source = {"format": own.format} | ({"sha256": own.sha256} if own.sha256 else {"source": own.source})
        keep = {"store_size": data.store_size, "val_fraction": data.val_fraction, "on_bad_image": data.on_bad_image}
        return {"data": name, **source, **keep}

    def backbone(self, name: str) -> dict[str, Any]:
        own = self.params.backbones.get(name)
        return {"backbone": own.model, "arguments": _arguments(own)} if own else {"backbone": name, "arguments": {}}

    def stage(self, stage: str) -> Iterator[dict[str, Any]]:
        """Every combination of a stage's values: defaults, then the study's, lists swept. Nothing if not asked for."""
        given = getattr(self.study, stage)
        if given is None:
            return
        defaults = getattr(self.params, stage).model_dump()
        for chosen in _product(given):
            if named := chosen.get("optimisation", defaults.get("optimisation")):
                objective = chosen.get("objective", defaults.get("objective", "supervised"))
                chosen = self.optimisation(stage, objective, named) | chosen
            yield STAGE_MODELS[stage].model_validate(defaults | chosen).model_dump()

    def optimisation(self, stage: str, objective: str, named: str) -> dict[str, Any]:
        """The values by which an objective's file says that it has been trained."""
        known = self.registers["objectives"].about(objective).get({"pretrain": "train"}.get(stage, stage), {})
        if named not in known:
            what = f"{objective} names no optimisation '{named}'"
            raise Problem("C-122", Exit.CONFIG, what, fix=did_you_mean(named, known) if known else "write its values")
        return dict(known[named])

    def idea(self, section: str, name: str, preset: str = "") -> list[dict[str, Any]]:
        """Every combination of one idea's settings, over those of `preset` if it has one of that name."""
        if (section, name, preset) not in self.ideas:
            register = self.registers[section]
            given = {"preset": preset} if preset in register.presets(name) else {}
            given |= getattr(self.params, section).get(name, {}) | getattr(self.study, section).get(name, {})
            declared = register.declared(name)
            lists = {key for key, row in declared.items() if natively_list(row)}
            self.ideas[section, name, preset] = [resolve(register, name, chosen) for chosen in _product(given, lists)]
        return [dict(values) for values in self.ideas[section, name, preset]]


def _origin(parent: Run | None, with_views: bool = True) -> dict[str, Any]:
    """What a run inherits from its pretraining, for tables."""
    if parent is None:
        return {"objective": "none"}
    keys = ("objective", "optimisation", *(("views",) if with_views else ()))
    return {key: parent.columns[key] for key in keys}


def _product(given: dict[str, Any], native: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
    """The product of the lists among the values; a natively listed key sweeps only as a list of lists."""
    axes = []
    for key, value in given.items():
        sweep = isinstance(value, list) and (key not in native or (value and all(isinstance(v, list) for v in value)))
        axes.append([(key, item) for item in value] if sweep else [(key, value)])
    for combination in itertools.product(*axes):
        yield dict(combination)


@lru_cache(maxsize=1)
def _report_sources() -> str:
    """A hash of the package's own report code and templates."""
    folder = Path(__file__).parent / "report"
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".py", ".j2", ".css"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _literal_views(row: str) -> str:
    """The recipe an objective names, read from its file without importing it."""
    from sandglass.registry import literals

    return str(literals(row.partition(":")[0])["VIEWS"])


def _arguments(own: OwnBackbone) -> dict[str, Any]:
    return dict(own.model_extra or {})


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _digest(stage: str, settings: dict[str, Any], seed: int | None, needs: tuple[str, ...]) -> str:
    facts = [stage, PROTOCOL[stage], settings, seed, sorted(needs)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def _name(words: Iterable[str], seed: int | None, digest: str) -> str:
    readable = "-".join(re.sub(r"[^A-Za-z0-9_.+]+", "_", word) for word in words)[:90]
    return f"{readable}{'' if seed is None else f'-s{seed}'}-{digest}"
