"""The online probe: a linear classifier that learns beside the pretraining and that the pretraining does not notice.

    W <- W - lr v,  v <- 0.9 v + grad,  of the mean cross-entropy of W [f(v1), 1] over the labelled images of the batch

f(v1) are the pooled features of the first view, without a gradient; lr is 0.1 N / 256 at its peak and has the schedule
of the pretraining; no weight decay. As in lightly's benchmarks, after Chen et al. 2020 (arXiv 2002.05709). It starts at
zero, so it draws nothing, and its few sums are written out: no gradient, optimiser or clipping is shared. All its state
is in state_dict.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sandglass import distributed
from sandglass.backbones.grid import Features
from sandglass.errors import Exit, Problem

LR_PER_256 = 0.1
MOMENTUM = 0.9


class OnlineProbe(nn.Module):
    """Features (B, ...) to class scores (B, classes), float32."""

    weights: Tensor  # (C + 1, classes); the last row is the bias
    velocity: Tensor
    counted: Tensor  # right and labelled images since they were last told

    def __init__(self, width: int, classes: int, device: torch.device) -> None:
        super().__init__()
        for name, shape in {"weights": (width + 1, classes), "velocity": (width + 1, classes), "counted": (2,)}.items():
            self.register_buffer(name, torch.zeros(shape, device=device))

    def forward(self, features: Features) -> Tensor:
        return _with_one(features.pooled) @ self.weights

    @torch.no_grad()
    def learn(self, pooled: Tensor, labels: Tensor, lr: float) -> None:
        """One step from this process's pooled features (B, C) and labels (B,), -1 for none; the same in all processes.

        Raises Problem T-107 (78) if the encoder was not shown one view of each image.
        """
        if len(pooled) != len(labels):
            what = f"the online probe needs a feature of each of {len(labels)} images, this objective gives it others"
            fix = "pretrain.online_probe: false; the other probes judge it afterwards"
            raise Problem("T-107", Exit.CONFIG, what, why=f"{len(pooled)} rows", fix=fix)
        with torch.autocast(labels.device.type, enabled=False):
            rows, known = _with_one(pooled), labels >= 0
            scores = rows @ self.weights
            wanted = F.one_hot(labels.clamp_min(0), scores.shape[1])
            gradient = rows.T @ ((scores.softmax(1) - wanted) * known[:, None])  # of the sum of the cross-entropies
            told = torch.stack((((scores.argmax(1) == labels) & known).sum(), known.sum())).to(gradient.dtype)
            distributed.average([gradient, told])
            self.velocity.mul_(MOMENTUM).add_(gradient / told[1].clamp_min(1 / distributed.processes()))
            self.weights.sub_(lr * self.velocity)
            self.counted += told

    def told(self) -> dict[str, float]:
        """Accuracy on the labelled training views since it was last asked, if there were any."""
        right, labelled = self.counted.tolist()
        self.counted.zero_()
        return {"online_train_top1": right / labelled} if labelled else {}


def _with_one(pooled: Tensor) -> Tensor:
    return F.pad(pooled.float(), (0, 1), value=1.0)
