"""One writer at a time, on one machine and on several."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from sandglass import lease
from sandglass.errors import Exit, Problem

HOLD = """
import sys, time
from pathlib import Path
from sandglass.errors import Problem
from sandglass.lease import Lease
try:
    with Lease(Path(sys.argv[1]), "a run"):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
except Problem as problem:
    sys.exit(int(problem.exit))
"""


@pytest.fixture
def file(tmp_path):
    return tmp_path / "lease.json"


def hold(file, seconds):
    return subprocess.Popen([sys.executable, "-c", HOLD, str(file), str(seconds)], stdout=subprocess.PIPE, text=True)


def elsewhere(file, silent=0.0, **facts):
    """A lease of another machine, without a heartbeat for `silent` seconds."""
    here = {"host": "another", "boot": "x", "pid": 1, "pid_started": 1.0, "job": "", "driver": "", "token": "theirs"}
    file.write_text(json.dumps(here | facts))
    os.utime(file, (time.time() - silent,) * 2)


def test_second_writer_is_refused(file):
    first = hold(file, 20)
    try:
        assert first.stdout.readline() == "held\n"
        began = time.monotonic()
        with pytest.raises(Problem) as caught, lease.Lease(file, "a run"):
            pass
        assert caught.value.exit == Exit.REFUSED and time.monotonic() - began < 5
        assert lease.alive(file)
    finally:
        first.kill()
        first.wait()


def test_a_killed_writer_is_followed_at_once(file):
    first = hold(file, 60)
    first.stdout.readline()
    first.send_signal(signal.SIGKILL)
    first.wait()
    with lease.Lease(file, "a run") as mine:
        assert mine.ours() and lease.alive(file)
    assert not file.exists()


def test_of_many_that_find_a_dead_lease_one_gets_it(file):
    first = hold(file, 60)
    first.stdout.readline()
    first.kill()
    first.wait()
    crowd = [hold(file, 3) for _ in range(6)]
    codes = sorted(process.wait(timeout=60) for process in crowd)
    assert codes == [0] + [int(Exit.REFUSED)] * 5


def test_another_machine_is_believed_while_its_heart_beats(file):
    elsewhere(file, silent=lease.LEASE_SECONDS - 30)
    with pytest.raises(Problem, match="another process"), lease.Lease(file, "a run"):
        pass
    elsewhere(file, silent=lease.LEASE_SECONDS + 1)
    with lease.Lease(file, "a run") as mine:
        assert mine.ours()


def test_a_requeued_job_does_not_wait_for_the_node_it_lost(file, monkeypatch):
    elsewhere(file, job="17")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with lease.Lease(file, "a run") as mine:
        assert mine.ours()


def test_who_was_taken_for_dead_writes_no_more(file):
    with lease.Lease(file, "a run") as mine:
        mine.check()
        elsewhere(file)
        with pytest.raises(Problem) as caught:
            mine.check()
        assert caught.value.exit == Exit.REFUSED
    assert lease.read(file)["token"] == "theirs", "and leaves the new holder's lease alone"


def test_a_reboot_ends_every_lease_of_the_machine(file):
    elsewhere(file, host=socket.gethostname(), boot="before", pid=os.getpid())
    assert not lease.alive(file)


def test_burying_the_dead_spares_who_came_meanwhile(file):
    elsewhere(file, token="new")
    lease.bury(file, "old")
    assert lease.read(file)["token"] == "new"
    lease.bury(file, "new")
    assert not file.exists() and not list(file.parent.iterdir())


def test_a_lease_cut_by_a_power_cut_is_void_after_a_while(file):
    file.write_text('{"host": "an')
    with pytest.raises(Problem), lease.Lease(file, "a run"):
        pass
    os.utime(file, (0, 0))
    with lease.Lease(file, "a run") as mine:
        assert mine.ours()
