"""One step of training: one encoder forward per view serves the objective and every auxiliary task, and their weighted
sum teaches. What it leaves stays on the device: nothing here asks a tensor for its value, so a GPU is never waited for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sandglass import distributed
from sandglass.auxiliary._base import Auxiliary
from sandglass.backbones.grid import Encoder, Features
from sandglass.data.loader import Batch
from sandglass.objectives._base import Objective


@dataclass(frozen=True)
class Seen:
    """What a step leaves for those who watch."""

    scalars: dict[str, Tensor]  # of this process's images: the objective's, "task/name", "gradient_norm", "total"
    loss: Tensor  # of the images of all processes, float32
    features: list[Features]
    batch: Batch


class Step:
    """Called with a batch, changes the weights by the rates that the optimiser has then."""

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        auxiliaries: dict[str, Auxiliary],
        optimizer: torch.optim.Optimizer,
        clip_norm: float,  # 0: off
        half: bool,  # bfloat16 where autocast thinks it safe
    ) -> None:
        self.encoder, self.objective, self.auxiliaries = encoder, objective, auxiliaries
        self.optimizer, self.clip_norm, self.half = optimizer, clip_norm, half
        self.trained = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, batch: Batch) -> Seen:
        self.optimizer.zero_grad(set_to_none=True)
        total, scalars, features = self._losses(batch)
        total.backward()
        loss = total.detach().float().clone()
        gradients = [p.grad for p in self.trained if p.grad is not None]
        distributed.average([loss, *gradients])
        norm = nn.utils.get_total_norm(gradients)
        if self.clip_norm:
            nn.utils.clip_grads_with_norm_(self.trained, self.clip_norm, norm)
        self.optimizer.step()
        return Seen(scalars | {"gradient_norm": norm, "total": total.detach()}, loss, features, batch)

    def _losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], list[Features]]:
        device = batch.labels.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.half):  # losses themselves are in float32
            features = self.objective.features(self.encoder, batch)
            scalars = self.objective.loss(self.encoder, features, batch)
            total = scalars["loss"]
            for name, auxiliary in self.auxiliaries.items():
                extra = auxiliary.loss(self.encoder, features[0].grid, batch)
                total = total + auxiliary.weight_at(batch.clock.progress) * extra["loss"]
                scalars |= {f"{name}/{key}": value for key, value in extra.items()}
        return total, {key: value.detach() for key, value in scalars.items()}, features
