"""Seconds from the start of a training job to the data of its first step, and where they go.

The job is the command that a workflow runs, `sandglass pretrain RUN`, on packed handwritten digits; it ends as soon as
its first batch is made. How long imports take is Python's own account (-X importtime), in a run of its own and by
package; it counts seconds on the wall, so it is scaled to that run's CPU seconds. Tracking is off: its follower is
another process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from sandglass.errors import Exit, Problem

TARGET = 2.5  # CPU seconds
LARGEST = 8  # packages that are named
APART = ("torch._dynamo", "torch._inductor", "torch.fx")  # a compiler, which a job that compiles nothing need not load
STUDY = """
study: start
studies:
  start:
    data: digits
    size: 32
    backbone: resnet18_small
    seeds: [0]
    pretrain: {objective: byol, epochs: 1, batch_size: 64}
"""
PHASES = [  # where the job calls it, and what it is
    ("sandglass.config", "load", "read the settings"),
    ("sandglass.study", "plan", "plan the study"),
    ("sandglass.data.loader", "open_split", "open the data"),
    ("sandglass.backbones.grid", "build", "build the network"),
]
FIRST, REST = "first views", "everything else"


def measure(root: Path, repeats: int) -> tuple[list[tuple[float, float]], dict[str, float]]:
    """(CPU seconds, seconds) of each repeat, and the CPU seconds of each part of one more."""
    (root / "params.yaml").write_text(STUDY)
    _run(root, sys.executable, "-m", "sandglass", "data")
    words = [sys.executable, "-m", "sandglass.bench.start"]
    repeated = [_ended(_run(root, *words)) for _ in range(repeats)]
    accounted = _run(root, words[0], "-X", "importtime", *words[1:])
    return [(found["whole"], found["wall"]) for found in repeated], parts(_ended(accounted), accounted.stderr)


def parts(ended: dict[str, float], account: str) -> dict[str, float]:
    """CPU seconds by part, imports first, the dearest first. `account`: what -X importtime wrote."""
    packages: Counter[str] = Counter()
    for line in account.splitlines():
        if line.startswith("import time:") and not line.rstrip().endswith("imported package"):
            own, _, name = line.removeprefix("import time:").split("|")
            packages[_package(name.strip())] += int(own)
    scale = ended["whole"] / ended["wall"] / 1e6
    imports = {f"import {name}": scale * own for name, own in packages.most_common(LARGEST)}
    imports["import others"] = scale * (packages.total() - sum(own for _, own in packages.most_common(LARGEST)))
    phases = {name: seconds for name, seconds in ended.items() if name not in ("whole", "wall")}
    found = imports | phases
    return found | {REST: max(0.0, ended["whole"] - sum(found.values()))}


def _package(module: str) -> str:
    top = module.split(".")[0]
    return next(
        (part for part in APART if module.startswith(part)), "Python's own" if top in sys.stdlib_module_names else top
    )


def verdict(repeated: list[tuple[float, float]]) -> str:
    seconds = median(cpu for cpu, _ in repeated)
    return f"{'met' if seconds <= TARGET else 'missed'}: {seconds:.2f} CPU seconds, at most {TARGET:g}"


def _run(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SANDGLASS_TRACKING": "off", "OMP_NUM_THREADS": "1", "BEGAN": repr(time.time())}
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise Problem(
            "P-120", Exit.INTERNAL, f"{' '.join(words[1:])} ended with {done.returncode}", why=done.stderr[-500:]
        )
    return done


def _ended(done: subprocess.CompletedProcess[str]) -> dict[str, float]:
    """What the job said at its end."""
    rows = (
        line.removeprefix("bench ").rsplit(" ", 1) for line in done.stdout.splitlines() if line.startswith("bench ")
    )
    return {name: float(seconds) for name, seconds in rows}


def _job() -> None:
    """The command, up to its first batch; then what its parts took, one line each."""
    import importlib

    spent: dict[str, float] = {}

    def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            began = time.process_time()
            result = function(*given, **named)
            spent[name] = spent.get(name, 0.0) + time.process_time() - began
            return result

        return call

    for home, function, name in PHASES:
        module = importlib.import_module(home)
        setattr(module, function, timed(getattr(module, function), name))
    source: Any = importlib.import_module("sandglass.engine.batches").Batches
    batches = source.__call__
    first = timed(lambda *given: next(batches(*given)), FIRST)

    def last(*given: Any) -> None:
        first(*given)
        spent["whole"], spent["wall"] = time.process_time(), time.time() - float(os.environ["BEGAN"])
        print("\n".join(f"bench {name} {seconds}" for name, seconds in spent.items()), flush=True)
        os._exit(0)

    source.__call__ = last
    sys.argv = ["sandglass", "pretrain"]
    from sandglass.cli import main

    main()


if __name__ == "__main__":
    _job()
