"""How long the rest of a study will take, from finished runs like it. Where nothing was measured, nothing is guessed.

A run is like another if their settings differ in nothing that makes a step slower: seed, epochs (the minutes are scaled
by them), learning rate and the like. If no such run is finished, those serve that differ in the values of an objective,
a recipe, an auxiliary task, a probe or an attack as well; that is said. Of several devices, the one used last counts.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from sandglass.errors import Problem
from sandglass.runs import read_json
from sandglass.study import Run

FREE = {  # values of a training that change what it learns, and not how long a step takes
    "epochs", "lr_per_256", "momentum", "weight_decay", "decay", "schedule", "warmup_epochs", "on_collapse",
    "stem_lr_scale",
}  # fmt: skip
IDEAS = ("objective", "views", "auxiliary", "probe", "attack")


@dataclass(frozen=True)
class Estimate:
    """Minutes of one run: the median over `runs` finished ones, the least and the most of them."""

    minutes: float
    least: float
    most: float
    runs: int  # 0: of none, but of steps that were measured for this
    same: bool  # settings of the ideas too, not their names alone
    device: str


def forecast(root: Path, runs: Iterable[Run]) -> dict[str, Estimate | None]:
    """For each of `runs` by its key what it will cost, None where no run like it is finished.

    Finished runs of every study count. Training counts the steps alone: start-up, validation and checkpoints come on
    top. `root` holds results/.
    """
    wanted = list(runs)
    known: defaultdict[str, list[_Measured]] = defaultdict(list)
    for stage in dict.fromkeys(run.stage for run in wanted):
        for file in sorted((root / "results" / stage).glob("*/result.json")):
            if measured := _measured(file):
                for same in (True, False):
                    known[_kind(stage, measured.settings, same)].append(measured)
    return {run.key: _estimate(run, known) for run in wanted}


def fill(
    found: dict[str, Estimate | None], runs: Iterable[Run], measure: Callable[[Run], tuple[float, str]]
) -> dict[str, Estimate | None]:
    """`found`, and for trainings that are unknown there what `measure` says of one of each kind: minutes of an epoch
    and the device."""
    filled, known = dict(found), dict[str, tuple[float, str]]()
    for run in runs:
        if run.stage in ("pretrain", "finetune") and run.key in filled and filled[run.key] is None:
            kind = _kind(run.stage, run.settings, same=True)
            if kind not in known:
                known[kind] = measure(run)
            per_epoch, device = known[kind]
            minutes = per_epoch * _epochs(run.settings)
            filled[run.key] = Estimate(minutes, minutes, minutes, 0, True, device)
    return filled


@dataclass(frozen=True)
class _Measured:
    settings: dict[str, Any]
    minutes_per_epoch: float
    device: str
    started: str


def _measured(result: Path) -> _Measured | None:
    """What a finished run cost; None if its folder does not say."""
    try:
        minutes = read_json(result).get("minutes")
        about = read_json(result.with_name("run.json"))
    except (OSError, Problem):
        return None
    if minutes is None:
        return None
    derived = about["derived"]
    device = derived.get("device", "")
    device = f"{derived['processes']} x {device}" if derived.get("processes", 1) > 1 else device
    return _Measured(about["settings"], minutes / _epochs(about["settings"]), device, about["started"])


def _estimate(run: Run, known: dict[str, list[_Measured]]) -> Estimate | None:
    for same in (True, False):
        if found := known.get(_kind(run.stage, run.settings, same)):
            device = max(found, key=lambda measured: measured.started).device
            costs = [m.minutes_per_epoch * _epochs(run.settings) for m in found if m.device == device]
            return Estimate(median(costs), min(costs), max(costs), len(costs), same, device)
    return None


def _kind(stage: str, settings: dict[str, Any], same: bool) -> str:
    """Equal for runs that are like each other."""
    kept = dict(settings)
    if "train" in kept:
        kept["train"] = {key: value for key, value in kept["train"].items() if key not in FREE}
    if not same:
        kept |= {idea: sorted(kept[idea]) for idea in IDEAS if idea in kept}
    return json.dumps([stage, same, kept], sort_keys=True)


def _epochs(settings: dict[str, Any]) -> int:
    return int(settings.get("train", {}).get("epochs", 1))


def show(estimates: dict[str, Estimate | None]) -> str:
    """The hours that are left, stage by stage, with what each number rests on."""
    stages = defaultdict[str, list[Estimate | None]](list)
    for key, estimate in estimates.items():
        stages[key.partition("/")[0]].append(estimate)
    total = _sum([estimate for estimate in estimates.values() if estimate])
    unknown = sum(estimate is None for estimate in estimates.values())
    more = f"; {unknown:,} of {len(estimates):,} runs are not in it" if unknown else ""
    whole = f"{total} of computing, one run after another{more}" if unknown < len(estimates) else total
    lines = [f"left: {whole}"]
    if any(estimate is None and key.startswith(("pretrain/", "finetune/")) for key, estimate in estimates.items()):
        lines.append("  sandglass plan --measure takes a few steps of each training that is unknown")
    for stage, found in stages.items():
        known = [estimate for estimate in found if estimate]
        text = f"  {stage:<9} {len(found):>5,} run{'s' if len(found) > 1 else ' '}  {_sum(known)}"
        if known:
            finished = [estimate.runs for estimate in known if estimate.runs]
            sources = [f"{_span(finished)} finished like each"] if finished else []
            sources += ["steps measured now"] if len(finished) < len(known) else []
            text += f", from {' and '.join(sources)}"
            text += f" on {', '.join(devices)}" if (devices := sorted({e.device for e in known} - {""})) else ""
        if near := sum(not estimate.same for estimate in known):
            text += f"; {near:,} by runs that differ in values of their ideas"
        if unknown := len(found) - len(known):
            text += f"; {unknown:,} unknown: none like {'them' if unknown > 1 else 'it'} is finished" if known else ""
        lines.append(text)
    return "\n".join(lines)


def _sum(known: list[Estimate]) -> str:
    """All of them, from the least to the most that they may take."""
    if not known:
        return "unknown: no run like these is finished"
    middle, least, most = (_time(sum(getattr(e, part) for e in known)) for part in ("minutes", "least", "most"))
    return f"about {middle}" + (f" ({least} to {most})" if least != most else "")


def _span(numbers: Iterable[int]) -> str:
    least, most = min(found := list(numbers)), max(found)
    return f"{least}" if least == most else f"{least} to {most}"


def _time(minutes: float) -> str:
    return f"{minutes / 60:,.1f} h" if minutes >= 60 else f"{minutes:.1f} min"
