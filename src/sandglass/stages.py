"""What each stage of a run does, in order: read what it needs, compute, write its folder, result.json last."""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sandglass import slurm, weights
from sandglass.config import Params
from sandglass.engine import heap
from sandglass.engine.system import sampled
from sandglass.errors import PERMANENT, Exit, Problem
from sandglass.runs import RunFolder, read_json, sha256, write_atomic
from sandglass.study import Run, plan

Say = Callable[[str], None]


def execute(run: Run, params: Params, study: str, root: Path, say: Say, attempt: int = 1) -> None:
    """Compute one run, unless it is done. Raises Problem R-110 (66) if something it needs is not.

    From a scheduler's second `attempt` on, an error that repeating cannot mend is raised again without repeating.
    """
    folder = RunFolder(root, run, study)
    heap.keep_freed()
    if _processes() > 1:
        from sandglass import distributed

        if run.stage not in ("pretrain", "finetune"):
            raise Problem("T-112", Exit.CONFIG, f"{run.stage} runs in one process", fix="tasks: 1 for this rule")
        with distributed.joined():
            if distributed.rank() == 0:
                _lead(run, folder, params, say, attempt, distributed.tell)
            elif distributed.tell():
                _STAGES[run.stage](run, folder, params, _silent)
    else:
        _lead(run, folder, params, say, attempt, lambda go: go)


def _lead(run: Run, folder: RunFolder, params: Params, say: Say, attempt: int, tell: Callable[[bool], bool]) -> None:
    """What the process that writes does; `tell` says to the others whether there is something to do."""

    def told(text: str) -> None:
        say(text)
        folder.log(text)

    if folder.done() or folder.restore():
        tell(False)
        say(f"{run.key}: done already")
        return
    if attempt > 1 and (before := folder.failure()) and before.exit in PERMANENT:
        tell(False)
        raise before
    if run.stage != "report":
        for key in run.needs:
            if not (folder.root / "results" / key / "result.json").is_file():
                tell(False)
                raise Problem(
                    "R-110",
                    Exit.MISSING,
                    f"{run.key} needs {key}, which is not done",
                    fix=f"sandglass {key.replace('/', ' ')}",
                )
    with folder.lease():
        job = f", job {slurm.this_job()}" if slurm.this_job() else ""
        folder.log(f"{run.key}: begins on {socket.gethostname()}, process {os.getpid()}{job}")
        try:
            tell(True)
            with sampled(folder.state / "system.jsonl"):
                _STAGES[run.stage](run, folder, params, told)
        except Problem as problem:
            folder.failed(problem)
            raise
        except OSError as error:
            folder.failed(Problem.of(error))
            raise
        told(f"{run.key}: done")


