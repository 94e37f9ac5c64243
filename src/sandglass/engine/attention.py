"""Attention in bfloat16 on a CPU, written out: of 65 tokens, PyTorch's fused kernel takes three to four times as long
there to train, a third of the step of a ViT of 15 M, and it is no faster at 785 (docs/speed.md).

    softmax(q k^T / sqrt(d)) v,   scores and softmax in float32, as within the fused kernel

Gradients are a little more exact than the kernel's. Whatever calls `F.scaled_dot_product_attention` finds it, be it a
model of ours or of timm's.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def written_out(wanted: bool) -> AbstractContextManager[Any]:
    """The context for a forward pass in bfloat16 on a CPU. A backward pass leaves it, so what that computes again, it
    would compute by the kernel: not for such models."""
    return _WrittenOut() if wanted else nullcontext()


class _WrittenOut(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is F.scaled_dot_product_attention and not (given.get("is_causal") or given.get("enable_gqa")):
            return attend(*args, **{key: given[key] for key in given if key not in ("is_causal", "enable_gqa")})
        return func(*args, **given)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *,
    scale: float | None = None,
) -> Tensor:
    """(..., N, d), (..., M, d), (..., M, e) to (..., N, e). A mask (..., N, M) is added; a bool says who is seen."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast(query.device.type, enabled=False):
        query, key = (t.to(torch.float32, memory_format=torch.contiguous_format) for t in (query, key))
        scores = (query * scale) @ key.transpose(-2, -1)
        if attn_mask is not None:
            seen = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if seen else scores + attn_mask
        return F.dropout(scores.softmax(-1).to(torch.bfloat16), dropout_p) @ value.to(torch.bfloat16)
