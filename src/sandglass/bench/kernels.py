"""What no step can beat: its convolutions and linear maps by themselves, forward and backward, in bfloat16.

They are those that a step asks torch for, with random numbers in the same shapes and layouts, each as often as in the
step and with nothing between them. What precision the step is in does not matter: one that lost bfloat16 would not move
its own floor. Layouts are kept, as some networks cannot have channels last (backbones/grid.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

HALF = torch.bfloat16
CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


def alone(run: Callable[[], Any]) -> Callable[[], None]:
    """All convolutions and matrix products that `run` asks for, to be computed again without the rest."""
    with _Asked() as asked:
        run()

    def again() -> None:
        for key, times in asked.times.items():
            function, arguments = asked.calls[key]
            for _ in range(times):
                function(*arguments)

    return again


class _Asked(TorchDispatchMode):
    """The calls by their shapes: how often, and one of each."""

    def __init__(self) -> None:
        super().__init__()
        self.times: Counter[str] = Counter()
        self.calls: dict[str, tuple[Any, list[Any]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CONVOLUTIONS + PRODUCTS:
            key = str((func, [(a.shape, a.stride()) if isinstance(a, Tensor) else a for a in args]))
            if key not in self.calls:
                numbers = [torch.empty_like(a, dtype=HALF).normal_() if isinstance(a, Tensor) else a for a in args]
                self.calls[key] = func, numbers
            self.times[key] += 1
        return func(*args, **(kwargs or {}))
