"""SimCLR: among all views of all images in a batch, each view must recognise the other one of its own image.

    z = g(f(v)) / |g(f(v))|,  2N rows;   l_i = -log( exp(z_i.z_j / T) / sum over k != i of exp(z_i.z_k / T) ),
    j the other view of i's image;   L = mean of l_i over the 2N rows

Chen et al. 2020. The authors sum the means of the two halves, which is 2 L; L is what lightly and most others minimise.
Negatives come from all processes. Batch norm, in the head too, sees both views at once, as the authors' does. The head
is lightly's (its last batch norm shifts, the authors' only scales). The loss is ours: lightly's gives the same number,
but indexes by a boolean mask, for which a GPU must wait.
"""

from __future__ import annotations

from typing import Any

import torch
from lightly.models.modules.heads import SimCLRProjectionHead
from torch import Tensor, nn

from sandglass import distributed
from sandglass.backbones.grid import Encoder, Features
from sandglass.data.loader import Batch
from sandglass.objectives._base import Objective
from sandglass.objectives._parts import single

PAPER = "arXiv 2002.05709"
VIEWS = "baseline"
KIND = "two views"
BACKBONES = "any"
SETTINGS = {
    "hidden": (2048, 1, 65536),  # width inside the projector
    "out": (128, 1, 65536),  # width of the space in which views are compared
    "temperature": (0.2, 0.01, 10.0),  # 0.5 suits images of 32 px
}
PRESETS = {"blog": {"hidden": 512, "temperature": 0.5}}
TRAIN = {
    "cnn": {  # the authors' 0.075 sqrt(N), at a batch of N = 256
        "optimizer": "lars",
        "lr_per_256": 1.2,
        "momentum": 0.9,
        "weight_decay": 1e-6,
        "warmup_epochs": 10.0,
        "clip_norm": 0.0,
    },
    "transformer": {
        "optimizer": "adamw",
        "lr_per_256": 5e-4,
        "weight_decay": 0.05,
        "warmup_epochs": 10.0,
        "clip_norm": 3.0,
    },
    "blog": {
        "optimizer": "sgd",
        "lr_per_256": 0.06,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "decay": "everything",
        "warmup_epochs": 0.0,
        "clip_norm": 0.0,
    },
}


class SimCLR(Objective):
    """Simple contrastive learning of representations (Chen et al. 2020)."""

    static = True
    together = True

    def __init__(self, encoder: Encoder, settings: dict[str, Any], classes: int) -> None:
        super().__init__(encoder, settings, classes)
        self.temperature = settings["temperature"]
        self.projector = SimCLRProjectionHead(encoder.width, settings["hidden"], settings["out"])

    def loss(self, encoder: Encoder, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        projected = single(self.projector(torch.cat([f.pooled for f in features])))
        self.watch(projected)
        first, second = projected.chunk(2)
        return {"loss": nt_xent(first, second, self.temperature)}


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Both views (n, D) of this process's images -> the mean loss of these 2n rows among the rows of all processes."""
    with torch.autocast(first.device.type, enabled=False):
        rows = nn.functional.normalize(torch.cat((first, second)), dim=1)
        everyone = torch.cat([distributed.gather(view) for view in rows.chunk(2)])
        images = len(everyone) // 2
        own = distributed.rank() * len(first) + torch.arange(len(first), device=rows.device)
        itself, other = torch.cat((own, own + images)), torch.cat((own + images, own))
        is_itself = itself[:, None] == torch.arange(2 * images, device=rows.device)
        logits = (rows @ everyone.T / temperature).masked_fill(is_itself, -torch.inf)
        return nn.functional.cross_entropy(logits, other)
