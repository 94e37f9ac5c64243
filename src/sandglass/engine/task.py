"""What a training is: everything that decides what is learned, and nothing about how it is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sandglass.auxiliary._base import Auxiliary
from sandglass.backbones.grid import Encoder
from sandglass.data.loader import Split
from sandglass.engine.online import OnlineProbe
from sandglass.objectives._base import Objective


@dataclass
class Task:
    """Everything that decides what is learned."""

    encoder: Encoder
    objective: Objective
    auxiliaries: dict[str, Auxiliary]
    split: Split
    index: Tensor  # rows of the split to learn from, (N,) int64
    views: dict[str, dict[str, Any]]  # the recipe's name and its settings
    size: int  # px
    train: dict[str, Any]  # an Optimisation section
    seed: int
    frozen: list[nn.Module] = field(default_factory=list)  # kept in eval mode, without gradients
    lr_scales: dict[str, float] = field(default_factory=dict)  # prefix of encoder.model's names -> factor
    online: OnlineProbe | None = None  # learns beside, from the features of the first view
    each_epoch: Callable[[int], dict[str, float]] | None = None  # numbers to log at the end of an epoch; process 0
    check: Callable[[], None] = lambda: None  # raises if the run is no longer ours to write
