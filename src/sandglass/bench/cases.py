"""What is trained in `bench speed`, and the ratios that it has to reach.

Two regimes on two cores: a network so small that the input decides (as it does for every network on a large GPU), and
networks of 11 to 15 million parameters, where only the step can be made faster. All are BYOL steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """A network at a size. Ratios are the least that is asked for; 0 asks for nothing.

    fraction: of the speed with views already in memory. gain: of that step over lightly's defaults (float32, NCHW).
    over_step, over_shipped: speed over lightly's input with our step, and over lightly's loop as it comes; by wall
    clock only, since its workers are processes that run beside.
    """

    name: str
    backbone: str
    size: int  # px
    batch: int  # images
    arguments: dict[str, Any] = field(default_factory=dict)
    heads: dict[str, int] = field(default_factory=dict)  # BYOL's; default: as published
    fraction: float = 0.0
    gain: float = 0.0
    over_step: float = 0.0
    over_shipped: float = 0.0


_TINY = {"channels": [8, 16, 32, 64], "stem_width": 4}  # 0.08 M parameters
_SMALL_HEADS = {"hidden": 256, "out": 64}

CASES = {
    case.name: case
    for case in (
        Case("tiny32", "resnet_toy", 32, 128, _TINY, _SMALL_HEADS, 0.85, 0.0, 3.0, 5.0),
        Case("tiny96", "resnet_toy", 96, 128, _TINY, _SMALL_HEADS, 0.80),
        Case("resnet18", "resnet18_small", 32, 32, fraction=0.97, gain=2.0),
        Case("vit15m", "vit312", 32, 32, fraction=0.97, gain=1.5),
    )
}
