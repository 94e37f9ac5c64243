"""Operations whose kernels in PyTorch are slow in bfloat16 on a CPU, computed another way (docs/speed.md).

They take the arguments of what they stand for, and leave it what they do not write out. Whatever asks for it finds
them, be it a model of ours or of timm's.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from sandglass.engine.attention import attend
from sandglass.engine.convolution import convolve

OPERATIONS = {F.scaled_dot_product_attention: attend, torch.conv2d: convolve}


def written_out(wanted: bool) -> AbstractContextManager[Any]:
    """The context for a forward pass in bfloat16 on a CPU. A backward pass leaves it, so what that computes again, it
    would compute by the kernel: not for such models."""
    return _WrittenOut() if wanted else nullcontext()


class _WrittenOut(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return OPERATIONS.get(func, func)(*args, **(kwargs or {}))