def _processes() -> int:
    """That torchrun or srun started for this run."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def _silent(text: str) -> None:
    """The voice of a process that does not lead."""


def _data(run: Run, folder: RunFolder, params: Params, say: Say) -> None:
    from sandglass.data import catalog, download, pack

    settings = run.settings
    entry = catalog.resolve(settings["data"], params.data.sets)
    source = download.fetch(entry, folder.root / params.data.root / "raw", mirror=params.data.mirror, say=say)
    began = time.monotonic()
    info = pack.pack(
        entry,
        source,
        folder.results,
        store_size=settings["store_size"],
        val_fraction=settings["val_fraction"],
        seed=0,  # the validation split is the same for every run
        on_bad_image=settings["on_bad_image"],
    )
    folder.begin(source=str(source) if source else "embedded")
    rows = [{"metric": "images", "value": n, "split": split} for split, n in info["counts"].items()]
    say(f"{entry.name}: {', '.join(f'{n:,} {split}' for split, n in info['counts'].items())}; {info['split_rule']}")
    for what, n in ({"unusable images left out": info["skipped"]} | info["conversions"]).items():
        if n:
            say(f"  {n:,} {what}")
    folder.finish(rows, minutes=(time.monotonic() - began) / 60, fingerprint=info["fingerprint"])


def task_of(run: Run, folder: RunFolder, params: Params) -> Any:
    """The Task of a pretrain or finetune run, at its start. Raises Problem D-115 (66) if its data is not packed."""
    return {"pretrain": _pretraining, "finetune": _finetuning}[run.stage](run, folder, params)


def _pretraining(run: Run, folder: RunFolder, params: Params) -> Any:
    import torch

    from sandglass.data.loader import open_split
    from sandglass.engine.online import OnlineProbe
    from sandglass.engine.task import Task
    from sandglass.objectives import OBJECTIVES
    from sandglass.objectives._check import refuse_misfit
    from sandglass.views.recipes import sizes_of

    s = run.settings
    (name, values), *_ = s["objective"].items()
    kind = OBJECTIVES.get(name)
    split = open_split(_packed(folder, run), "train" if kind.needs_labels else "pretrain")
    classes = len(split.info["classes"])
    encoder = _encoder(folder, run, params, classes if kind.needs_labels else 0)
    objective = kind(encoder, values, classes).to(_device(params))
    (views,) = s["views"].values()
    refuse_misfit(name, objective, sizes_of(views, s["size"]), encoder)
    online = OnlineProbe(encoder.width, classes, _device(params)) if s["train"]["online_probe"] else None
    return Task(
        encoder, objective, {}, split, torch.arange(len(split)), s["views"], s["size"], s["train"], _seed(run),
        online=online,
    )  # fmt: skip


def _pretrain(run: Run, folder: RunFolder, params: Params, say: Say) -> None:
    from sandglass.evaluate.features import classify

    s, task = run.settings, task_of(run, folder, params)
    counts, packed = task.split.info["counts"], _packed(folder, run)
    judged = [part for part in ("val", "test") if counts.get(part)]

    def judge(part: str) -> list[dict[str, Any]]:
        rows = classify(task.encoder, packed, part, s["size"], _device(params), task.online)
        return [row | {"metric": f"online_{row['metric']}"} for row in rows]

    if task.online and "val" in judged:
        task.each_epoch = _validation(task, 20, lambda: judge("val"), "online_top1")
    if not _fit(run, folder, params, task, say):
        return
    rows = [row for part in judged for row in judge(part)] if task.online else []
    if task.each_epoch:
        best = max(row["val_online_top1"] for row in _logged(folder) if "val_online_top1" in row)
        n = counts["val"]  # what is logged has seven digits
        rows.append({"metric": "online_max_top1", "value": round(best * n) / n, "split": "val", "n": n})  # optimistic
    encoder = task.objective.judged(task.encoder)
    encoder.model.reset_classifier(0)
    weights.save(folder.results, encoder, s)
    weights.save_objective(folder.results, task.objective)
    _finish_training(folder, rows, task)


def _finetuning(run: Run, folder: RunFolder, params: Params) -> Any:
    import torch

    from sandglass.auxiliary import AUXILIARY
    from sandglass.data.loader import open_split
    from sandglass.data.splits import label_fraction
    from sandglass.engine.task import Task
    from sandglass.objectives import OBJECTIVES

    s, seed, device = run.settings, _seed(run), _device(params)
    split = open_split(_packed(folder, run), s["split"])
    classes = len(split.info["classes"])
    encoder = _encoder(folder, run, params, classes)
    frozen, scales = _initialise(encoder, run, folder, seed)
    objective = OBJECTIVES.get("supervised")(encoder, {}, classes).to(device)
    auxiliaries = {name: AUXILIARY.get(name)(encoder, values).to(device) for name, values in s["auxiliary"].items()}
    index = label_fraction(split.labels, s["labels"], seed=seed)
    return Task(
        encoder, objective, auxiliaries, split, torch.as_tensor(index), s["views"], s["size"], s["train"], seed,
        frozen=frozen, lr_scales=scales,
    )  # fmt: skip


def _finetune(run: Run, folder: RunFolder, params: Params, say: Say) -> None:
    from sandglass.evaluate.features import accuracy_rows, classify, said, scored

    s, task = run.settings, task_of(run, folder, params)
    encoder, packed, device = task.encoder, _packed(folder, run), _device(params)
    judge = None
    if task.split.info["counts"].get("val") and s["split"] != "trainval":
        judge = partial(classify, encoder, packed, "val", s["size"], device)
        task.each_epoch = _validation(task, 10, judge, "top1", "cross_entropy")
    if not _fit(run, folder, params, task, say):
        return
    _save_arrays(folder.results / "labelled.npz", index=task.index.numpy())
    weights.save(folder.results, encoder, s)
    scores, labels = scored(encoder, packed, "test", s["size"], device)
    _save_arrays(folder.results / "predictions.npz", **said(labels, scores.argmax(dim=1)))
    rows = accuracy_rows(scores, labels, "test") + (judge() if judge else [])
    _finish_training(folder, rows, task)


def _probe(run: Run, folder: RunFolder, params: Params, say: Say) -> None:
    from sandglass.evaluate import PROBES
    from sandglass.evaluate.features import Subject, embed, said
    from sandglass.evaluate.neighbours import nearest

    s = run.settings
    (name, values), *_ = s["probe"].items()
    folder.begin(**_derived(params))
    began = time.monotonic()
    encoder, pretrained = _encoder(folder, run, params, 0), None
    if s["init"] == "pretrained":
        pretrained = folder.root / "results" / "pretrain" / run.need("pretrain")
        weights.load(encoder, pretrained / "model.safetensors")
    model = hashlib.sha256(json.dumps([s["backbone"], s["arguments"]]).encode()).hexdigest()[:8]
    subject = Subject(
        encoder,
        _packed(folder, run),
        s["size"],
        _device(params),
        s["labels"],
        _seed(run),
        pretrained,
        kept=folder.root / "state" / "features" / model,
    )
    rows = PROBES.get(name)(subject, values, _seed(run))
    minutes = (time.monotonic() - began) / 60
    xy, labels = embed(subject.features.test, subject.features.test_labels)
    _save_arrays(folder.results / "embedding.npz", xy=xy, labels=labels)
    _save_arrays(folder.results / "labelled.npz", index=subject.labelled)
    _save_arrays(folder.results / "neighbours.npz", **nearest(subject))
    if (predicted := subject.answers.get("predicted")) is not None:
        _save_arrays(folder.results / "predictions.npz", **said(subject.features.test_labels, predicted))
    folder.finish(rows, minutes=minutes)


def _attack(run: Run, folder: RunFolder, params: Params, say: Say) -> None:
    from sandglass.evaluate import ATTACKS
    from sandglass.evaluate.attacks._base import under_attack
    from sandglass.evaluate.attacks._kept import Kept

    s = run.settings
    (name, values), *_ = s["attack"].items()
    packed = _packed(folder, run)
    classes = len(read_json(packed / "info.json")["classes"])
    encoder = _encoder(folder, run, params, classes)
    model_file = folder.root / "results" / "finetune" / run.need("finetune") / "model.safetensors"
    weights.load(encoder, model_file)
    derived = _derived(params)
    folder.begin(**derived)
    began = time.monotonic()
    model, images, labels = under_attack(encoder, packed, s["size"], s["images"], _device(params))
    kept = Kept(folder.state / "checkpoints", f"{sha256(model_file)} on {derived['device']}")
    rows, examples, predictions = ATTACKS.get(name)(model, images, labels, values, _seed(run), kept)
    _save_arrays(folder.results / "examples.npz", **examples)
    _save_arrays(folder.results / "predictions.npz", **predictions)
    folder.finish(rows, minutes=(time.monotonic() - began) / 60)


def _report(run: Run, folder: RunFolder, params: Params, say: Say) -> None:
    import yaml

    from sandglass.report import page
    from sandglass.runs import git_state, versions

    name = run.columns["study"]
    study = params.studies[name]
    runs = [r for r in plan(params, name) if r.stage != "report"]
    rows = [
        {
            "stage": r.stage,
            "name": r.name,
            "seed": r.seed,
            "settings": r.settings,
            "needs": list(r.needs),
            "columns": r.columns,
        }
        | {"done": RunFolder(folder.root, r).done()}
        for r in runs
    ]
    about = {"name": name, "about": study.about, "published": study.published, "seeds": list(study.seeds)}
    provenance = {"git": git_state(folder.root), "versions": versions(), "made": time.strftime("%Y-%m-%d %H:%M %z")}
    provenance["params"] = yaml.safe_dump({name: study.model_dump(exclude_none=True)}, sort_keys=False)
    began = time.monotonic()
    folder.begin()
    made = page.write(folder.root, about | {"title": params.report.title}, rows, folder.results, provenance)
    for old in folder.results.glob("result-*.json"):
        old.unlink()  # this page replaces what it was made from before
    folder.finish([], minutes=(time.monotonic() - began) / 60)
    say(f"report: {made}")


_STAGES = {
    "data": _data,
    "pretrain": _pretrain,
    "probe": _probe,
    "finetune": _finetune,
    "attack": _attack,
    "report": _report,
}

# --------------------------------------------------------------------------------------------- parts


def _seed(run: Run) -> int:
    assert run.seed is not None
    return run.seed


def _device(params: Params) -> Any:
    from sandglass.engine.train import device_of

    return device_of(params.engine.device)


def _derived(params: Params) -> dict[str, Any]:
    import torch

    device = _device(params)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "threads": torch.get_num_threads()}


def _packed(folder: RunFolder, run: Run) -> Path:
    return folder.root / "results" / "data" / run.need("data")


def _encoder(folder: RunFolder, run: Run, params: Params, classes: int) -> Any:
    """The run's backbone with its own initial weights, behind the normalisation that packing measured."""
    import torch

    from sandglass.backbones.grid import build
    from sandglass.data.loader import step_generator

    info = read_json(_packed(folder, run) / "info.json")
    generator = step_generator(_seed(run), 0, 0, "weights")
    torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
    s = run.settings
    return build(s["backbone"], s["size"], classes, info["mean"], info["std"], s["arguments"]).to(_device(params))


