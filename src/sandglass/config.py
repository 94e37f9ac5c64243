"""params.yaml -> frozen, strict settings. Every mistake is reported with its line and the nearest right word."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sandglass.errors import Exit, Problem, did_you_mean
from sandglass.registry import Register, default
from sandglass.strict_yaml import Lines, Path_, read

# --------------------------------------------------------------------------------------------- settings


class Strict(BaseModel):
    """No unknown keys, no silent conversions, no changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Fraction = Annotated[float, Field(gt=0, le=1)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}$"
Name = Annotated[str, Field(pattern=NAME)]


class OwnSet(Strict):
    """A data set of the user's own."""

    format: Literal["folder", "images", "cifar10", "cifar100", "stl10", "imagenette", "nabirds"]
    source: str  # a folder or an archive: path or URL
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    licence: str = "not stated"


class Data(Strict):
    """Where data comes from and how it is packed."""

    root: str = "data"  # archives are kept in <root>/raw
    mirror: str | None = None  # folder or URL searched before the official address
    store_size: Annotated[int, Field(ge=8, le=2048)] | None = None  # px of the shorter side; null: as it comes
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1  # of the training split, cut by recorded indices
    on_bad_image: Literal["error", "skip"] = "error"
    sets: dict[Name, OwnSet] = {}


class OwnBackbone(BaseModel):
    """A timm model with arguments, under a name of the user's."""

    model_config = ConfigDict(extra="allow", frozen=True)
    model: Name


class Optimisation(Strict):
    """What pretraining and finetuning share."""

    epochs: Annotated[int, Field(ge=1)] = 100
    batch_size: Annotated[int, Field(ge=2)] = 256  # images
    optimizer: Literal["adamw", "adam", "sgd", "lars"] = "adamw"
    lr_per_256: Annotated[float, Field(gt=0)] = 5e-4  # peak; times batch_size / 256
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # sgd and lars
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    decay: Literal["weights", "everything"] = "weights"  # weights: not norms, biases, positions, tokens
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: Annotated[float, Field(ge=0)] = 10.0
    clip_norm: Annotated[float, Field(ge=0)] = 3.0  # 0: off
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on a GPU that has it
    on_collapse: Literal["stop", "report"] = "stop"  # stop: exit 76 when all representations have become the same
    backbone: Name | None = None  # null: the study's


class Pretrain(Optimisation):
    """Self-supervised (or supervised) pretraining."""

    objective: str = "byol"
    views: str = "default"  # default: the recipe the objective names
    # What the objective's file names so (cnn, transformer, blog): the values of TRAIN and, where it has one of that
    # name, the settings of the preset. A study's own values go first.
    optimisation: Name | None = None
    online_probe: bool = False  # a linear classifier that learns beside and changes nothing


class Finetune(Optimisation):
    """Supervised training, from scratch or from pretrained weights, with auxiliary tasks."""

    epochs: Annotated[int, Field(ge=1)] = 100
    batch_size: Annotated[int, Field(ge=2)] = 128
    lr_per_256: Annotated[float, Field(gt=0)] = 5e-4
    warmup_epochs: Annotated[float, Field(ge=0)] = 5.0
    init: Literal["scratch", "pretrained", "stem-frozen", "stem-tuned", "stem-random"] = "scratch"
    auxiliary: str = "none"  # names joined by '+'
    # What objectives/supervised.py names so (thesis, sound): its values, and the preset of that name of each auxiliary
    # task that has one. A study's own values go first.
    optimisation: Name | None = None
    split: Literal["train", "trainval"] = "train"  # trainval: the validation images too; nothing is left to choose by
    labels: Fraction = 1.0  # of the training labels; nested, stratified
    views: str = "crop_flip"
    stem_lr_scale: Annotated[float, Field(gt=0, le=1)] = 0.1  # of the learning rate, for stem-tuned


class Probe(Strict):
    """Frozen judgements of features."""

    probe: str = "linear"
    init: Literal["pretrained", "random"] = "pretrained"
    labels: Fraction = 1.0  # of the training labels; nested, stratified


class Attack(Strict):
    """Perturbations of test images, on finetuned models."""

    attack: str = "fgsm"
    images: Annotated[int, Field(ge=1)] | None = None  # n of the test split, evenly spaced; null: all


