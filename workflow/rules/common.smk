# The plan, and the words that all rules share. A run path names what it computes, so inputs are `ancient`: results
# decide by being there, never by file times.

import os
import sys
from pathlib import Path

from sandglass import driver
from sandglass.config import load
from sandglass.errors import Problem
from sandglass.runs import read_json
from sandglass.study import plan

PARAMS = config.get("params", "params.yaml")
try:
    SETTINGS = load(Path(PARAMS))
    STUDY = config.get("study", SETTINGS.study)
    RUNS = {run.key: run for run in plan(SETTINGS, STUDY)}
    if workflow.is_main_process:
        driver.prepare(Path(), RUNS.values())
except Problem as problem:
    print(problem.screen(), file=sys.stderr)
    sys.exit(int(problem.exit))
REPORT = next(run for run in RUNS.values() if run.stage == "report")
CALL = f"--params {PARAMS} --study {STUDY}"


wildcard_constraints:
    run=r"[A-Za-z0-9_.+-]+",


localrules:
    all,
    data,
    report,
    phase_data,
    phase_pretrain,
    phase_probe,
    phase_finetune,
    phase_attack,


def results(stage):
    """The result files of all runs of a stage."""
    return [f"results/{run.result}" for run in RUNS.values() if run.stage == stage]


def needs(stage):
    """Input function: the result files that a run of this stage reads."""
    return lambda wildcards: [ancient(f"results/{RUNS[key].result}") for key in RUNS[f"{stage}/{wildcards.run}"].needs]


CATEGORIES = {
    "data": "Data",
    "pretrain": "Pretraining",
    "probe": "Probes",
    "finetune": "Finetuning",
    "attack": "Attacks",
}


def shown(stage):
    """The result of a run, in the words of the study's tables for `snakemake --report`."""

    def labels(wildcards, output):
        run = RUNS[f"{stage}/{wildcards.run}"]
        told = {**run.columns, "seed": run.seed}
        for row in read_json(Path(output[0]))["rows"]:
            if (row["metric"], row.get("split")) == ("top1", "test"):
                told["test accuracy, %"] = f"{100 * row['value']:.1f}"
        return {name: str(value) for name, value in told.items() if value not in (None, "")}

    file = f"results/{stage}/{{run}}/result.json"
    return report(file, caption=f"../report/{stage}.rst", category=CATEGORIES[stage], labels=labels)


def page_to_view():
    """The page, for `snakemake --report` alone. All settings of a study share it: as an output of every workflow it would be
    out of date, by its record of inputs, whenever older results come back."""
    if not any(word.startswith("--report") for word in sys.argv):
        return []
    file = f"results/{REPORT.folder}/index.html"
    return [report(file, caption="../report/page.rst", category="Report", labels={"what": "the page"})]


def attempt(wildcards, attempt):
    """Which try of Snakemake's `retries` a job is."""
    return attempt


def launch(wildcards, resources):
    """How a training starts: alone, as the tasks of its SLURM job, or as several processes of this machine."""
    tasks = resources.get("tasks", 1)
    if tasks == 1:
        return "sandglass"
    if resources.get("mpi"):
        return f"{resources.mpi} -n {tasks} --kill-on-bad-exit=1 sandglass"
    return f"torchrun --standalone --nproc-per-node {tasks} -m sandglass"


onstart:
    driver.begin(Path())


onsuccess:
    driver.end()
    if os.environ.get("SANDGLASS_TRACKING") != "off":
        shell("sandglass publish || true")  # tracking must not fail a study


onerror:
    driver.end()
    shell("sandglass status {CALL} || true")
