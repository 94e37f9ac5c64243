"""What becomes dearer when there is more: images to pack, runs to plan, epochs to train and to show.

Every size is one command as a person types it, in a process of its own, at 1, 4 and 16 times the smallest. Told are its
CPU seconds, of all its threads, its largest memory, and the bytes that it leaves. A cost that does not grow beyond what
a process needs to start is a flat line, one that grows as its cause is the diagonal.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sandglass.bench.photographs import windows
from sandglass.errors import Exit, Problem

TIMES = (1, 4, 16)
IMAGES, SEEDS, EPOCHS = 1000, 24, 10  # at once the size
SIDE = 64  # px
FLAT = 1.5  # times the memory of the smallest set is the most that packing the largest may take
# The command, and at its end what the system knows of its memory; wait4's largest would include ours at the fork.
COMMAND = """
import atexit, pathlib
atexit.register(lambda: pathlib.Path("memory").write_text(pathlib.Path("/proc/self/status").read_text()))
from sandglass.cli import main
main()
"""
OF_IMAGES = """
study: growth
data: {{sets: {{windows: {{format: folder, source: {source}}}}}}}
studies: {{growth: {{data: windows, size: 32, backbone: toy, seeds: [0], pretrain: {{objective: byol}}}}}}
"""
OF_RUNS = """
study: growth
studies:
  growth:
    data: digits
    size: 32
    backbone: toy
    seeds: {seeds}
    pretrain: {{objective: [byol, simclr, simsiam], views: [simclr, baseline]}}
    probe: {{probe: [knn, linear]}}
    finetune: {{auxiliary: [none, drloc]}}
    attack: {{attack: fgsm}}
"""
OF_EPOCHS = """
study: growth
engine: {{device: cpu, log_every_steps: 1}}
studies:
  growth:
    data: digits
    size: 32
    backbone: toy
    seeds: [0]
    pretrain: {{objective: byol, epochs: {epochs}, batch_size: 512, warmup_epochs: 0}}
    objectives: {{byol: {{hidden: 32, out: 16}}}}
"""


def measure(root: Path, times: Sequence[int] = TIMES, share: float = 1.0) -> Iterator[dict[str, Any]]:
    """A row for each command and size, as `_row` makes it. `share`: of the full sizes."""
    for many in times:
        place = root / f"images-{many}"
        count = _archive(place / "windows.tar", round(share * IMAGES) * many)
        packed = _cost(place, OF_IMAGES.format(source="windows.tar"), "data")
        yield _row("images", "pack", many, count, packed, place.glob("results/data/*/*"))
    for many in times:
        place = root / f"runs-{many}"
        seeds = list(range(round(share * SEEDS) * many))
        planned = _cost(place, OF_RUNS.format(seeds=seeds), "plan", "--json")
        count = len(json.loads((place / "said").read_text()))
        yield _row("runs", "plan", many, count, planned, [place / "said"])
    for many in times:
        place = root / f"epochs-{many}"
        count = round(share * EPOCHS) * many
        text = OF_EPOCHS.format(epochs=count)
        _cost(place, text, "data")
        trained = _cost(place, text, "pretrain")
        yield _row("epochs", "train", many, count, trained, place.glob("results/pretrain/*/metrics.jsonl"))
        shown = _cost(place, text, "publish")
        yield _row("epochs", "publish to MLflow", many, count, shown, [place / "mlflow.db"])


def _row(cause: str, step: str, times: int, count: int, cost: tuple[float, float], left: Any) -> dict[str, Any]:
    size = sum(file.stat().st_size for file in left)
    cpu, peak = cost
    return {
        "cause": cause, "step": step, "times": times, "count": count, "cpu_s": cpu, "peak_mib": peak, "bytes": size,
    }  # fmt: skip


def _archive(file: Path, count: int) -> int:
    """So many windows of two photographs as PNG files in two folders of a tar archive; their number."""
    file.parent.mkdir(parents=True)
    folder = file.parent / "windows"
    labels = "china", "flower"
    for name in labels:
        (folder / name).mkdir(parents=True)
    for number, (window, label) in enumerate(windows(SIDE, count)):
        Image.fromarray(window).save(folder / labels[label] / f"{number:06}.png", compress_level=1)
    with tarfile.open(file, "w") as archive:
        archive.add(folder, "windows")
    return count


def _cost(place: Path, params: str, *words: str) -> tuple[float, float]:
    """CPU seconds and largest memory in MiB of a command, whose output goes to the file `said`."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "params.yaml").write_text(params)
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {"OMP_NUM_THREADS": "1"} | ({} if words[0] == "publish" else {"SANDGLASS_TRACKING": "off"})
    with (place / "said").open("wb") as said, (place / "complained").open("wb") as complained:
        line = [sys.executable, "-c", COMMAND, *words]
        started = subprocess.Popen(line, cwd=place, env=environment, stdout=said, stderr=complained)
        _, status, used = os.wait4(started.pid, 0)
    started.returncode = code = os.waitstatus_to_exitcode(status)
    if code:
        why = (place / "complained").read_text()[-500:]
        raise Problem("P-123", Exit.INTERNAL, f"sandglass {' '.join(words)} ended with {code}", why=why)
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", (place / "memory").read_text())
    return used.ru_utime + used.ru_stime, int(peak) / 1024