def _initialise(encoder: Any, run: Run, folder: RunFolder, seed: int) -> tuple[list[Any], dict[str, float]]:
    """Weights before finetuning. Returns the modules to keep frozen and the learning-rate factors by name prefix."""
    from sandglass.backbones.hourglass import load_stem

    init = run.settings["init"]
    if init.startswith("stem") and not getattr(encoder.model, "stem_name", None):
        what = f"init: {init} needs a backbone behind a ResNet stem, {run.settings['backbone']} has none"
        raise Problem("B-312", Exit.CONFIG, what, fix="hourglass_c16_r18, hourglass_s12_r18, hourglass_i28, ...")
    if init == "scratch":
        return [], {}
    if init == "pretrained":
        weights.load(encoder, folder.root / "results" / "pretrain" / run.need("pretrain") / "model.safetensors")
        return [], {}
    if init != "stem-random":
        load_stem(
            encoder.model,
            weights.read(folder.root / "results" / "pretrain" / run.need("pretrain") / "model.safetensors"),
        )
    if init == "stem-tuned":
        return [], {"stem.": run.settings["train"]["stem_lr_scale"]}
    encoder.model.stem.requires_grad_(False)
    return [encoder.model.stem], {}


def _fit(run: Run, folder: RunFolder, params: Params, task: Any, say: Say) -> bool:
    """Train, keep the curves and a sheet of the views, remember the cost on the task; whether this process leads."""
    from sandglass import distributed
    from sandglass.engine.train import train

    leads = distributed.rank() == 0
    steps_per_epoch = len(task.index) // task.train["batch_size"]
    trained = sum(p.numel() for p in task.encoder.parameters() if p.requires_grad)
    if leads:
        folder.begin(
            **_derived(params),
            processes=distributed.processes(),
            images=len(task.index),
            steps_per_epoch=steps_per_epoch,
            steps=steps_per_epoch * task.train["epochs"],
            peak_lr=task.train["lr_per_256"] * task.train["batch_size"] / 256,
            parameters=trained,
            grid=[task.encoder.width, *task.encoder.grid_shape],
            data_fingerprint=task.split.info["fingerprint"],
        )
    task.check = folder.check
    task.outcome = train(task, folder.state, params.engine, say)
    if leads:
        write_atomic(folder.results / "metrics.jsonl", (folder.state / "metrics.jsonl").read_bytes())
        _view_sheet(folder.results / "views.npz", task)
    return leads


