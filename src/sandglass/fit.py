"""Do the parts of a study fit: backbone, image size, objective, data, batch? Told in seconds, without a GPU."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sandglass.backbones import grid
from sandglass.config import Params
from sandglass.data import catalog, census
from sandglass.engine.train import full_batches
from sandglass.errors import Exit, Problem
from sandglass.evaluate.features import refuse_blind_choice
from sandglass.objectives import OBJECTIVES
from sandglass.objectives._check import check as try_objective
from sandglass.study import Run
from sandglass.views.recipes import sizes_of


def backbones(runs: Iterable[Run], size: int | None) -> list[dict[str, Any]]:
    """What `grid.check` says of each backbone, at `size` px instead of the run's if that is given."""
    found = {}
    for s in (run.settings for run in runs if "backbone" in run.settings):
        case = s["backbone"], size or s["size"], s["arguments"]
        found[json.dumps(case)] = case
    return [grid.check(*case) for case in found.values()]


def objectives(runs: Iterable[Run], size: int | None) -> None:
    """Raises if one of them cannot teach its backbone; each combination is tried once."""
    cases = {}
    for s in (run.settings | ({"size": size} if size else {}) for run in runs if run.stage == "pretrain"):
        ((objective, settings),), (views,) = s["objective"].items(), s["views"].values()
        case = objective, settings, sizes_of(views, s["size"]), s["backbone"], s["size"], s["arguments"]
        cases[json.dumps(case)] = case
    for case in cases.values():
        try_objective(*case)


def data(runs: Iterable[Run], params: Params, root: Path) -> list[census.Census]:
    """The images of each data set, none of which is opened.

    Raises Problem where it can be told that a run will not find what it needs: those of `census.take`; T-102 (78) a
    batch larger than the training images; D-115 (66) no such split; E-120 (78) nothing to choose a probe's setting on.
    """
    raw = root / params.data.root / "raw"
    counted: dict[str, census.Census] = {}
    for run in runs:
        if run.stage == "data":
            entry = catalog.resolve(run.settings["data"], params.data.sets)
            packed = root / "results" / run.folder
            counted[run.name] = census.take(entry, packed, raw, params.data.mirror, run.settings["val_fraction"])
        elif run.stage in ("pretrain", "probe", "finetune", "attack"):
            _feed(run, counted[run.need("data")])
    return list(counted.values())


def _feed(run: Run, images: census.Census) -> None:
    s = run.settings
    if run.stage == "pretrain":
        ((objective, _),) = s["objective"].items()
        labelled = OBJECTIVES.get(objective).needs_labels
        splits, share = (("train",) if labelled else ("train", "unlabelled")), 1.0
    else:
        splits, share = (("train", "val") if s.get("split") == "trainval" else ("train",)), s.get("labels", 1.0)
    most = images.most(*splits, share=share)
    if most == 0:
        what = f"{images.name} has no {' and '.join(splits)} images"
        raise Problem("D-115", Exit.MISSING, what, where=run.key, why=images.line())
    if "train" in s and most is not None:
        full_batches(most, s["train"]["batch_size"])
    for probe, values in s.get("probe", {}).items():
        for name, value in values.items():
            if isinstance(value, list) and not images.validation:
                refuse_blind_choice(probe, name, value)
