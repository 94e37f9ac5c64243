"""What is trained in `bench speed`, and the ratios that it has to reach.

Two regimes on a few cores: a network so small that the input decides, and networks of 11 to 15 million parameters,
where only the step can be made faster. On a GPU the input decides for these too. All are BYOL steps.
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
    steps: int = 12  # that count in a turn: seconds on a CPU, about two seconds on a GPU
    turns: int = 1  # of each input in a round: many short ones where neighbours come and go
    on: str = "cpu"  # where it is measured unless it is named
    fraction: float = 0.0
    gain: float = 0.0
    over_step: float = 0.0
    over_shipped: float = 0.0


_TINY = {"channels": [4, 16, 32, 64], "stem_width": 2}  # 0.08 M parameters
_SMALL_HEADS = {"hidden": 256, "out": 64}

CASES = {
    case.name: case
    for case in (
        Case(
            "tiny32",
            "resnet_toy",
            32,
            128,
            _TINY,
            _SMALL_HEADS,
            turns=4,
            fraction=0.85,
            over_step=3.0,
            over_shipped=5.0,
        ),
        Case("tiny96", "resnet_toy", 96, 64, _TINY, _SMALL_HEADS, steps=4, turns=2, fraction=0.80),
        Case("resnet18", "resnet18_small", 32, 128, steps=2, turns=2, fraction=0.97, gain=2.0),
        Case("vit15m", "vit312", 32, 32, steps=2, turns=2, fraction=0.97, gain=1.5),
        Case("resnet18_32px", "resnet18_small", 32, 128, steps=400, on="cuda", fraction=0.90),
        Case("vit15m_32px", "vit312", 32, 128, steps=400, on="cuda", fraction=0.90),
        Case("resnet18_128px", "resnet18", 128, 256, steps=200, on="cuda", fraction=0.85),
        Case("resnet18_224px", "resnet18", 224, 256, steps=80, on="cuda", fraction=0.85),
    )
}
