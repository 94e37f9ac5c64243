"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, steps: int, warmup_steps: float, schedule: str) -> float:
    """Factor on the peak learning rate at `step` (0 .. steps - 1): linear warm-up, then cosine to 0 or constant.

    The warm-up reaches 1 at step `warmup_steps`; its first step is not 0, so no step is wasted.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    t = (step - warmup_steps) / max(1.0, steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * t))
