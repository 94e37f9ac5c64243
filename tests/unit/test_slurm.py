"""What is read from SLURM's commands. tests/cluster asks a real one."""

import time

import pytest

from sandglass import slurm


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("59", 59), ("1:00", 60), ("2:03:04", 7384), ("1-00:00:01", 86401), ("UNLIMITED", None), ("INVALID", None)],
)
def test_times_as_squeue_writes_them(text, seconds):
    assert slurm._seconds(text) == seconds


def test_without_slurm_there_is_no_job_and_no_limit(monkeypatch, tmp_path):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.this_job() == "" and slurm.seconds_left() is None and slurm.jobs_of(tmp_path) == []
    assert slurm.job_state("17") is None and slurm.cancel(tmp_path) == 0


def test_the_environment_of_newer_versions_is_believed(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 600))
    assert 590 < slurm.seconds_left() <= 600