def _validation(
    task: Any, times: int, judge: Callable[[], list[dict[str, Any]]], *metrics: str
) -> Callable[[int], dict[str, float]]:
    """What `judge` says of some metrics after an epoch, about so many times in a run, and after the last."""
    every = max(1, math.ceil(task.train["epochs"] / times))

    def each_epoch(epoch: int) -> dict[str, float]:
        if epoch % every and epoch != task.train["epochs"]:
            return {}
        return {f"val_{row['metric']}": row["value"] for row in judge() if row["metric"] in metrics}

    return each_epoch


def _logged(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.results / "metrics.jsonl").read_text().splitlines()]


def _view_sheet(path: Path, task: Any) -> None:
    """Eight training images and what the recipe makes of them, for people to look at."""
    from sandglass.data.loader import step_generator
    from sandglass.views.recipes import evaluation_view, make_views

    images, sizes = task.split.take(task.index[:8])
    (name, settings), *_ = task.views.items()
    views = make_views(name, settings, images, sizes, task.size, step_generator(task.seed, 0, 0, "sheet"))
    sheets = {f"view{i}": view for i, view in enumerate(views)}
    sheets["original"] = evaluation_view(images, sizes, task.size)
    _save_arrays(path, **{key: (value * 255).round().byte().cpu().numpy() for key, value in sheets.items()})


def _finish_training(folder: RunFolder, rows: list[dict[str, Any]], task: Any) -> None:
    """The last logged monitors, the cost, and the result."""
    last = next(row for row in reversed(_logged(folder)) if "loss" in row)
    outcome, cost = task.outcome, task.outcome.cost.numbers()
    final = {f"final_{key}": value for key, value in last.items() if key not in ("step", "epoch", "lr")}
    told = {"collapsed": int(outcome.collapsed)} | cost | final
    rows = rows + [{"metric": key, "value": value, "split": "train"} for key, value in told.items()]
    folder.finish(rows, steps=outcome.steps, attempts=outcome.attempts, **cost)


def _save_arrays(path: Path, **arrays: Any) -> None:
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(path, buffer.getvalue())
