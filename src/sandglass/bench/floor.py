"""What the views of an image cost a core, function by function: the floor under every input, and where it could sink.

Reading and both views of the recipe `byol` run as training runs them, once without and once with Python's profiler.
Time inside torch belongs to our function that called it; the profiler gives the shares, the run without it the whole.
CPU seconds on one thread, so neighbours do not count.
"""

from __future__ import annotations

import cProfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import CodeType
from typing import Any

import torch
from torch import Tensor

import sandglass
from sandglass.bench import anchor
from sandglass.config import resolve
from sandglass.data.loader import Split, step_generator
from sandglass.views import RECIPES
from sandglass.views.recipes import draw_views, for_size, located_views, make_views

HOME = str(Path(sandglass.__file__).parent)
REST = "everything else"


def costs(split: Split, size: int, batch: int, batches: int) -> tuple[dict[str, float], float]:
    """CPU microseconds an image of each of our functions, the dearest first; and of lightly's transforms, whole."""
    torch.set_num_threads(1)

    rows = torch.arange(batch * batches) % len(split)

    def ours() -> None:
        drawn = draw_views("byol", {}, torch.from_numpy(split.sizes)[rows], size, step_generator(0, 0, 0, "views"))
        for which in torch.arange(batch * batches).split(batch):
            located_views(drawn, split.take(rows[which])[0], which)

    images = anchor.PilImages(split, anchor.transform(for_size(resolve(RECIPES, "byol", {}), size), size, None))

    def lightlys() -> None:
        for row in range(batch):
            images[row % len(images)]

    ours()  # what is done once, such as loading libraries, is not an image's
    whole = 1e6 * median(_seconds(ours) for _ in range(3)) / (batch * batches)
    shares = profiled(ours)
    return {part: whole * share for part, share in shares.items()}, 1e6 * _seconds(lightlys) / batch


def profiled(work: Callable[[], Any]) -> dict[str, float]:
    """Share of CPU time of each function of this package, `module.function`, without that of others of them."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(work)
    spent: defaultdict[str, float] = defaultdict(float)
    for entry in profile.getstats():
        if name := _ours(entry.code):
            spent[name] += entry.inlinetime
            spent[name] += sum(inner.totaltime for inner in entry.calls or () if not _ours(inner.code))
    whole = sum(spent.values())
    shares = {name: seconds / whole for name, seconds in sorted(spent.items(), key=lambda item: -item[1])}
    small = {name: share for name, share in shares.items() if share < 0.01}
    return {name: share for name, share in shares.items() if name not in small} | {REST: sum(small.values())}


def sheet(split: Split, size: int, count: int = 8) -> dict[str, Tensor]:
    """Images and two views of each by both ways, uint8 (count, 3, h, w): `original`, `ours 1`, ... `lightly 2`."""
    rows = torch.arange(count)
    images, sizes = split.take(rows)
    ours = make_views("byol", {}, images, sizes, size, step_generator(0, 0, 0, "views"))
    settings = for_size(resolve(RECIPES, "byol", {}), size)
    torch.manual_seed(0)
    source = anchor.PilImages(split, anchor.transform(settings, size, None))
    pairs = [source[row][0] for row in rows.tolist()]
    theirs = [torch.stack([pair[view] for pair in pairs]) for view in range(2)]
    views = {
        f"{way} {view + 1}": made[view] for way, made in (("ours", ours), ("lightly", theirs)) for view in range(2)
    }
    return {"original": images} | {name: view.mul(255).round().byte() for name, view in views.items()}


def _ours(code: CodeType | str) -> str:
    """`module.function` if it is a function of this package; inner functions and comprehensions count as the outer."""
    if isinstance(code, str) or not code.co_filename.startswith(HOME) or code.co_filename == __file__:
        return ""
    return f"{Path(code.co_filename).stem}.{code.co_qualname.replace('.<locals>', '').split('.<')[0]}"


def _seconds(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
