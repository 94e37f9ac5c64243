"""The commands: get images, measure, print, keep, and say whether what was asked for was reached.

Each returns an exit code: 0, 1 if a ratio missed its target, 75 if rounds disagreed so much that one could not be
judged and the command should be repeated on a quieter machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from sandglass.bench import floor as costs_of_views
from sandglass.bench import growth as growing
from sandglass.bench import parity as against_reference
from sandglass.bench import photographs, show
from sandglass.bench import speed as turns
from sandglass.bench import start as starting
from sandglass.bench.cases import CASES
from sandglass.bench.ratios import Target
from sandglass.data.loader import Split, open_split
from sandglass.errors import Exit, Problem, did_you_mean
from sandglass.report.parts import Table

WINDOWS = 1024  # images of the embedded set
SIZES = (32, 96, 160)  # px, of floor
SHEET = 96  # px, of the views that the page shows: the smallest with blur
SLACK = 0.8  # of a target, in the quick form: what noise cannot take away, but losing the batched views would


def speed(
    folder: Path, cases: Sequence[str], rounds: int, steps: int | None, clock: str, data: Path | None, quick: bool
) -> int:
    """Ratios of the cases named, by default all that are meant for this device."""
    if quick:
        cases, rounds, steps = cases or ("tiny32",), 3, 6
    for name in cases:
        if name not in CASES:
            raise Problem("P-121", Exit.USAGE, f"no case '{name}'", fix=did_you_mean(name, CASES))
    at, about = turns.machine(clock), show.facts()
    how = {"clock": at.clock, "threads": at.threads, "workers": at.workers}
    peak, found = turns.peak_flops(at), []
    for name in cases or [name for name, case in CASES.items() if case.on == at.device.type]:
        case = replace(CASES[name], turns=1) if quick else CASES[name]
        with _images(data, case.size) as split:
            found.append(turns.measure(case, split, at, rounds, steps or case.steps))
        print(f"{name}: {rounds} rounds of {case.turns} x {steps or case.steps} steps", flush=True)
        show.keep(
            folder, "rounds", about | how, show.rounds(found)
        )  # what is measured is kept if the next one ends early
        show.keep(folder, "speed", about, (row for one in found for row in one.rows(peak)))
    print_table(show.table(pd.DataFrame(show.rounds(found))))
    return judge([target for one in found for target in one.targets], SLACK if quick else 1.0)


def print_table(table: Table) -> None:
    rows = [table.head, *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.head))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def judge(targets: Sequence[Target], slack: float = 1.0) -> int:
    """Print what became of each; the exit code."""
    eased = [replace(target, slack=slack) for target in targets]
    for target in eased:
        print(target)
    verdicts = {target.verdict for target in eased}
    return 1 if "missed" in verdicts else int(Exit.RESUMABLE) if "not judged" in verdicts else 0


def floor(folder: Path, data: Path | None, sizes: Sequence[int] = SIZES, batches: int = 4) -> int:
    """What views cost, function by function."""
    about, rows = show.facts(), []
    for size in sizes:
        with _images(data, size) as split:
            parts, theirs = costs_of_views.costs(split, size, 64, batches)
            if size == SHEET:
                sheet = {name: views.numpy() for name, views in costs_of_views.sheet(split, size).items()}
                folder.mkdir(parents=True, exist_ok=True)
                np.savez(folder / "views.npz", **sheet)  # type: ignore[arg-type]
        rows += [{"size": size, "way": "ours", "part": part, "us_per_image": us} for part, us in parts.items()]
        rows.append({"size": size, "way": "lightly", "part": "whole", "us_per_image": theirs})
        ours = sum(parts.values())
        print(f"{size} px: {ours:.0f} CPU µs an image, lightly {theirs:.0f}, {theirs / ours:.1f} times as much")
        for part, us in parts.items():
            print(f"  {us:8.1f}  {part}")
    show.keep(folder, "floor", about, rows)
    return 0


def start(folder: Path, repeats: int) -> int:
    """Seconds to the first batch. They are the machine's as much as ours, so a miss is told and no failure."""
    about = show.facts()
    with tempfile.TemporaryDirectory() as place:
        repeated, parts = starting.measure(Path(place), repeats)
    print("\n".join(f"  {seconds:6.3f}  {part}" for part, seconds in parts.items()))
    print(starting.verdict(repeated) + f", {', '.join(f'{wall:.2f}' for _, wall in repeated)} s on the wall")
    rows = [{"part": "whole", "cpu_s": cpu, "wall_s": wall} for cpu, wall in repeated]
    show.keep(folder, "start", about, [*rows, *({"part": part, "cpu_s": seconds} for part, seconds in parts.items())])
    return 0


def parity(folder: Path, data: Path | None, images: int = 128) -> int:
    """How far views are from the reference."""
    with _images(data, 96) as split:
        found = against_reference.differences(split, images)
    bounds = against_reference.BOUNDS
    rows = [
        {"operation": name, "difference": value, "bound": bounds.get(name), "images": images}
        for name, value in found.items()
    ]
    show.keep(folder, "parity", show.facts(), rows)
    missed = [name for name, bound in bounds.items() if found[name] > bound]
    for name, value in found.items():
        verdict = "missed: " if name in missed else "met: " if name in bounds else ""
        print(f"{verdict}{name} {value:.3f} of 255" + (f", at most {bounds[name]:g}" if name in bounds else ""))
    return 1 if missed else 0


def growth(folder: Path, times: Sequence[int] = growing.TIMES, share: float = 1.0) -> int:
    """What becomes dearer with more images, runs and epochs; packing has to do with the memory that it has."""
    about, rows = show.facts(), []
    with tempfile.TemporaryDirectory() as place:
        for row in growing.measure(Path(place), times, share):
            rows.append(row)
            size = f"{row['cpu_s']:8.2f} CPU s  {row['peak_mib']:7.0f} MiB  {row['bytes'] / 1024:9.0f} KiB"
            print(f"{row['count']:6d} {row['cause']:7s} {row['step']:18s} {size}", flush=True)
    show.keep(folder, "growth", about, rows)
    packing = [row["peak_mib"] for row in rows if row["step"] == "pack"]
    times_more = packing[-1] / packing[0]
    verdict = "met" if times_more <= growing.FLAT else "missed"
    print(f"{verdict}: memory of packing grew {times_more:.2f} times, at most {growing.FLAT:g}")
    return int(verdict == "missed")


@contextmanager
def _images(data: Path | None, size: int) -> Iterator[Split]:
    """The packed set in `data`, or windows of photographs of this size."""
    if data:
        yield open_split(data, "pretrain")
        return
    with tempfile.TemporaryDirectory() as place:
        yield open_split(photographs.pack_windows(Path(place), size, WINDOWS), "pretrain")
