"""Data-parallel training: W processes share each batch, and their result is that of one process.

Process r takes the r-th W-th of every batch; what is random is drawn for the whole batch and cut, batch norm sees the
whole batch, and gradients are averaged in one all-reduce. So the gradient is that of the whole batch, up to rounding,
and the number of processes is no part of a run's name. Only dropout and drop-path draw differently. Started by torchrun
or by srun with several tasks; process 0 alone writes. A plain all-reduce after the backward pass, instead of a wrapper
around the model, leaves objectives free in what they call and allows parameters without gradients.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sandglass.errors import Exit, Problem

PATIENCE = timedelta(minutes=30)  # process 0 validates while the others wait


def rank() -> int:
    """0 for the process that writes; also when it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def joined() -> Iterator[None]:
    """Inside, the processes that torchrun or srun started know each other."""
    if "RANK" not in os.environ:
        _from_srun()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _together():
        dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _from_srun() -> None:
    """The variables that torchrun would have set, from those of a SLURM step."""
    given = os.environ
    given["RANK"], given["WORLD_SIZE"] = given["SLURM_PROCID"], given["SLURM_STEP_NUM_TASKS"]
    given["LOCAL_RANK"] = given["SLURM_LOCALID"]
    given.setdefault("MASTER_ADDR", given["SLURM_LAUNCH_NODE_IPADDR"])  # where srun is, the first node, runs task 0
    given.setdefault("MASTER_PORT", str(20000 + int(given["SLURM_JOB_ID"]) % 20000))


def tell(go: bool | None = None) -> bool:
    """Process 0 says whether there is something to do; the others, which say nothing, hear it."""
    flag = torch.tensor(int(bool(go)))
    if processes() > 1:
        with _together():
            dist.broadcast(flag, src=0)
    return bool(flag)


def any_of(*flags: bool) -> list[bool]:
    """Each flag: whether it is set in any process. On the CPU, so that no GPU is waited for."""
    if processes() == 1:
        return list(flags)
    told = torch.tensor(flags, dtype=torch.int32)
    with _together():
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in told.tolist()]


@torch.no_grad()
def average(tensors: list[Tensor]) -> None:
    """Replace float32 tensors of one device by their mean over the processes, in one all-reduce."""
    if processes() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _together():
        dist.all_reduce(flat)
    flat /= processes()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


class _Sum(torch.autograd.Function):
    """The sum over processes, as one function of the inputs of all: its gradient is summed over them too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        with _together():
            dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        with _together():
            dist.all_reduce(total)
        return total


class _Gather(torch.autograd.Function):
    """The rows of all processes in order; a row's gradient is what all processes say of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(processes())]
        with _together():
            dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        with _together():
            dist.all_reduce(total)
        return total.chunk(processes())[rank()]


def gather(x: Tensor) -> Tensor:
    """(B/W, ...) of each process -> (B, ...), with gradients: for losses that compare all images of a batch."""
    return x if processes() == 1 else _Gather.apply(x)


class _WholeBatchNorm(TorchFunctionMode):
    """Batch norm, whatever layer asks for it, over the images of all processes. In float32 at least."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def whole_batch_norm() -> Any:
    """A context in which batch norm in training is that of the whole batch."""
    return _WholeBatchNorm() if processes() > 1 else nullcontext()


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return torch.batch_norm(x, weight, bias, running_mean, running_var, False, momentum, eps, False)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    n = values[:, 0].numel() * processes()
    mean = _Sum.apply(values.sum(axes)) / n
    centred = values - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(axes)) / n
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * n / max(1, n - 1)).to(running_var.dtype), momentum)
    y = centred * (variance + eps).rsqrt().view(shape)
    if weight is not None:
        y = y * weight.to(y.dtype).view(shape)
    if bias is not None:
        y = y + bias.to(y.dtype).view(shape)
    return y.to(x.dtype)


@contextmanager
def _together() -> Iterator[None]:
    """A process that is gone ends the others: resumable, from the last checkpoint."""
    try:
        yield
    except RuntimeError as error:
        what = f"process {os.environ.get('RANK', '?')} lost another process of this run"
        raise Problem("T-110", Exit.RESUMABLE, what, why=str(error).splitlines()[0], fix="run again") from None
