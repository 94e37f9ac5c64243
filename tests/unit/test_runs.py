"""A run's folder is written whole or not at all, and by one writer at a time."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sandglass.errors import Exit, Problem
from sandglass.runs import RunFolder, write_atomic
from sandglass.study import Run

RUN = Run("probe", "linear-digits-s0-12345678", 0, {"size": 32}, (), {"data set": "digits"})
HOLD = """
import sys, time
from pathlib import Path
from sandglass.errors import Problem
from sandglass.runs import RunFolder
from sandglass.study import Run
run = Run("probe", "linear-digits-s0-12345678", 0, {}, (), {})
try:
    with RunFolder(Path(sys.argv[1]), run).lease():
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
except Problem as problem:
    sys.exit(int(problem.exit))
"""


def hold(root, seconds):
    return subprocess.Popen([sys.executable, "-c", HOLD, str(root), str(seconds)], stdout=subprocess.PIPE, text=True)


def test_result_means_done_and_whole(tmp_path):
    folder = RunFolder(tmp_path, RUN)
    assert not folder.done() and folder.status() == "waiting"
    folder.begin(device="cpu")
    write_atomic(folder.results / "model.bin", b"12345")
    assert not folder.done()
    folder.finish([{"metric": "top1", "value": 0.5}])
    assert folder.done(deep=True) and folder.status() == "done"
    assert set(json.loads(folder.result.read_text())["files"]) == {"model.bin", "run.json"}
    (folder.results / "model.bin").write_bytes(b"1234")
    assert not folder.done() and folder.status() == "damaged"
    (folder.results / "model.bin").write_bytes(b"54321")
    assert folder.done() and not folder.done(deep=True)


def test_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_atomic(file, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_atomic(file, "new")
    assert file.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_second_writer_is_refused(tmp_path):
    first = hold(tmp_path, 20)
    try:
        assert first.stdout.readline() == "held\n"
        began = time.monotonic()
        with pytest.raises(Problem) as caught, RunFolder(tmp_path, RUN).lease():
            pass
        assert caught.value.exit == Exit.REFUSED and time.monotonic() - began < 5
        assert RunFolder(tmp_path, RUN).status() == "running"
    finally:
        first.kill()
        first.wait()


def test_lease_of_a_killed_writer_is_taken_over_at_once(tmp_path):
    first = hold(tmp_path, 60)
    first.stdout.readline()
    first.send_signal(signal.SIGKILL)
    first.wait()
    with RunFolder(tmp_path, RUN).lease():
        assert RunFolder(tmp_path, RUN).status() == "running"
    assert not (tmp_path / "state" / "probe" / RUN.name / "lease.json").exists()


def test_of_many_that_find_a_dead_lease_one_gets_it(tmp_path):
    first = hold(tmp_path, 60)
    first.stdout.readline()
    first.kill()
    first.wait()
    crowd = [hold(tmp_path, 3) for _ in range(6)]
    codes = sorted(process.wait(timeout=60) for process in crowd)
    assert codes == [0] + [int(Exit.REFUSED)] * 5


def test_damaged_json_is_one_screen(tmp_path):
    folder = RunFolder(tmp_path, RUN)
    write_atomic(folder.result, "{")
    with pytest.raises(Problem) as caught:
        folder.done()
    assert caught.value.exit == Exit.CONTENT
