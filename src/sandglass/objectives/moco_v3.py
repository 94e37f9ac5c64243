"""MoCo v3: predict, from one view, which image of the batch a slowly moving copy of the network saw in the other view.

    q = h(g(f(v))) / |.|,   k = g'(f'(w)) / |.|,   ctr(q, k) = 2 T mean over i of -log softmax_j( q_i.k_j / T )[i]
    L = ctr(q1, sg k2) + ctr(q2, sg k1);   theta' <- m theta' + (1 - m) theta  after each step,  m from `momentum` to 1

Chen, Xie & He 2021. Negatives are the other images' keys of the other view, from all processes; there is no queue, and
lightly has no such loss. Linear layers of the heads have no bias; batch norm follows each, the last without scale and
shift, which lightly's MoCoProjectionHead has: so the heads are put together here. The default is the authors' form for
transformers, `preset: resnet` that for ResNets. As there, a transformer's patch embedding keeps its random weights,
which steadies training; a model without one has nothing to freeze. Learnt position embeddings stay learnt.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import torch
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn

from sandglass import distributed
from sandglass.backbones.grid import Encoder, Features
from sandglass.data.loader import Batch
from sandglass.objectives._base import Objective
from sandglass.objectives._parts import cosine, follow, see, single, still

PAPER = "arXiv 2104.02057"
VIEWS = "baseline"
KIND = "two views"
BACKBONES = "any"
SETTINGS = {
    "hidden": (4096, 1, 65536),  # width inside projector and predictor
    "out": (256, 1, 65536),  # width of the space in which views are compared
    "layers": (3, 1, 8),  # of the projector
    "predictor_norm": True,  # batch norm after the predictor's last layer too
    "momentum": (0.99, 0.0, 1.0),  # of the target at the start; 1 at the end
    "temperature": (0.2, 0.01, 10.0),
    "freeze_patch_embed": True,  # where the model has one
}
PRESETS = {"resnet": {"layers": 2, "predictor_norm": False, "temperature": 1.0}}
TRAIN = {
    "cnn": {
        "optimizer": "lars",
        "lr_per_256": 0.6,
        "momentum": 0.9,
        "weight_decay": 1e-6,
        "warmup_epochs": 10.0,
        "clip_norm": 0.0,
    },
    "transformer": {
        "optimizer": "adamw",
        "lr_per_256": 1.5e-4,
        "weight_decay": 0.1,
        "warmup_epochs": 10.0,
        "clip_norm": 3.0,
    },
}


class MoCoV3(Objective):
    """Momentum contrast for vision transformers (Chen, Xie & He 2021)."""

    static = True

    def __init__(self, encoder: Encoder, settings: dict[str, Any], classes: int) -> None:
        super().__init__(encoder, settings, classes)
        hidden, out = settings["hidden"], settings["out"]
        self.momentum, self.temperature = settings["momentum"], settings["temperature"]
        self.projector = head([encoder.width, *[hidden] * (settings["layers"] - 1), out], last_norm=True)
        self.predictor = head([out, hidden, out], last_norm=settings["predictor_norm"])
        patch_embed = getattr(encoder.model, "patch_embed", None)
        if settings["freeze_patch_embed"] and patch_embed is not None:
            patch_embed.requires_grad_(False)
        self.target = still(copy.deepcopy(encoder))
        self.target_projector = still(copy.deepcopy(self.projector))

    def loss(self, encoder: Encoder, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        queries = [single(self.predictor(self.projector(f.pooled))) for f in features]
        with torch.no_grad():
            keys = [single(self.target_projector(f.pooled)) for f in see(self.target, batch.views, self.together)]
        self.watch(keys[0])
        first = contrast(queries[0], keys[1], self.temperature)
        second = contrast(queries[1], keys[0], self.temperature)
        return {"loss": first + second}

    def after_step(self, encoder: Encoder, progress: float) -> None:
        momentum = cosine(progress, self.momentum, 1.0)
        follow(self.target, encoder, momentum)
        follow(self.target_projector, self.projector, momentum)


def contrast(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """This process's queries (n, D) and keys (n, D) -> ctr of its queries among the keys of all processes.

    2 T keeps the size of the gradient the same at every temperature.
    """
    own = distributed.rank() * len(queries) + torch.arange(len(queries), device=queries.device)
    with torch.autocast(queries.device.type, enabled=False):
        rows = nn.functional.normalize(queries, dim=1)
        logits = rows @ nn.functional.normalize(distributed.gather(keys), dim=1).T / temperature
        return 2 * temperature * nn.functional.cross_entropy(logits, own)


def head(widths: list[int], last_norm: bool) -> ProjectionHead:
    """Linear layers without bias between these widths; batch norm and ReLU after each but the last."""
    blocks: list[Any] = [(a, b, nn.BatchNorm1d(b), nn.ReLU(), False) for a, b in pairwise(widths[:-1])]
    norm = nn.BatchNorm1d(widths[-1], affine=False) if last_norm else None
    return ProjectionHead([*blocks, (widths[-2], widths[-1], norm, None, False)])
