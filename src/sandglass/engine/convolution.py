"""Convolutions of small, wide maps in bfloat16 on a CPU, written out: with channels last, oneDNN computes them at half
to two thirds of the rate of others (docs/speed.md).

    out[n, o, r] = sum over c, k of w[o, c, k] x[n, c, r + k - p]      by oneDNN, on maps in the usual order
    dw[o, c, k] = sum over n, r of dout[n, o, r] x[n, c, r + k - p]    one matrix product for each k

Sums are in float32 and rounded once, as oneDNN's. What lies beyond the edge is left out of the products: of nine taps
on 4 x 4 cells that is 31 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

IMAGES, CHANNELS = 32, 256  # at least, and channels of both maps
CELLS = 16  # of the map that comes out, at most


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`F.conv2d`: (N, C, H, W) and (O, C, kernel) to (N, O, h, w). Written out for many small, wide maps; without bias,
    strides, dilation and groups; and not for kernels of one cell, which are matrix products already."""
    plain = bias is None and groups == 1 and all(each in (1, (1, 1)) for each in (stride, dilation))
    wide = input.ndim == 4 and len(input) >= IMAGES and min(weight.shape[:2]) >= CHANNELS
    if plain and wide and weight[0, 0].numel() > 1 and (isinstance(padding, int) or len(padding) == 2):
        padding = (padding, padding) if isinstance(padding, int) else tuple(padding)
        h, w = (size + 2 * p - k + 1 for size, k, p in zip(input.shape[2:], weight.shape[2:], padding))
        if h * w <= CELLS:
            with torch.autocast(input.device.type, enabled=False):
                return _SmallMaps.apply(input.bfloat16(), weight.bfloat16(), padding)
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


class _SmallMaps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, padding=padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad, padding, wanted = grads[0].contiguous(), ctx.padding, ctx.needs_input_grad
        dx = conv2d_input(list(x.shape), weight, grad, padding=padding) if wanted[0] else None
        dw = weight_gradient(x, grad, weight.shape[2:], padding) if wanted[1] else None
        return dx, dw, None


def weight_gradient(x: Tensor, grad: Tensor, kernel: Sequence[int], padding: Sequence[int]) -> Tensor:
    """(N, C, H, W) and (N, O, h, w) to (O, C, *kernel)."""
    out = x.new_empty(*kernel, grad.shape[1], x.shape[1])
    x, grad = (t.permute(2, 3, 0, 1).contiguous() for t in (x, grad))  # cells first, so a tap takes them whole
    for tap in product(*map(range, kernel)):
        (i, r), (j, s) = map(_met, tap, padding, x.shape, grad.shape)
        out[tap] = grad[r, s].flatten(0, 2).T @ x[i, j].flatten(0, 2)
    return out.permute(2, 3, 0, 1)


def _met(tap: int, padding: int, size: int, out: int) -> tuple[slice, slice]:
    """Along one axis: the cells of the input that a tap meets, and those of the output where it does."""
    first = max(0, padding - tap)
    last = max(first, min(out, size + padding - tap))
    return slice(first + tap - padding, last + tap - padding), slice(first, last)
