"""The error screen and the exit codes: what is wrong, where, why, how to mend it, and what was kept."""

from __future__ import annotations

import errno
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the `sandglass` command (the BSD sysexits numbers where one fits)."""

    DONE = 0
    USAGE = 2
    CONTENT = 65  # data or a checkpoint is not what it should be
    MISSING = 66  # an input is not there
    NETWORK = 69
    INTERNAL = 70  # our fault
    CANNOT_WRITE = 73
    IO = 74
    RESUMABLE = 75  # stopped early, state saved, run again
    DIVERGED = 76  # non-finite or collapsed
    REFUSED = 77  # for safety
    CONFIG = 78


# Repeating cannot mend these; a scheduler's second attempt at them is a waste.
PERMANENT = {Exit.CONTENT, Exit.MISSING, Exit.CANNOT_WRITE, Exit.DIVERGED, Exit.CONFIG}


class Problem(Exception):
    """Something a person can act on. Shown as one screen, without a traceback.

    `id` is a letter for the area and a number (C config, D data, N network, A archive, B backbone, T training,
    E evaluation, R run folders, P report), stable so that it can be searched for.
    """

    def __init__(
        self, id: str, exit: int, what: str, *, where: str = "", why: str = "", fix: str = "", kept: str = ""
    ) -> None:
        super().__init__(what)
        self.id, self.exit, self.what = id, Exit(exit), what
        self.where, self.why, self.fix, self.kept = where, why, fix, kept

    @classmethod
    def of(cls, error: OSError) -> Problem:
        """What the operating system refused, as a problem."""
        full = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the quota is used up",
            errno.EROFS: "the disk is read-only",
        }
        kept, where = "finished runs and the last checkpoint", str(error.filename or "")
        if error.errno in (*full, errno.EACCES, errno.EPERM):
            why = full.get(error.errno or 0, error.strerror or "")
            return cls("R-120", Exit.CANNOT_WRITE, "cannot write", where=where, why=why, kept=kept)
        return cls("R-121", Exit.IO, "cannot read or write", where=where, why=str(error), kept=kept)

    def record(self) -> dict[str, object]:
        """For status.json; `Problem(**record)` is this problem again."""
        parts = ("id", "what", "where", "why", "fix", "kept")
        return {"exit": int(self.exit)} | {part: getattr(self, part) for part in parts}

    def screen(self) -> str:
        """The message as a person sees it."""
        lines = [f"error {self.id} (exit {int(self.exit)}): {self.what}"]
        for label in ("where", "why", "fix", "kept"):
            text = getattr(self, label)
            if text:
                lines.append(f"  {label:<6} " + text.replace("\n", "\n" + " " * 9))
        lines.append(f"  {'page':<6} docs/errors.md#{self.id.lower()}")
        return "\n".join(lines)


def did_you_mean(name: str, names: object) -> str:
    """'did you mean x?' for the nearest of `names`, else the list of them (three at most are near)."""
    from difflib import get_close_matches

    known = [str(n) for n in names]  # type: ignore[attr-defined]
    near = get_close_matches(str(name), known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"one of: {', '.join(sorted(known))}"
