"""Progress as the files of run folders tell it: no driver is alive here, and the trainer may be on another machine."""

import io
import json
import os
import time

import pytest
from rich.console import Console

from sandglass import lease
from sandglass.config import load
from sandglass.errors import Exit, Problem
from sandglass.runs import RunFolder
from sandglass.stages import execute
from sandglass.study import Run, plan
from sandglass.watch import look, show, watch

RUN = Run("pretrain", "byol-digits-s0-12345678", 0, {"size": 32}, (), {})
OTHER = Run("probe", "knn-digits-s0-12345678", 0, {"size": 32}, (RUN.key,), {})
TOY = """\
study: toy
engine: {device: cpu, checkpoint_minutes: 0, log_every_steps: 1, deadline_minutes: 0.02}
studies:
  toy: {data: digits, size: 32, backbone: toy, seeds: [0], pretrain: {objective: byol, epochs: 900, batch_size: 32}}
"""


def held_elsewhere(folder, silent=0.0, job="17"):
    """The run is being written on another machine, whose heart beat `silent` seconds ago."""
    facts = {"host": "node7", "boot": "x", "pid": 1, "pid_started": 1.0, "job": job, "driver": "dead", "token": "t"}
    file = folder.state / "lease.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(facts))
    os.utime(file, (time.time() - silent,) * 2)


def train(folder, step, steps, seconds, log):
    """Leave what a training leaves that began `seconds` before its last row."""
    folder.begin(steps=steps)
    held_elsewhere(folder)
    metrics = folder.state / "metrics.jsonl"
    rows = [json.dumps({"step": s, "loss": 1.0}) + "\n" for s in range(10, step + 1, 10)]
    metrics.write_text("".join(rows) + '{"step": 9')  # the next row, half written
    (folder.state / "log.txt").write_text(log)
    now = time.time()
    os.utime(folder.results / "run.json", (now - seconds,) * 2)
    os.utime(metrics, (now,) * 2)


@pytest.mark.parametrize(
    ("log", "minutes"),
    [
        ("begins on node7\n", 2.5),  # 100 steps in 50 s, 300 to go
        ("begins on node7\nresumed at step 60 of 400\n", 6.25),  # 40 steps in 50 s
        ("begins on node7\nresumed at step 60 of 400\nbegins on node7\n", 2.5),  # of an attempt before this one
    ],
)
def test_time_left_is_at_the_pace_of_this_attempt(tmp_path, log, minutes):
    train(RunFolder(tmp_path, RUN), 100, 400, 50.0, log)
    (seen,) = look(tmp_path, [RUN])
    assert (seen.status, seen.step, seen.steps, seen.holder) == ("running", 100, 400, "node7, job 17")
    assert seen.minutes_left == pytest.approx(minutes, rel=1e-3)
    assert "step 100 of 400" in show([seen]) and "on node7, job 17" in show([seen])


def test_a_trainer_that_has_not_made_a_step_runs_without_a_guess(tmp_path):
    held_elsewhere(RunFolder(tmp_path, RUN), job="")
    (seen,) = look(tmp_path, [RUN])
    assert seen.status == "running" and seen.step is seen.minutes_left is None and seen.holder == "node7"


def test_without_a_heartbeat_it_has_stopped(tmp_path):
    folder = RunFolder(tmp_path, RUN)
    train(folder, 100, 400, 50.0, "begins on node7\n")
    held_elsewhere(folder, silent=lease.LEASE_SECONDS + 1)
    assert [seen.status for seen in look(tmp_path, [RUN])] == ["stopped"]


def test_a_damaged_folder_hides_no_other_and_a_failure_is_told_whole(tmp_path):
    bad, failed = RunFolder(tmp_path, RUN), RunFolder(tmp_path, OTHER)
    bad.results.mkdir(parents=True)
    bad.result.write_text("{")
    failed.failed(Problem("T-103", Exit.DIVERGED, "the loss is nan", fix="a lower [rate]"))
    text = show(look(tmp_path, [RUN, OTHER]))
    assert f"damaged      {RUN.key}" in text and f"failed (76)  {OTHER.key}" in text and "a lower [rate]" in text


def test_a_real_training_that_was_stopped_is_read(tmp_path):
    (tmp_path / "params.yaml").write_text(TOY)
    settings = load(tmp_path / "params.yaml")
    data, run, _ = plan(settings)
    execute(data, settings, "toy", tmp_path, lambda text: None)
    for _ in range(2):
        with pytest.raises(Problem) as caught:
            execute(run, settings, "toy", tmp_path, lambda text: None)
        assert caught.value.exit == Exit.RESUMABLE
    seen = look(tmp_path, [data, run])
    assert [row.status for row in seen] == ["done", "stopped"]
    held_elsewhere(RunFolder(tmp_path, run))
    (tmp_path / "state/pretrain" / run.name / "status.json").unlink()
    running = look(tmp_path, [data, run], seen)[1]
    assert f"step {running.step} of {running.steps}" in caught.value.what
    log = (tmp_path / "state/pretrain" / run.name / "log.txt").read_text()
    assert log.count("begins on") == 2 and "resumed at step" in log, "by which the pace is told"
    assert running.minutes_left > 0


def finish(tmp_path, *runs):
    for run in runs:
        RunFolder(tmp_path, run).begin()
        RunFolder(tmp_path, run).finish([])


def test_watching_a_log_says_what_changes_and_ends_with_the_last_run(tmp_path):
    train(RunFolder(tmp_path, RUN), 100, 400, 50.0, "begins on node7\n")
    turns = [lambda: None, lambda: finish(tmp_path, RUN), lambda: None, lambda: finish(tmp_path, OTHER)]
    file = io.StringIO()
    watch(tmp_path, [RUN, OTHER], Console(file=file, width=200), 0.0, lambda seconds: turns.pop(0)())
    assert not turns, "it ended when all was done"
    text = file.getvalue()
    assert text.count("pretrain  1 running") == 1 and text.count("pretrain  1 done") == 2
    assert text.count("probe     1 done") == 1 and "\x1b" not in text


def test_watching_a_terminal_draws_a_table_and_leaves_the_last_state(tmp_path):
    train(RunFolder(tmp_path, RUN), 100, 400, 50.0, "begins on node7\n")
    file = io.StringIO()
    console = Console(file=file, width=140, height=20, force_terminal=True)
    watch(tmp_path, [RUN, OTHER], console, 0.0, lambda seconds: finish(tmp_path, RUN, OTHER))
    text = file.getvalue()
    assert RUN.name in text and "step 100 of 400" in text and text.rstrip().endswith("probe     1 done")
