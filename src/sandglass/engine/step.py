"""One step of training: one encoder forward per view serves the objective and every auxiliary task, and their weighted
sum teaches. What it leaves stays on the device: nothing here asks a tensor for its value, so a GPU is never waited for.

To save memory a batch can be computed in parts, whose gradients are added, and activations can be computed again for
the backward pass (timm's checkpointing). Neither changes what is computed, up to rounding; where it would, it is
refused. As with several processes, only dropout and drop-path draw differently.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sandglass import distributed
from sandglass.auxiliary._base import Auxiliary
from sandglass.backbones.grid import Encoder, Features
from sandglass.data.loader import Batch
from sandglass.engine.written_out import written_out
from sandglass.errors import Exit, Problem
from sandglass.objectives._base import Objective


@dataclass(frozen=True)
class Seen:
    """What a step leaves for those who watch."""

    scalars: dict[str, Tensor]  # of this process's images: the objective's, "task/name", "gradient_norm", "total"
    loss: Tensor  # of the images of all processes, float32
    pooled: Tensor  # of the first view of this process's images, (B, C)
    labels: Tensor  # (B,)
    rows: Tensor  # of the split, that this process saw, (B,), on the CPU
    features: list[Features]  # of the last part
    batch: Batch  # the last part


class Step:
    """Called with the parts of a batch, changes the weights by the rates that the optimiser has then."""

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        auxiliaries: dict[str, Auxiliary],
        optimizer: torch.optim.Optimizer,
        clip_norm: float,  # 0: off
        half: bool,  # bfloat16 where autocast thinks it safe
        parts: int = 1,
    ) -> None:
        self.encoder, self.objective, self.auxiliaries = encoder, objective, auxiliaries
        self.optimizer, self.clip_norm, self.half, self.parts = optimizer, clip_norm, half, parts
        self.trained = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, batches: Iterable[Batch]) -> Seen:
        """`batches`: the parts, of equal size, each made when its turn comes."""
        self.optimizer.zero_grad(set_to_none=True)
        told, pooled, labels, rows = [], [], [], []
        for batch in batches:
            total, scalars, features = self._losses(batch)
            with _seen_once(self.encoder):
                (total / self.parts).backward()
            told.append(scalars | {"total": total.detach()})
            pooled.append(features[0].pooled.detach())
            labels.append(batch.labels)
            rows.append(batch.index)
        whole = told[0] if self.parts == 1 else {key: torch.stack([t[key] for t in told]).mean(0) for key in told[0]}
        loss = whole["total"].float().clone()
        gradients = [p.grad for p in self.trained if p.grad is not None]
        distributed.average([loss, *gradients])
        norm = nn.utils.get_total_norm(gradients)
        if self.clip_norm:
            nn.utils.clip_grads_with_norm_(self.trained, self.clip_norm, norm)
        self.optimizer.step()
        whole["gradient_norm"] = norm
        return Seen(whole, loss, torch.cat(pooled), torch.cat(labels), torch.cat(rows), features, batch)

    def _losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], list[Features]]:
        device = batch.labels.device.type
        # Losses themselves are in float32. A cast that is kept for the next view could not be recorded (graph.py).
        half = torch.autocast(device, dtype=torch.bfloat16, enabled=self.half, cache_enabled=False)
        with half, written_out(self.half and device == "cpu" and not _computes_again(self.encoder)):
            features = self.objective.features(self.encoder, batch)
            scalars = self.objective.loss(self.encoder, features, batch)
            total = scalars["loss"]
            for name, auxiliary in self.auxiliaries.items():
                extra = auxiliary.loss(self.encoder, features[0].grid, batch)
                total = total + batch.now(auxiliary.weight_at) * extra["loss"]
                scalars |= {f"{name}/{key}": value for key, value in extra.items()}
        return total, {key: value.detach() for key, value in scalars.items()}, features


def _computes_again(encoder: Encoder) -> bool:
    return getattr(encoder.model, "grad_checkpointing", False)


@contextmanager
def _seen_once(encoder: Encoder) -> Iterator[None]:
    """For a backward pass that computes again: running statistics of batch norm do not count that a second time."""
    again = _computes_again(encoder)
    kept = [b for m in encoder.modules() if again and isinstance(m, _BatchNorm) for b in m.buffers()]
    before = [b.clone() for b in kept]
    yield
    with torch.no_grad():
        for buffer, value in zip(kept, before, strict=True):
            buffer.copy_(value)


def checkpoint_activations(encoder: Encoder, auxiliaries: dict[str, Auxiliary]) -> None:
    """Have the model compute again what it can. Raises Problem T-114 (78) if it has no layers for that, or if a task
    shows batch norm images whose statistics it is to forget, which it would not know of the second time."""
    try:
        encoder.model.set_grad_checkpointing(True)
        why = "" if encoder.model.grad_checkpointing else "it has no layers for that"
    except (AttributeError, AssertionError):
        why = "it has no layers for that"
    own = [name for name, auxiliary in auxiliaries.items() if auxiliary.own_forward]
    if not why and own and any(isinstance(m, _BatchNorm) for m in encoder.modules()):
        why = f"{own[0]} shows its batch norm images that are not to be counted"
    if why:
        what = f"engine.checkpointing: {type(encoder.model).__name__} cannot compute its activations again"
        raise Problem("T-114", Exit.CONFIG, what, why=why, fix="engine.checkpointing: false")


def refuse_parts(modules: nn.Module, objective: Objective) -> None:
    """Raises Problem T-113 (78) if a batch computed in parts would teach something else."""
    why = ""
    if not objective.rowwise:
        why = f"{type(objective).__name__} compares the images of a batch, or remembers them"
    elif any(isinstance(m, _BatchNorm) and m.training for m in modules.modules()):
        why = "batch norm takes its statistics from the whole batch"
    if why:
        fix = "engine.accumulate: 1; engine.checkpointing: true, or several processes, save memory too"
        raise Problem("T-113", Exit.CONFIG, "engine.accumulate: a batch in parts is another batch", why=why, fix=fix)
