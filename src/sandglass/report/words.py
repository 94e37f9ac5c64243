"""Numbers as a reader wants them: accuracies in percent with one decimal, a mean never without its spread or its n, and
a difference never without what so few seeds can decide about it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from sandglass.report.statistics import ALPHA, Comparison, Summary, holm, smallest_p, summarise, wilson

_GLUE = re.compile(r"(?<=\b[np]) (?==)|(?<=[=±]) (?=\d)|(?<=\d) (?=[±%])")


def percent(values: Sequence[float]) -> str:
    """'93.1 ± 0.4' from fractions; without the deviation for one seed."""
    s = summarise(values)
    return f"{100 * s.mean:.1f}".replace("-", "−") + (f" ± {100 * s.deviation:.1f}" if s.n > 1 else "")


def percent_n(values: Sequence[float]) -> str:
    return f"{percent(values)} % (n = {len(values)})"


def interval(values: Sequence[float], images: int) -> str:
    """95 % over seeds; for one seed that of its test images, with a mark."""
    s = summarise(values)
    if s.n > 1:
        low, high, mark = s.low, s.high, ""
    elif images:
        (low, high), mark = wilson(s.mean * images, images), " *"
    else:
        return "–"
    return f"{100 * max(low, 0):.1f} – {100 * min(high, 1):.1f}{mark}"


def between(low: float, high: float) -> str:
    """An interval of what may be below 0, in percent or points."""
    return f"{100 * low:.1f} – {100 * high:.1f}".replace("-", "−")


def number(s: Summary) -> str:
    """Mean and deviation of any quantity: two digits of the deviation, and the mean to the same place."""
    if s.n == 1 or s.deviation < 1e-9 * abs(s.mean):
        return f"{s.mean:.4g}" + (" ± 0" if s.n > 1 else "")
    places = max(0, 1 - math.floor(math.log10(s.deviation))) if s.deviation else 0
    if places > 6:
        return f"{s.mean:.3g} ± {s.deviation:.2g}"
    return f"{s.mean:.{places}f} ± {s.deviation:.{places}f}"


def signed(points: float) -> str:
    """A difference of fractions in points, with its sign."""
    text = f"{100 * points:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def probability(p: float) -> str:
    return f"{p:.2f}" if p >= 0.01 else f"{p:.1g}"


def cell(c: Comparison | None) -> str:
    """A comparison in a table."""
    return f"{signed(c.difference)}, p = {probability(c.p)}" if c else ""


def verdict(c: Comparison) -> str:
    """A comparison in a sentence."""
    text = f"exact p = {probability(c.p)}"
    return text if c.can_decide else f"{text}: {too_few(c)}, where no p is below {probability(c.smallest)}"


def too_few(c: Comparison) -> str:
    """What is true of a comparison that cannot decide, whatever its numbers."""
    n = f"n = {c.n[0]}" if c.n[0] == c.n[1] else f"n = {c.n[0]} and {c.n[1]}"
    return f"cannot be significant with {n}{' pairs' if c.paired else ''}"


def limits(used: list[Comparison]) -> list[str]:
    """What the p values of a table can and cannot mean, once for the table."""
    if not used:
        return []
    paired, count, told = used[0].paired, times(len(used), "comparison"), set()
    notes = [
        f"p: exact two-sided permutation test {'within pairs of one seed' if paired else 'between groups of seeds'}."
    ]
    if len(used) > 1:
        decided = sum(p <= ALPHA for p in holm([c.p for c in used]))
        notes[0] += f" After Holm's correction for {count}, p ≤ {ALPHA} in {decided or 'none'}."
    for c, corrected in zip(used, holm([c.smallest for c in used]), strict=True):
        if corrected > ALPHA and c.n not in told:
            told.add(c.n)
            alone = not c.can_decide
            least, family, what = (c.smallest, 1, "A") if alone else (corrected, len(used), f"Corrected for {count}, a")
            enough = next(n for n in range(2, 99) if family * smallest_p(n, n, paired) <= ALPHA)
            notes.append(
                f"{what} difference {too_few(c)}, whatever its size: its p is {probability(least)} or more. "
                f"It takes n = {enough}."
            )
    return notes


def test_size(accuracies: Sequence[float], images: int) -> list[str]:
    """What the number of test images alone leaves open."""
    if not accuracies or not images:
        return []
    mean = summarise(accuracies).mean
    low, high = wilson(mean * images, images)
    return [
        f"{images:,} test images alone leave ± {50 * (high - low):.1f} points (Wilson, 95 %) around an accuracy of "
        f"{100 * mean:.0f} %; seeds share these images, so the spread over seeds does not contain it."
    ]


def span(fractions: Sequence[float]) -> str:
    """'86.1' or '86.1 – 93.2', in percent."""
    low, high = (f"{100 * end(fractions):.1f}" for end in (min, max))
    return low if low == high else f"{low} – {high}"


def counts(numbers: Sequence[int]) -> str:
    """'n = 3' or 'n = 2 to 3'."""
    low, high = min(numbers), max(numbers)
    return f"n = {low}" if low == high else f"n = {low} to {high}"


def times(count: int, thing: str) -> str:
    """'1 run', '3 runs'."""
    return f"{count} {thing}{'s' * (count != 1)}"


def of(count: int, asked: int) -> str:
    """How many seeds, and of how many if some are missing."""
    return f"{count}" if count >= asked else f"{count} of {asked}"


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def bound(text: str) -> str:
    """Numbers kept on one line with what belongs to them."""
    return _GLUE.sub("\N{NO-BREAK SPACE}", text)


def minutes(amount: float) -> str:
    return f"{amount / 60:.1f} hours" if amount >= 120 else f"{amount:.1f} minutes"
