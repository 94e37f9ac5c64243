"""The error screen and the exit codes: what is wrong, where, why, how to mend it, and what was kept."""

from __future__ import annotations

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


class Problem(Exception):
    """Something a person can act on. Shown as one screen, without a traceback.

    `id` is a letter for the area and a number (C config, D data, N network, A archive, B backbone, T training,
    E evaluation, R run folders, P report), stable so that it can be searched for.
    """

    def __init__(
        self, id: str, exit: Exit, what: str, *, where: str = "", why: str = "", fix: str = "", kept: str = ""
    ) -> None:
        super().__init__(what)
        self.id, self.exit, self.what = id, exit, what
        self.where, self.why, self.fix, self.kept = where, why, fix, kept

    def screen(self) -> str:
        """The message as a person sees it."""
        lines = [f"error {self.id} (exit {int(self.exit)}): {self.what}"]
        for label in ("where", "why", "fix", "kept"):
            text = getattr(self, label)
            if text:
                lines.append(f"  {label:<6} " + text.replace("\n", "\n" + " " * 9))
        return "\n".join(lines)


def did_you_mean(name: str, names: object) -> str:
    """'did you mean x?' for the nearest of `names`, else the list of them (three at most are near)."""
    from difflib import get_close_matches

    known = [str(n) for n in names]  # type: ignore[attr-defined]
    near = get_close_matches(str(name), known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"one of: {', '.join(sorted(known))}"
