"""Attention in bfloat16 on a CPU, written out: of 65 tokens, PyTorch's fused kernel takes three to four times as long
there to train, a third of the step of a ViT of 15 M, and it is no faster at 785 (docs/speed.md).

    softmax(q k^T / sqrt(d)) v,   scores and softmax in float32, as within the fused kernel

Gradients are a little more exact than the kernel's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention`: (..., N, d), (..., M, d), (..., M, e) to (..., N, e). A mask (..., N, M) is
    added; a bool says who is seen. Not written out: `is_causal` and `enable_gqa`."""
    if is_causal or enable_gqa:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast(query.device.type, enabled=False):
        query, key = (t.to(torch.float32, memory_format=torch.contiguous_format) for t in (query, key))
        scores = (query * scale) @ key.transpose(-2, -1)
        if attn_mask is not None:
            seen = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if seen else scores + attn_mask
        return F.dropout(scores.softmax(-1).to(torch.bfloat16), dropout_p) @ value.to(torch.bfloat16)
