"""What is already computed of an attack, one small file for each part: a killed attack goes on from the last one.

A part is a function of what is attacked, of the settings and of the seed; the run's name stands for the last two, and
`of` for the first. A file that is damaged, or of something else, is computed again.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sandglass.runs import write_atomic

Part = dict[str, Tensor]


class Kept:
    """Parts in a folder; without a folder nothing is kept. `of`: the weights and the device, in words."""

    def __init__(self, folder: Path | None = None, of: str = "") -> None:
        self.folder, self.of = folder, of

    def within(self, name: str) -> Kept:
        """A shelf of its own, for an attack that another one uses."""
        return Kept(self.folder / name if self.folder else None, self.of)

    def __call__(self, name: str, compute: Callable[[], Part]) -> Part:
        """What `compute` returns, tensors on the CPU, now or the last time."""
        if self.folder is None:
            return compute()
        file = self.folder / f"{name}.pt"
        part = self._read(file)
        if part is None:
            part = compute()
            buffer = io.BytesIO()
            torch.save(part, buffer)
            write_atomic(file, self._seal(buffer.getvalue()) + buffer.getvalue())
        return part

    def _read(self, file: Path) -> Part | None:
        if not file.is_file():
            return None
        content = file.read_bytes()
        seal, payload = content[:32], content[32:]
        if seal != self._seal(payload):
            return None
        try:
            return dict(torch.load(io.BytesIO(payload), weights_only=True))
        except (RuntimeError, pickle.UnpicklingError):  # written by another torch
            return None

    def _seal(self, payload: bytes) -> bytes:
        return hashlib.sha256(self.of.encode() + b"\0" + payload).digest()
