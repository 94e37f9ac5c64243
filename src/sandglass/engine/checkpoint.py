"""Whole training state on disk: written atomically with its sha256, the last two kept, loaded as tensors only."""

from __future__ import annotations

import io
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from sandglass.errors import Exit, Problem
from sandglass.runs import read_json, sha256, write_atomic, write_json

KEPT = 2  # a damaged newest file must not lose the run


def save(folder: Path, step: int, state: dict[str, Any], **facts: Any) -> None:
    """Write state as <folder>/step-<step>.pt and name it in manifest.json, which is what counts."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    file = folder / f"step-{step:08d}.pt"
    write_atomic(file, buffer.getvalue())
    entry = {"file": file.name, "step": step, "run": folder.parent.name, "sha256": sha256(file), **facts}
    entries = [entry, *(e for e in _entries(folder) if e["file"] != file.name)][:KEPT]
    write_json(folder / "manifest.json", entries)
    for old in folder.glob("step-*.pt"):
        if old.name not in {e["file"] for e in entries}:
            old.unlink()


def newest(folder: Path) -> dict[str, Any] | None:
    """The manifest entry of the newest checkpoint that is whole; None if there is none yet.

    Raises Problem T-120 (65) when there were checkpoints and none of them is whole; T-121 (77) when they were copied
    here from another run.
    """
    entries = _entries(folder)
    if others := sorted({entry["run"] for entry in entries} - {folder.parent.name}):
        raise Problem(
            "T-121",
            Exit.REFUSED,
            f"these checkpoints are of another run: {', '.join(others)}",
            where=str(folder),
            why="to go on from them would give a result under the wrong name",
            fix=f"remove {folder} to start this run anew",
            kept="everything",
        )
    for entry in entries:
        file = folder / entry["file"]
        if file.is_file() and sha256(file) == entry["sha256"]:
            return entry
    if entries:
        raise Problem(
            "T-120",
            Exit.CONTENT,
            "no checkpoint of this run is whole",
            where=str(folder),
            why="every file listed in manifest.json is missing or has another sha256",
            fix=f"remove {folder} to start this run anew",
            kept="the damaged files",
        )
    return None


def load(folder: Path, entry: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The state of a manifest entry. Tensors and plain values only: nothing in the file is executed.

    Raises Problem T-122 (77) for a file that holds anything else.
    """
    file = folder / entry["file"]
    try:
        return dict(torch.load(file, map_location=device, weights_only=True))
    except (UnpicklingError, EOFError, RuntimeError, ValueError) as error:
        what, why = "a checkpoint holds something else than tensors and numbers", str(error).partition("\n")[0][:100]
        fix = f"remove {folder} to start this run anew"
        raise Problem("T-122", Exit.REFUSED, what, where=str(file), why=why, fix=fix, kept="everything") from None


def _entries(folder: Path) -> list[dict[str, Any]]:
    manifest = folder / "manifest.json"
    return list(read_json(manifest)) if manifest.exists() else []
