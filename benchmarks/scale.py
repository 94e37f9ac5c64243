"""What a large grid costs before its first job: `sandglass plan` and `snakemake -n` against the number of runs.

    python benchmarks/scale.py

The study of tests/workflow/ten_thousand_runs.yaml with one seed, two, ... all: its runs grow with the seeds. Each size
is timed once per round, the rounds one after another, and the fastest round counts (other work
only slows a program). Then where the time of the largest dry run goes. Exit code 1 if a target is missed: plan
5 s, dry run 90 s on two cores, and growth from the half to the whole no faster than linear, by more than the noise.
"""

from __future__ import annotations

import json
import pstats
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
STUDY = REPO / "tests" / "workflow" / "ten_thousand_runs.yaml"
SEEDS, ROUNDS = (1, 3, 6), 3
TARGETS = {"plan": 5.0, "dry run": 90.0}  # seconds
NOISE = 1.25  # on a ratio of two times
PARTS = [  # label, file and function whose cumulative time it is
    ("our plan", "sandglass/study.py", "plan"),
    ("Snakemake builds the DAG", "snakemake/workflow.py", "_build_dag"),
    ("Snakemake prints jobs and reasons", "scheduling/job_scheduler.py", "schedule"),
]


def seconds(folder: Path, *words: str) -> float:
    began = time.monotonic()
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    return time.monotonic() - began


def place(folder: Path, seeds: int) -> int:
    """A folder with the workflow and the study at so many seeds; its number of runs."""
    folder.mkdir()
    for name in ("Snakefile", "workflow", "profiles"):
        (folder / name).symlink_to(REPO / name)
    everything = "[0, 1, 2, 3, 4, 5]"
    text = STUDY.read_text()
    assert everything in text
    (folder / "params.yaml").write_text(text.replace(everything, str(list(range(seeds)))))
    plan = subprocess.run(["sandglass", "plan", "--json"], cwd=folder, check=True, capture_output=True, text=True)
    return len(json.loads(plan.stdout))


def main() -> int:
    missed = []
    with tempfile.TemporaryDirectory() as name:
        folders = {seeds: Path(name) / str(seeds) for seeds in SEEDS}
        runs = {seeds: place(folder, seeds) for seeds, folder in folders.items()}
        commands = {"plan": ("sandglass", "plan"), "dry run": ("snakemake", "-n", "--quiet", "rules")}
        times: dict[tuple[str, int], list[float]] = {}
        for _ in range(ROUNDS):
            for seeds, folder in folders.items():
                for what, words in commands.items():
                    times.setdefault((what, seeds), []).append(seconds(folder, *words))
        print(f"{'runs':>6}  " + "  ".join(f"{what + ', s (spread)':>22}" for what in commands))
        for seeds in SEEDS:
            cells = [times[what, seeds] for what in commands]
            print(f"{runs[seeds]:>6}  " + "  ".join(f"{min(c):>10.2f} ({min(c):.2f}-{max(c):.2f})" for c in cells))
        for what, target in TARGETS.items():
            half, whole = (min(times[what, seeds]) for seeds in SEEDS[1:])
            growth = whole / half / (runs[SEEDS[-1]] / runs[SEEDS[1]])
            print(f"{what}: {whole:.2f} s of {target:g}; from half to whole {growth:.2f} times linear")
            if whole > target or growth > NOISE:
                missed.append(what)
        where(folders[SEEDS[-1]])
    if missed:
        print(f"missed: {', '.join(missed)}")
    return len(missed) and 1


def where(folder: Path) -> None:
    """The parts of one dry run, under the profiler, which slows it about three times."""
    words = [sys.executable, "-m", "cProfile", "-o", "profile", "-m", "snakemake", "-n", "--quiet", "rules"]
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    rows = pstats.Stats(str(folder / "profile")).stats.items()  # type: ignore[attr-defined]
    whole = sum(row[2] for _, row in rows)
    print(f"where the dry run's time goes (profiled, {whole:.0f} s in all):")
    for label, file, function in PARTS:
        spent = max(row[3] for (path, _, name), row in rows if path.endswith(file) and name == function)
        print(f"  {spent / whole:4.0%}  {label}")


if __name__ == "__main__":
    sys.exit(main())
