"""`snakemake --profile slurm` on a real SLURM, as it is typed: whole studies, arrays, errors, several nodes."""

import json
import os
import subprocess

import pytest

from .conftest import TRAINING, Place
from .slurm import until

pytestmark = pytest.mark.cluster

SMALL = """\
study: toy
engine: {device: cpu, checkpoint_minutes: 0}
studies:
  toy:
    data: digits
    size: 32
    backbone: toy
    seeds: [0]
    pretrain: {objective: byol, epochs: 2, batch_size: 128, warmup_epochs: 1}
    probe: {probe: [knn, linear], init: [pretrained, random]}
    finetune: {init: [scratch, pretrained], labels: 0.1, views: plain, epochs: 2, batch_size: 32, warmup_epochs: 0}
    attack: {attack: fgsm, images: 64}
    objectives: {byol: {hidden: 32, out: 16}}
"""
ONE_OF_EACH = SMALL.replace("probe: [knn, linear], init: [pretrained, random]", "probe: knn").replace(
    "[scratch, pretrained]", "scratch"
)
IN_JOBS = ("pretrain", "probe", "finetune", "attack")


def complete(place: Place, *words: str) -> None:
    """Every planned result is there; what computes was done by SLURM, packing and the report were not."""
    runs = json.loads(place.call("sandglass", "plan", "--json", *words))
    assert runs and all(run["done"] for run in runs)
    jobs = place.jobs()
    assert {job["state"] for job in jobs} == {"COMPLETED"}
    for stage in IN_JOBS:
        assert len(place.jobs(stage)) == sum(run["stage"] == stage for run in runs) > 0
    assert len(jobs) == sum(run["stage"] in IN_JOBS for run in runs), "data and report are no jobs"
    assert "localrule data" in place.said() and "localrule report" in place.said()


def test_toy_study_with_accounting(tmp_path, repo, accounted):
    named = {"# slurm_account: NAME": "slurm_account: lab", "# slurm_partition: NAME": "slurm_partition: main"}
    place = Place(tmp_path, repo, accounted, ONE_OF_EACH, **named)
    place.finish(place.start("--verbose"))
    complete(place)
    assert "command=sacct" in place.said()
    recorded = accounted("sacct", "-X", "-n", "-P", "-o", "JobID,State,Account").splitlines()
    assert sorted(recorded) == sorted(f"{job['id']}|COMPLETED|lab" for job in place.jobs())


def test_demo_study(tmp_path, repo, cluster):
    """As shipped, but one seed and two epochs, for the clock's sake. SLURM keeps no accounts here."""
    text = (repo / "params.yaml").read_text()
    shorter = {
        "seeds: [0, 1, 2]\n": "seeds: [0]\n",
        "epochs: 36, batch_size: 64, lr_per_256: 4e-3, warmup_epochs: 3": "epochs: 2, batch_size: 64",
        "epochs: 30\n": "epochs: 2\n",
    }
    for old, new in shorter.items():
        assert old in text, old
        text = text.replace(old, new, 1)  # the demo is the first study
    place = Place(tmp_path, repo, cluster, text)
    place.finish(place.start("--verbose", "--config", "study=demo"))
    complete(place, "--study", "demo")
    assert "command=squeue" in place.said()
    assert "Nothing to be done" in place.call("snakemake", "--profile", "slurm", "-n", "--config", "study=demo")


def test_many_jobs_of_one_kind_are_submitted_as_an_array_and_a_failed_member_alone_again(tmp_path, repo, cluster):
    place = Place(tmp_path, repo, cluster, SMALL.replace("init: [pretrained, random]", "init: random"))
    driver = place.start("phase_probe")
    until(lambda: [job for job in place.jobs("probe") if job["state"] == "RUNNING"], 120, "the array")
    member = next(job["id"] for job in place.jobs("probe") if job["state"] == "RUNNING")
    place.cluster("scancel", member)
    place.finish(driver)
    one, other, again = place.jobs("probe")
    assert {one["id"], other["id"]} == {member[:-1] + "1", member[:-1] + "2"}, "one array of two"
    assert sorted((one["state"], other["state"])) == ["CANCELLED", "COMPLETED"]
    assert (again["state"], "_" in again["id"]) == ("COMPLETED", False)
    assert len(place.results("probe")) == 2


def test_a_permanent_error_is_attempted_once(tmp_path, repo, cluster):
    params = TRAINING.replace("epochs: 25", "epochs: 2").replace(
        "warmup_epochs: 1", "warmup_epochs: 0, lr_per_256: 1e30"
    )
    place = Place(tmp_path, repo, cluster, params, **{"retries: 5": "retries: 1"})
    place.finish(place.start("phase_pretrain"), code=1)
    assert "T-103" in place.log() and "T-103" in place.said(), "the person reads why"
    assert place.log().count("begins on") == 1, "trained once"
    assert [job["state"] for job in place.jobs()] == ["FAILED"] * 2, "Snakemake cannot know, so the run itself refuses"


def test_one_job_of_two_tasks_on_two_nodes_trains_data_parallel(tmp_path_factory, repo, cluster):
    params = TRAINING.replace("epochs: 25", "epochs: 2").replace("log_every_steps: 5", "log_every_steps: 1")
    spread = {"    runtime: 1440\n": "    runtime: 1440\n    tasks: 2\n    nodes: 2\n    mpi: srun\n"}
    place = Place(
        tmp_path_factory.mktemp("two"), repo, cluster, params, **spread, **{"  pretrain: 2\n": "  pretrain: 1\n"}
    )
    place.finish(place.start("phase_pretrain"))
    (job,) = place.jobs("pretrain")
    assert (job["state"], job["nodes"], job["on"]) == ("COMPLETED", "2", "n[1-2]")
    for node in ("n1", "n2"):
        assert f"launch task StepId={job['id']}.0" in (cluster.folder / f"slurmd-{node}.log").read_text()
    assert json.loads((place.training() / "run.json").read_text())["derived"]["processes"] == 2
    alone = Place(tmp_path_factory.mktemp("one"), repo, cluster, params)
    for stage in ("data", "pretrain"):
        alone.call("sandglass", stage)
    two, one = (
        [json.loads(line) for line in (each.training() / "metrics.jsonl").read_text().splitlines()]
        for each in (place, alone)
    )
    assert [row["step"] for row in two] == [row["step"] for row in one]
    for ours, theirs in zip(two[:3], one[:3], strict=True):  # later steps amplify the rounding of sums
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


def test_a_plan_needs_no_slurm(tmp_path, repo, cluster):
    """The profile asks the scheduler how to submit; where there is none, planning works all the same."""
    place = Place(tmp_path, repo, cluster, SMALL)
    environment = {**place.cluster.environment, "PATH": os.environ["PATH"]}
    words = ["snakemake", "--profile", "slurm", "-n"]
    done = subprocess.run(words, cwd=place.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout
