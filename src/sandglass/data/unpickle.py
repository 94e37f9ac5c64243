"""Read the pickles that CIFAR is published as, without running anything from them.

A pickle is a program: it may call whatever it can name (Python's documentation of `pickle`, its first warning). Here it
can name four things, and each is a stand-in that only keeps what it is given; the arrays are built afterwards, from
checked shapes and bytes.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from sandglass.errors import Exit, Problem


def load_pickle(path: Path) -> dict[bytes, Any]:
    """A pickled dictionary of containers, numbers, bytes, text and numeric arrays; Python 2 text comes as bytes.

    Raises Problem D-112 (77) if it names anything else (nothing of it is run), D-113 (65) if it is damaged.
    """
    try:
        with path.open("rb") as file:
            table = _Plain(file, encoding="bytes").load()
        if not isinstance(table, dict):
            raise ValueError(f"it holds no dictionary but {type(table).__name__}")
        keyed = {key.encode() if isinstance(key, str) else key: value for key, value in table.items()}
        return {key: value.array() if isinstance(value, _Array) else value for key, value in keyed.items()}
    except _Forbidden as error:
        raise Problem(
            "D-112",
            Exit.REFUSED,
            f"{path.name} is an unsafe pickle",
            where=str(path),
            why=f"it asks for {error}, which no image batch needs",
            fix="do not use this archive unless you trust who made it",
            kept="nothing of it was run",
        ) from None
    except OSError:
        raise
    except Exception as error:  # hostile bytes make pickle raise nearly anything
        raise damaged(path, f"{type(error).__name__}: {error}") from None


def damaged(path: Path, why: str) -> Problem:
    """The screen for a file that is not what its format says."""
    fix = "fetch the archive anew, or check `format`"
    return Problem("D-113", Exit.CONTENT, f"{path.name} is damaged", where=str(path), why=why, fix=fix)


class _Forbidden(Exception):
    """A pickle named something outside the allow-list."""


class _StandIn:
    """Keeps what a pickle calls it with, and the state it is given. Each has __setstate__: without one, a pickle could
    write attributes of the class itself."""

    def __init__(self, *given: Any) -> None:
        self.given = given
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype(_StandIn):
    """numpy.dtype(code, align, copy), then a state whose second item is the byte order."""

    def dtype(self) -> np.dtype[Any]:
        code, order = self.given[0], self.state[1] if self.state else "|"
        name = _text(order).replace("|", "") + _text(code)
        kind = np.dtype(name)
        if kind.kind not in "biuf":
            raise _Forbidden(f"an array of {name!r}")
        return kind


class _Array(_StandIn):
    """numpy's _reconstruct(ndarray, (0,), code), then a state (version, shape, dtype, column order, bytes)."""

    def array(self) -> np.ndarray:
        _, shape, kind, by_column, raw = self.state
        dtype = kind.dtype()
        if not isinstance(raw, bytes) or math.prod(shape) * dtype.itemsize != len(raw):
            raise ValueError(f"an array of shape {shape} does not fit its bytes")
        return np.frombuffer(raw, dtype).reshape(shape, order="F" if by_column else "C")


class _Latin1(_StandIn):
    """_codecs.encode(text, 'latin1'): how Python 3 writes bytes for Python 2."""

    def __new__(cls, text: str, codec: str) -> Any:
        return text.encode("latin1")


def _text(value: Any) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _Forbidden(f"{module}.{name}")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _Forbidden("a persistent object")


_ALLOWED: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Latin1,
}
