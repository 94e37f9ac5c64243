"""timm, imported without PyTorch's compiler.

timm and torchvision import it only to say of a few functions that they are not to be compiled. It is two fifths of what
a job needs to start, and no job compiles. In its place they find here what says the same when the functions are called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

COMPILER = "torch._dynamo"


def _disable(fn: Callable[..., Any] | None = None, recursive: bool = True, **_: Any) -> Any:
    return torch._disable_dynamo(fn, recursive)  # torch's own way to say it before the compiler is there


def _is_compile_supported(device: Any) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device)


if COMPILER not in sys.modules:
    _stand_in, _utils = ModuleType(COMPILER), ModuleType(f"{COMPILER}.utils")
    vars(_stand_in).update(disable=_disable, utils=_utils)
    vars(_utils).update(is_compile_supported=_is_compile_supported)
    sys.modules |= {module.__name__: module for module in (_stand_in, _utils)}
    try:
        import timm
    except (AttributeError, ImportError):  # a version that wants more of it
        pass
    finally:
        del sys.modules[_stand_in.__name__], sys.modules[_utils.__name__]
import timm as timm  # noqa: E402