class Engine(Strict):
    """Values that do not change a result, and so are not part of a run's name."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 5.0  # at most this is lost; also after every epoch
    log_every_steps: Annotated[int, Field(ge=1)] = 10
    deadline_minutes: Annotated[float, Field(gt=0)] | None = None  # stop, save and exit 75 before this
    accumulate: Annotated[int, Field(ge=1)] = 1  # parts in which a batch is computed, to save memory
    graph: bool = True  # on a GPU, record the step once and play it again where every step is the same operations
    checkpointing: bool = False  # what a layer computed is computed again for its gradient, to save more


class Report(Strict):
    title: str = "Sandglass report"


# What a row of `exclude` may name, besides a setting of an idea (drloc.weight).
EXCLUDABLE = (
    "stage", "seed", "data set", "size", "backbone", "objective", "optimisation", "views", "init", "labels",
    "auxiliary", "probe", "attack",
)  # fmt: skip

STAGE_MODELS: dict[str, type[Strict]] = {
    "pretrain": Pretrain,
    "probe": Probe,
    "finetune": Finetune,
    "attack": Attack,
}


class Study(Strict):
    """A named grid of runs. Stage sections and idea sections hold values or lists of values to sweep."""

    about: str = ""
    published: str | None = None  # the published table it answers
    data: str | list[str]
    size: int | list[int]  # px
    backbone: str | list[str]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    pretrain: dict[str, Any] | None = None
    probe: dict[str, Any] | None = None
    finetune: dict[str, Any] | None = None
    attack: dict[str, Any] | None = None
    views: dict[str, dict[str, Any]] = {}
    objectives: dict[str, dict[str, Any]] = {}
    auxiliary: dict[str, dict[str, Any]] = {}
    probes: dict[str, dict[str, Any]] = {}
    attacks: dict[str, dict[str, Any]] = {}
    exclude: list[dict[str, Any]] = []


class Params(Strict):
    """The whole of params.yaml."""

    study: str
    data: Data = Data()
    engine: Engine = Engine()
    report: Report = Report()
    backbones: dict[Name, OwnBackbone] = {}
    pretrain: Pretrain = Pretrain()
    probe: Probe = Probe()
    finetune: Finetune = Finetune()
    attack: Attack = Attack()
    views: dict[str, dict[str, Any]] = {}
    objectives: dict[str, dict[str, Any]] = {}
    auxiliary: dict[str, dict[str, Any]] = {}
    probes: dict[str, dict[str, Any]] = {}
    attacks: dict[str, dict[str, Any]] = {}
    studies: dict[Name, Study]


def registers() -> dict[str, Register]:
    """The idea sections of params.yaml and the register each one configures. Imports no torch."""
    from sandglass.auxiliary import AUXILIARY
    from sandglass.evaluate import ATTACKS, PROBES
    from sandglass.objectives import OBJECTIVES
    from sandglass.views import RECIPES

    return {"views": RECIPES, "objectives": OBJECTIVES, "auxiliary": AUXILIARY, "probes": PROBES, "attacks": ATTACKS}


# --------------------------------------------------------------------------------------------- reading


def load(path: Path) -> Params:
    """Read and check params.yaml.

    Raises Problem: C-101 (66) no such file; C-1xx (78) anything wrong in it, all mistakes on one screen with lines.
    """
    tree, lines = read(path)
    found = [*_secrets(tree, (), str(path), lines)]  # first, and alone: other mistakes repeat what is wrong
    found = found or _model_problems(Params, tree, (), str(path), lines)
    if not found:
        found = [*_study_problems(tree, str(path), lines)]
    if found:
        more = f"\n(+{len(found) - 6} more)" if len(found) > 6 else ""
        raise Problem(
            "C-110",
            Exit.CONFIG,
            f"{len(found)} mistake{'s' * (len(found) > 1)} in {path}",
            where="\n".join(found[:6]) + more,
        )
    return Params.model_validate(tree)


# A password in an address, a key in its query, and tokens by the forms of those who give them out.
SECRET = re.compile(
    r"[A-Za-z][\w+.-]*://[^/\s]*@"
    r"|[?&](X-Amz-Signature|sig|signature|token|access_token|api_?key|key|secret|password)="
    r"|\b(hf_|gh[pousr]_|github_pat_|glpat-|xox[abp]-|sk-|AKIA|AIza|eyJ[\w-]+\.)[\w-]{16,}",
    re.IGNORECASE,
)


def _secrets(tree: Any, at: Path_, file: str, lines: Lines) -> Iterator[str]:
    """Each text that looks like a password or a token, which is not repeated."""
    if isinstance(tree, str) and SECRET.search(tree):
        what = "looks like a password or a token; runs and reports repeat their settings: name a fetched file's path"
        yield f"{file}:{lines.get(at, 1)}: {'.'.join(map(str, at))} {what}"
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in children:
        yield from _secrets(value, (*at, key), file, lines)


def resolve(register: Register, name: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Every declared setting of one idea: its defaults, then a preset, then the overrides.

    Raises Problem C-111 (78) for an unknown setting, a wrong type, or a value out of range.
    """
    declared = register.declared(name)
    values = {key: default(row) for key, row in declared.items()}
    overrides = dict(overrides)
    preset = overrides.pop("preset", None)
    if preset is not None:
        presets = register.presets(name)
        if preset not in presets:
            raise Problem(
                "C-111",
                Exit.CONFIG,
                f"{register.kind} {name} has no preset '{preset}'",
                fix=did_you_mean(preset, presets),
            )
        values |= presets[preset]
    for key, value in overrides.items():
        if key not in declared:
            raise Problem(
                "C-111", Exit.CONFIG, f"unknown setting {name}.{key}", fix=did_you_mean(key, [*declared, "preset"])
            )
        if wrong := _unfit(declared[key], value):
            raise Problem("C-111", Exit.CONFIG, f"{name}.{key}: {value!r} {wrong}")
        values[key] = float(value) if isinstance(default(declared[key]), float) else value
    return values


