"""A finished model as a folder for others: weights, what timm needs to load them, and a card that says what they are.

The card is made of what the run folders recorded and of nothing else; a number without its n and interval is not in it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from sandglass.backbones import BACKBONES
from sandglass.config import registers
from sandglass.errors import Exit, Problem, did_you_mean
from sandglass.onnx import FILE, convert
from sandglass.registry import Register
from sandglass.report.statistics import wilson
from sandglass.runs import RunFolder, read_json
from sandglass.study import PROTOCOL, Run

SHARES = {"top1", "top5", "robust_top1"}  # of n images, hence with an interval
FILES = ("model.safetensors", "config.json", "run.json")


def export(root: Path, runs: Iterable[Run], name: str, to: Path, *, onnx: bool = False) -> None:
    """Write the new folder `to` with the model of the pretrain or finetune run `name` and its README.md.

    Of `runs`, the finished ones that judge this model give the card its numbers. `onnx` adds the model as an ONNX
    file, compared with it. Raises Problem: C-130 (78) no such run; R-130 (66) it is not done, or not whole; R-131 (73)
    `to` is there; those of sandglass.onnx.convert.
    """
    planned = list(runs)
    ours = {run.name: run for run in planned if run.stage in ("pretrain", "finetune")}
    if name not in ours:
        raise Problem("C-130", Exit.CONFIG, f"no run '{name}' with a model in this study", fix=did_you_mean(name, ours))
    run = ours[name]
    folder = RunFolder(root, run)
    if not folder.done(deep=True):
        what = f"{run.key} is not done, or not whole"
        raise Problem("R-130", Exit.MISSING, what, fix=f"sandglass {run.stage} {name}")
    if to.exists():
        what = f"{to} is there already"
        raise Problem("R-131", Exit.CANNOT_WRITE, what, fix="name a new folder", kept="nothing changed")
    judges = [other for other in planned if run.key in other.needs and other.stage in ("probe", "finetune", "attack")]
    done = [RunFolder(root, other) for other in judges if RunFolder(root, other).done()]
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as place:
        draft = Path(place, to.name)
        draft.mkdir()
        for file in FILES:
            shutil.copy2(folder.results / file, draft / file)
        away = convert(draft, run.settings["size"]) if onnx else None
        (draft / "README.md").write_text(card(folder, done, away), encoding="utf-8")
        draft.rename(to)


def card(folder: RunFolder, judges: Iterable[RunFolder], away: float | None = None) -> str:
    """README.md of the model in `folder`, with the numbers of itself and of the finished runs that judged it.

    `away` is how far the outputs of its ONNX file are from its own, None where there is no such file.
    """
    run = folder.run
    about, result = read_json(folder.results / "run.json"), read_json(folder.result)
    info = read_json(folder.root / "results" / "data" / run.need("data") / "info.json")
    shape = read_json(folder.results / "config.json")
    parts = [
        f"---\nlibrary_name: timm\ntags: [{_task(shape)}, {run.stage}, sandglass]\n---\n# {run.name}",
        _summary(run, about, info),
        "## Use\n\n" + _use(run, shape, away),
        "## Numbers\n\n" + _numbers([folder, *judges]),
        "## Protocol\n\n" + _protocol(run),
        "## Data\n\n" + _data(info),
        "## Provenance\n\n" + _provenance(run, about, result),
        "## Citation\n\n" + _citation(run, about, info),
    ]
    return "\n\n".join(parts) + "\n"


def _task(shape: dict[str, Any]) -> str:
    return "image-classification" if shape["num_classes"] else "image-feature-extraction"


def _summary(run: Run, about: dict[str, Any], info: dict[str, Any]) -> str:
    s, derived = run.settings, about["derived"]
    if run.stage == "pretrain":
        how = f"pretrained with {_one(s['objective'])} under the views {_one(s['views'])}"
    else:
        auxiliary = " and ".join(s["auxiliary"])
        how = f"trained with labels ({s['init']}" + (f", with {auxiliary})" if auxiliary else ")")
    trained = f"{derived['parameters']:,} trained parameters, images of {s['size']} px"
    length = f"{s['train']['epochs']} epochs, seed {run.seed}"
    return f"`{s['backbone']}` ({trained}), {how} on {derived['images']:,} images of {info['name']} for {length}."


def _use(run: Run, shape: dict[str, Any], away: float | None) -> str:
    ours = run.settings["backbone"] in BACKBONES
    load = "from sandglass.backbones import grid  # registers this architecture with timm\n" if ours else ""
    norm = shape["pretrained_cfg"]
    mean, std = (", ".join(f"{value:.4f}" for value in norm[key]) for key in ("mean", "std"))
    gives = f"logits of {shape['num_classes']} classes" if shape["num_classes"] else "features, without a classifier"
    return (
        f"```python\nimport timm\n{load}\n"
        "model = timm.create_model('local-dir:FOLDER', pretrained=True).eval()\n```\n\n"
        f"Takes RGB in 0..1 at {run.settings['size']} px, less the mean ({mean}), by the deviation ({std}).\n"
        f"Gives {gives}."
    ) + ("" if away is None else f"\n\n{_onnx(away)}")


def _onnx(away: float) -> str:
    return (
        f"`{FILE}` takes the same images as float32 `images` (batch, 3, height, width), without torch. On noise, in\n"
        f"batches of 1 and 5, ONNX Runtime's output was at most {away:.1e} of the largest output away from the model's."
    )


def _numbers(folders: list[RunFolder]) -> str:
    """Every share with its interval: of this run first, then of those that judged it."""
    lines = ["| judged by | metric | split | value | 95 % interval | n |", "|---|---|---|---:|---:|---:|"]
    for folder in folders:
        label = _label(folder.run)
        for row in read_json(folder.result)["rows"]:
            if row["metric"] in SHARES:
                metric = row["metric"] + (f", epsilon {row['epsilon']:g}/255" if row.get("epsilon") is not None else "")
                ends = wilson(row["value"] * row["n"], row["n"])
                value, low, high = (f"{100 * max(0.0, share):.2f}" for share in (row["value"], *ends))
                lines.append(f"| {label} | {metric} | {row['split']} | {value} % | {low} .. {high} | {row['n']:,} |")
    if len(lines) == 2:
        return "None: nothing has judged this model yet."
    return "\n".join(lines) + (
        "\n\nIntervals are Wilson's, over the n images: they say how well this one network is known, and nothing of\n"
        "other seeds. A mean over seeds is in the study's report."
    )


def _label(run: Run) -> str:
    s = run.settings
    idea = _one(s["probe"]) if run.stage == "probe" else _one(s["attack"]) if run.stage == "attack" else ""
    share = f", {s['labels']:.3g} of the labels" if s.get("labels", 1.0) != 1.0 else ""
    return f"{run.stage} {idea}".strip() + share


def _protocol(run: Run) -> str:
    text = yaml.safe_dump(run.settings, sort_keys=True, allow_unicode=True)
    return f"Version {PROTOCOL[run.stage]} of the stage {run.stage}, with these values:\n\n```yaml\n{text}```"


def _data(info: dict[str, Any]) -> str:
    counts = ", ".join(f"{n:,} {split}" for split, n in info["counts"].items())
    lines = [f"- {info['name']}: {counts}; {info['split_rule']}", f"- licence: {info['licence']}"]
    if info["licence"] == "not stated":
        lines[-1] += " — find out before you pass these weights on"
    names = info["classes"]
    lines.append(f"- {len(names)} classes: {', '.join(names[:20])}" + (" ..." if len(names) > 20 else ""))
    lines += [f"- citation: {info['citation']}"] if info["citation"] else []
    lines += [f"- {info['homepage']}"] if info["homepage"] else []
    lines.append(f"- fingerprint of the packed images and labels: `{info['fingerprint']}`")
    return "\n".join(lines)


def _provenance(run: Run, about: dict[str, Any], result: dict[str, Any]) -> str:
    git = about["git"]
    commit = f"commit `{git['commit']}`" + (" with changes" if git["changed"] else "") if git else "no git commit"
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if name != "platform")
    lines = [
        f"- run `{run.key}`, seed {run.seed}, {commit}, begun {about['started']}",
        f"- {result['minutes']:.1f} min of training on {about['derived']['device']}, attempts: {result['attempts']}",
        f"- {versions}",
        f"- sha256 of model.safetensors: `{result['files']['model.safetensors']['sha256']}`",
    ]
    return "\n".join(lines + [f"- stands on `{key}`" for key in run.needs])


def _citation(run: Run, about: dict[str, Any], info: dict[str, Any]) -> str:
    """Sandglass, and the papers of the ideas that made this model."""
    ideas: list[tuple[Register, str]] = [(BACKBONES, run.settings["backbone"])]
    ideas += [(registers()["objectives"], name) for name in run.settings.get("objective", ())]
    ideas += [(registers()["auxiliary"], name) for name in run.settings.get("auxiliary", ())]
    papers = [f"- {name}: {paper}" for shelf, name in ideas if name in shelf and (paper := shelf.about(name)["paper"])]
    ours = f"- Sandglass {about['versions']['sandglass']}"
    return "\n".join([ours, *papers, *([f"- {info['name']}: {info['citation']}"] if info["citation"] else [])])


def _one(ideas: dict[str, Any]) -> str:
    return next(iter(ideas))
