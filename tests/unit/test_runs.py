"""A run's folder is written whole or not at all."""

import json
import os

import pytest

from sandglass.errors import Exit, Problem
from sandglass.runs import RunFolder, write_atomic
from sandglass.study import Run

RUN = Run("probe", "linear-digits-s0-12345678", 0, {"size": 32}, (), {"data set": "digits"})


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


def test_a_writer_that_lost_the_run_writes_no_result(tmp_path):
    folder = RunFolder(tmp_path, RUN)
    with folder.lease():
        folder.begin()
        lease = folder.state / "lease.json"
        lease.write_text(json.dumps(json.loads(lease.read_text()) | {"token": "theirs"}))
        with pytest.raises(Problem) as caught:
            folder.finish([{"metric": "top1", "value": 0.5}])
        assert caught.value.exit == Exit.REFUSED and not folder.result.exists()


def test_a_result_that_a_scheduler_removed_is_put_back_if_the_run_is_whole(tmp_path):
    folder = RunFolder(tmp_path, RUN)
    folder.begin()
    write_atomic(folder.results / "model.bin", b"12345")
    folder.finish([{"metric": "top1", "value": 0.5}])
    before = folder.result.read_bytes()
    folder.result.unlink()
    assert not folder.done() and folder.restore() and folder.done(deep=True)
    assert folder.result.read_bytes() == before
    folder.result.unlink()
    (folder.results / "model.bin").write_bytes(b"54321")
    assert not folder.restore() and not folder.done()


def test_a_failure_is_remembered_whole(tmp_path):
    folder = RunFolder(tmp_path, RUN)
    assert folder.failure() is None
    folder.failed(Problem("T-103", Exit.DIVERGED, "the loss is nan", why="lr 9", fix="a lower one"))
    again = folder.failure()
    assert (
        again.screen()
        == "error T-103 (exit 76): the loss is nan\n  why    lr 9\n  fix    a lower one\n  page   docs/errors.md#t-103"
    )
    assert folder.status() == "failed (76)"
    folder.begin()
    folder.finish([])
    assert folder.failure() is None


def test_damaged_json_is_one_screen(tmp_path):
    folder = RunFolder(tmp_path, RUN)
    write_atomic(folder.result, "{")
    with pytest.raises(Problem) as caught:
        folder.done()
    assert caught.value.exit == Exit.CONTENT