def natively_list(row: Any) -> bool:
    """Whether a declared setting is itself a list, so that a list is one value and not a sweep."""
    return isinstance(default(row), list)


def _unfit(row: Any, value: Any) -> str:
    """Why `value` cannot be this setting, or ''."""
    first = default(row)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(first, bool):
        return "" if isinstance(value, bool) else "is not true or false"
    if isinstance(first, float):
        if not number or not math.isfinite(value):
            return "is not a number"
    elif first is not None and not isinstance(value, type(first)):
        return (
            f"is not {'a whole number' if isinstance(first, int) else 'a list' if isinstance(first, list) else 'text'}"
        )
    if isinstance(row, tuple) and len(row) == 3 and number and not row[1] <= value <= row[2]:
        return f"is outside {row[1]:g} .. {row[2]:g}"
    if isinstance(first, list):
        one = (first[0] * 1.0, *row[1:]) if isinstance(row, tuple) else first[0] * 1.0
        return next(
            (f"holds {item!r}, which {wrong}" for item in value if (wrong := _unfit(one, item))),
            "" if value else "is empty",
        )
    if isinstance(row, tuple) and len(row) == 2 and value not in row[1]:
        return f"is not one of {', '.join(map(str, sorted(row[1])))}"
    return ""


def _model_problems(model: type[BaseModel], tree: Any, at: Path_, file: str, lines: Lines) -> list[str]:
    """Each mistake of `tree` against a model as 'file:line: text'."""
    try:
        model.model_validate(tree)
    except ValidationError as error:
        return [_tell(e, model, at, file, lines) for e in error.errors()]
    return []


def _tell(error: Any, model: type[BaseModel], at: Path_, file: str, lines: Lines) -> str:
    loc = at + tuple(error["loc"])
    while loc and loc not in lines:  # pydantic adds the branch of a union to the path
        loc = loc[:-1]
    name = ".".join(map(str, at + tuple(part for part in error["loc"] if not _union_branch(part)))) or "the file"
    place = f"{file}:{lines.get(loc, 1)}: "
    if error["type"] == "extra_forbidden":
        return f"{place}unknown key {name}; {did_you_mean(error['loc'][-1], _fields(model, error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"{place}{name} is missing"
    text = error["msg"].replace("Input should be", "should be").replace("String should", "should")
    if error["type"] == "too_short":
        text = "should hold at least one"
    elif error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] == NAME:
        text = "should be letters, digits and _ . + -, at most 80, the first a letter or digit"
    return f"{place}{name}: {error['input']!r} {text}"


