"""What several objectives share: seeing views, momentum copies, their schedule, queues, and a measure of collapse."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sandglass.backbones.grid import Features
from sandglass.errors import Exit, Problem


def see(encoder: nn.Module, views: list[Tensor], together: bool) -> list[Features]:
    """What an encoder says of views (B, 3, S, S): one forward for each, or one for all of a size.

    The first gives every view batch-norm statistics of its own, the second shares them among the views of a size.
    """
    if not together:
        return [encoder(view) for view in views]
    found: dict[int, Features] = {}
    sizes = [view.shape[-1] for view in views]
    for size in dict.fromkeys(sizes):
        at = [i for i, side in enumerate(sizes) if side == size]
        whole: Features = encoder(torch.cat([views[i] for i in at]))
        parts = zip(whole.raw.chunk(len(at)), whole.grid.chunk(len(at)), whole.pooled.chunk(len(at)), strict=True)
        found |= {i: Features(*part) for i, part in zip(at, parts, strict=True)}
    return [found[i] for i in range(len(views))]


def large(views: list[Tensor]) -> int:
    """How many views are of the largest size: they come first. Raises Problem T-166 (78) if fewer than two do."""
    sides = [view.shape[-1] for view in views]
    count = sides.count(max(sides))
    if count < 2 or min(sides[:count]) < max(sides):
        what = f"two large views, then any number of smaller ones, are needed; these have sides of {sides} px"
        raise Problem("T-166", Exit.CONFIG, what, fix="pretrain.views: multi_crop, or a recipe with count: 2")
    return count


@torch.no_grad()
def enqueue(queue: Tensor, rows: Tensor, step: int) -> None:
    """Put rows (n, ...) where the oldest of `queue` (length, ...) are; every step before this one has put n rows too.

    So the place follows from the step, and the queue is full when step * n reaches its length.
    """
    n, length = len(rows), len(queue)
    if length:
        places = (step * n + torch.arange(n, device=queue.device)) % length
        queue[places[-length:]] = rows[-length:].to(queue.dtype)  # of more rows than there are places, the last


def still(module: nn.Module) -> nn.Module:
    """Make a module a target: no gradients, and no noise of its own (drop-path and dropout rates 0). Returns it."""
    for inner in module.modules():
        for rate in ("drop_prob", "p"):
            if isinstance(getattr(inner, rate, None), float):
                setattr(inner, rate, 0.0)
    return module.requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """theta' <- momentum * theta' + (1 - momentum) * theta, parameters only, in one fused call."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1.0 - momentum)


def cosine(progress: float, start: float, end: float) -> float:
    """From `start` at progress 0 to `end` at 1 along half a cosine (BYOL's momentum, arXiv 2006.07733)."""
    return end - (end - start) * 0.5 * (1.0 + math.cos(math.pi * progress))


def effective_rank(rows: Tensor) -> Tensor:
    """exp(entropy of the singular values) of the centred rows (N,C); 1 if all are the same. Roy & Vetterli, 2007."""
    values = torch.linalg.svdvals(rows - rows.mean(dim=0))
    values = values * (values > 1e-6 * rows.norm())  # what rounding leaves of a constant is no dimension
    share = values / values.sum().clamp_min(1e-30)
    return torch.special.entr(share).sum().exp()


def single(x: Tensor) -> Tensor:
    """float32 for what autocast made half precision: losses sum too many terms for it. float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
