"""Pickles: arrays and plain containers come through, and a live hostile corpus runs nothing."""

import os
import pickle
import pickletools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sandglass.data.unpickle import load_pickle
from sandglass.errors import Exit, Problem


class _Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _global(module: str, name: str, argument: bytes) -> bytes:
    """A pickle that calls module.name(argument), by hand, so that any name can be asked for."""
    text = struct.pack("<B", len(argument)) + argument
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"U" + text + b"\x85R."


def hostile(canary: Path) -> dict[str, bytes]:
    command = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w')"
    nested = {b"labels": [0], b"data": _Calls(os.system, command)}
    return {
        "system": pickle.dumps(_Calls(os.system, command), protocol=2),
        "inside": pickle.dumps(nested, protocol=2),
        "newest protocol": pickle.dumps(nested, protocol=5),
        "eval": pickle.dumps(_Calls(eval, code), protocol=2),
        "exec": pickle.dumps(_Calls(exec, code), protocol=0),
        "numpy's own": _global("numpy.testing._private.utils", "runstring", code.encode()),
        "memory map": pickle.dumps({b"data": _Calls(np.memmap, str(canary), "u1", "w+", 0, (4,))}, protocol=2),
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0bos.system__\x93" + b"U\x01x\x85R.",
        "getattr": _global("builtins", "getattr", b"x"),
        "object array": pickle.dumps({b"data": np.array([_Calls(os.system, command)], dtype=object)}, protocol=2),
        "persistent": b"\x80\x02U\x04evilQ.",
        "subclass": pickle.dumps({b"data": np.zeros(3).view(np.matrix)}, protocol=2),
    }


@pytest.mark.parametrize("kind", hostile(Path("x")))
def test_a_hostile_pickle_is_refused_and_nothing_of_it_runs(tmp_path: Path, kind: str) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "data_batch_1").write_bytes(hostile(canary)[kind])
    with pytest.raises(Problem) as caught:
        load_pickle(tmp_path / "data_batch_1")
    assert caught.value.exit == Exit.REFUSED and caught.value.id == "D-112"
    assert not canary.exists()


def test_the_hostile_pickles_would_have_run(tmp_path: Path) -> None:
    """The corpus is live: an ordinary unpickler leaves the canary."""
    for kind in ("system", "inside", "newest protocol", "eval", "exec", "memory map", "object array"):
        canary = tmp_path / kind.replace(" ", "_")
        pickle.loads(hostile(canary)[kind])
        assert canary.exists(), kind


@pytest.mark.parametrize("shape", [(10**12,), (2, 3073), (-1, 3072), "abc"])
def test_an_array_cannot_claim_more_than_its_bytes(tmp_path: Path, shape: Any) -> None:
    from numpy._core.multiarray import _reconstruct

    class Lying:
        def __reduce__(self) -> Any:
            return _reconstruct, (np.ndarray, (0,), b"b"), (1, shape, np.dtype("u1"), False, bytes(3072))

    (tmp_path / "a").write_bytes(pickle.dumps({b"data": Lying()}, protocol=2))
    with pytest.raises(Problem) as caught:
        load_pickle(tmp_path / "a")
    assert caught.value.exit == Exit.CONTENT


@pytest.mark.parametrize(
    "array", [np.array([b"x"]), np.array(["2020-01-01"], dtype="M8[D]"), np.array([1], dtype=object)]
)
def test_only_arrays_of_numbers_are_read(tmp_path: Path, array: np.ndarray) -> None:
    (tmp_path / "a").write_bytes(pickle.dumps({b"data": array}, protocol=2))
    with pytest.raises(Problem) as caught:
        load_pickle(tmp_path / "a")
    assert caught.value.exit == Exit.REFUSED


def test_a_pickle_cannot_change_the_reader_itself(tmp_path: Path) -> None:
    """BUILD on a class without __setstate__ writes its attributes; on ours it fails."""
    (tmp_path / "a").write_bytes(b"\x80\x02cnumpy\ndtype\n}U\x05dtypeNsb.")
    assert any(op.name == "BUILD" for op, *_ in pickletools.genops((tmp_path / "a").read_bytes()))
    with pytest.raises(Problem):
        load_pickle(tmp_path / "a")
    good = {b"data": np.arange(6, dtype=np.uint8).reshape(2, 3)}
    (tmp_path / "b").write_bytes(pickle.dumps(good, protocol=2))
    assert np.array_equal(load_pickle(tmp_path / "b")[b"data"], good[b"data"])


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize(
    "array", [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3))]
)
def test_ordinary_arrays_come_through(tmp_path: Path, protocol: int, array: np.ndarray) -> None:
    (tmp_path / "a").write_bytes(pickle.dumps({b"data": array, "text": ["é", b"x", 1]}, protocol=protocol))
    found = load_pickle(tmp_path / "a")
    assert np.array_equal(found[b"data"], array) and found[b"data"].dtype == array.dtype
    assert found[b"text"][1:] == [b"x", 1]


@pytest.mark.parametrize("kept", [0, 1, 40, 200])
def test_a_cut_pickle_is_damaged(tmp_path: Path, kept: int) -> None:
    whole = pickle.dumps({b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [0, 1]}, protocol=2)
    (tmp_path / "a").write_bytes(whole[:kept])
    with pytest.raises(Problem) as caught:
        load_pickle(tmp_path / "a")
    assert caught.value.exit == Exit.CONTENT and caught.value.id == "D-113"