def _union_branch(part: Any) -> bool:
    return isinstance(part, str) and ("[" in part or part in {"str", "int", "float", "none"})


def _fields(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """The keys allowed at a place inside a model."""
    here: Any = model
    for part in loc:
        fields = getattr(here, "model_fields", {})
        if part in fields:
            here = fields[part].annotation
        args = [a for a in getattr(here, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
        here = args[-1] if args else here
    return list(getattr(here, "model_fields", {}))


def _study_problems(tree: Any, file: str, lines: Lines) -> list[str]:
    """Mistakes that need to know about sweeps, registers and names."""
    from sandglass.data.catalog import CATALOG

    found: list[str] = []
    shelves = registers()

    def say(at: Path_, text: str) -> None:
        while at and at not in lines:
            at = at[:-1]
        found.append(f"{file}:{lines.get(at, 1)}: {text}")

    def ideas(section: str, given: dict[str, Any], at: Path_, sweeps: bool) -> None:
        register = shelves[section]
        for name, values in given.items():
            if name not in register:
                say((*at, name), f"unknown {register.kind} '{name}'; {did_you_mean(name, register)}")
                continue
            declared = register.declared(name)
            for key, value in values.items():
                sweep = sweeps and isinstance(value, list) and not natively_list(declared.get(key))
                for item in value if sweep else [value]:
                    try:
                        resolve(register, name, {key: item})
                    except Problem as problem:
                        say((*at, name, key), problem.what + (f"; {problem.fix}" if problem.fix else ""))

    for section in shelves:
        ideas(section, tree.get(section, {}), (section,), sweeps=False)
    if tree["study"] not in tree["studies"]:
        say(("study",), f"unknown study '{tree['study']}'; {did_you_mean(tree['study'], tree['studies'])}")
    sets = [*CATALOG, *(tree.get("data") or {}).get("sets", {})]
    for name, study in tree["studies"].items():
        here: Path_ = ("studies", name)
        for key in _listed(study["data"]):
            if key not in sets:
                say((*here, "data"), f"unknown data set '{key}'; {did_you_mean(key, sets)}")
        if len(set(study["seeds"])) < len(study["seeds"]):
            say((*here, "seeds"), f"repeated seeds {study['seeds']}")
        for stage, model in STAGE_MODELS.items():
            for key, value in (study.get(stage) or {}).items():
                for item in _listed(value):
                    found.extend(_model_problems(model, {key: item}, (*here, stage), file, lines))
        for section, key, none in (
            ("objectives", ("pretrain", "objective"), ()),
            ("views", ("pretrain", "views"), ("default",)),
            ("views", ("finetune", "views"), ()),
            ("auxiliary", ("finetune", "auxiliary"), ("none",)),
            ("probes", ("probe", "probe"), ()),
            ("attacks", ("attack", "attack"), ()),
        ):
            for value in _listed((study.get(key[0]) or {}).get(key[1], [])):
                for word in str(value).split("+") if section == "auxiliary" else [value]:
                    if word not in shelves[section] and word not in none:
                        kind = shelves[section].kind
                        say((*here, *key), f"unknown {kind} '{word}'; {did_you_mean(word, [*shelves[section], *none])}")
        for section in shelves:
            ideas(section, study.get(section, {}), (*here, section), sweeps=True)
        for i, row in enumerate(study.get("exclude") or []):
            for key in row:
                name, _, _ = key.partition(".")
                known = [*EXCLUDABLE, *(f"{name}.{own}" for own in _settings_of(shelves, name))]
                if key not in known:
                    say((*here, "exclude", i, key), f"exclude: unknown column '{key}'; {did_you_mean(key, known)}")
    return found


def _settings_of(shelves: dict[str, Register], name: str) -> list[str]:
    """The settings of an idea, in whichever register it is."""
    return [key for register in shelves.values() if name in register for key in register.declared(name)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
