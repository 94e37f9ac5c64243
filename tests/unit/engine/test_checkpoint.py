"""Checkpoints: the newest whole one counts, damage is noticed, nothing in them is executed."""

import pickle

import pytest
import torch

from sandglass.engine import checkpoint
from sandglass.errors import Exit, Problem


def test_last_two_are_kept_and_newest_is_found(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {"x": torch.tensor([step])}, metrics_bytes=step * 10)
    entry = checkpoint.newest(tmp_path)
    assert entry["step"] == 3 and entry["metrics_bytes"] == 30
    assert torch.equal(checkpoint.load(tmp_path, entry, torch.device("cpu"))["x"], torch.tensor([3]))
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["step-00000002.pt", "step-00000003.pt"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_newest_falls_back_one(tmp_path, damage):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"x": torch.arange(100.0)})
    file = tmp_path / "step-00000002.pt"
    data = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes({"flip": data, "cut": data[:-7], "empty": b""}[damage])
    assert checkpoint.newest(tmp_path)["step"] == 1
    (tmp_path / "step-00000001.pt").unlink()
    with pytest.raises(Problem) as caught:
        checkpoint.newest(tmp_path)
    assert caught.value.exit == Exit.CONTENT


def test_nothing_yet_is_none(tmp_path):
    assert checkpoint.newest(tmp_path / "absent") is None


def test_a_hostile_pickle_is_not_executed(tmp_path):
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self):
            import pathlib

            return (pathlib.Path.touch, (canary,))

    checkpoint.save(tmp_path, 1, {})
    (tmp_path / "step-00000001.pt").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(Exception):  # noqa: B017 - whichever way torch refuses it
        checkpoint.load(tmp_path, {"file": "step-00000001.pt"}, torch.device("cpu"))
    assert not canary.exists()
