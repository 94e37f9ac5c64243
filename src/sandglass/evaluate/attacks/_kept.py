"""What is already computed of an attack, part by part: a killed attack goes on and loses some seconds.

A part is a function of what is attacked, of the settings and of the seed; the run's name stands for the last two, and
`of` for the first. A file that is damaged, or of something else, is as if it were not there. Parts go out together: a
write that survives a power cut can take longer than many of them.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sandglass.runs import write_atomic

Part = dict[str, Tensor]
Keep = Callable[[str, Callable[[], Part]], Part]


class Kept:
    """Parts in files of a folder; without a folder they are only computed. `of`: the weights and the device, in words;
    `seconds`: no more is lost, or one part."""

    def __init__(self, folder: Path | None = None, of: str = "", seconds: float = 10.0) -> None:
        self.folder, self.of, self.seconds = folder, of, seconds
        self.parts: dict[str, Part] = {}
        self.unwritten: dict[str, Part] = {}
        self.files = 0
        self.written = time.monotonic()
        for file in sorted(folder.glob("parts-*.pt")) if folder else []:
            self.files = int(file.stem.partition("-")[2]) + 1
            self.parts |= self._read(file)

    def __call__(self, name: str, compute: Callable[[], Part]) -> Part:
        """What `compute` returns, tensors on the CPU, now or the last time."""
        if name not in self.parts:
            self.parts[name] = self.unwritten[name] = compute()
            if self.folder and time.monotonic() - self.written >= self.seconds:
                self._write(self.folder / f"parts-{self.files:06d}.pt")
        return self.parts[name]

    def within(self, shelf: str) -> Keep:
        """The same for an attack that another one uses, under names of its own."""
        return lambda name, compute: self(f"{shelf}/{name}", compute)

    def _write(self, file: Path) -> None:
        buffer = io.BytesIO()
        torch.save(self.unwritten, buffer)
        write_atomic(file, self._seal(buffer.getvalue()) + buffer.getvalue())
        self.files, self.unwritten, self.written = self.files + 1, {}, time.monotonic()

    def _read(self, file: Path) -> dict[str, Part]:
        content = file.read_bytes()
        seal, payload = content[:32], content[32:]
        if seal != self._seal(payload):
            return {}
        try:
            return dict(torch.load(io.BytesIO(payload), weights_only=True))
        except (RuntimeError, pickle.UnpicklingError):  # written by another torch
            return {}

    def _seal(self, payload: bytes) -> bytes:
        return hashlib.sha256(self.of.encode() + b"\0" + payload).digest()
