"""Self-Classifier: classify every view, and let each view's classes be the target of the others, both given that all
classes are equally frequent; no negatives, no momentum copy, no pseudo-labels.

    s: cosines of unit(g(f(v))) with the unit rows of a head of C classes, over the N images of a batch
    target      t = p(y | x_a):  softmax over images of s_a / column_temperature = p(x | y), then shares over classes
    prediction  q = p(y | x_b):  r / (C mean_n r),  r = softmax over classes of s_b / row_temperature
    L = mean over heads, over ordered pairs of views of which one is large, and over the batch, of  - sum_c t log q

Amrani, Karlinsky and Bronstein 2022. Gradients flow through the target too. Column softmax and mean are over the images
of all processes. The authors' logits have a learned scale for each class, here fixed at 1, so that they are cosines;
these are bounded, and in logarithms no epsilon is needed. `queue`: the first view may be replaced by its nearest
neighbour among earlier images (their `nn-aug`). Wants 3 images in a batch for each class of the largest head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn

from sandglass import distributed
from sandglass.backbones.grid import Encoder, Features
from sandglass.data.loader import Batch
from sandglass.errors import Exit, Problem
from sandglass.objectives._base import Objective, information
from sandglass.objectives._parts import enqueue, large, single

PAPER = "arXiv 2103.10994"
VIEWS = "multi_crop"
KIND = "two views and smaller crops"
BACKBONES = "any that takes smaller crops"
SETTINGS = {
    "hidden": (4096, 1, 65536),  # width inside the projector
    "out": (128, 1, 65536),  # width of the space in which views are classified
    "classes": (0, 0, 100000),  # of the first head; 0: as many as the data set has
    "heads": [1, 2, 4, 8],  # classes of each head, in multiples of the first's
    "row_temperature": (0.1, 0.01, 1.0),
    "column_temperature": (0.05, 0.01, 1.0),
    "queue": (0, 0, 1000000),  # images among which neighbours are looked for, at most half of the data; 0: none
    "queue_from_epoch": (10, 0, 100000),
}
TRAIN = {
    "cnn": {"optimizer": "lars", "lr_per_256": 0.3, "weight_decay": 1e-6, "warmup_epochs": 10.0, "clip_norm": 0.0},
    "transformer": {"optimizer": "adamw", "lr_per_256": 5e-4, "weight_decay": 0.05, "warmup_epochs": 10.0},
}


class SelfClassifier(Objective):
    """Self-supervised classification network (Amrani et al. 2022)."""

    views = (2, math.inf)
    together = True
    kept = ("projector", "heads")
    measure = "what the first head's classes tell of an image, in nats,"
    alarm = 0.01
    patience = 500
    remedy = "a lower lr_per_256, a longer warmup_epochs, a larger batch_size, or fewer heads"

    def __init__(self, encoder: Encoder, settings: dict[str, Any], classes: int) -> None:
        super().__init__(encoder, settings, classes)
        self.settings = settings
        first, hidden, out = settings["classes"] or classes, settings["hidden"], settings["out"]
        if first < 2:
            what = f"self_classifier cannot sort images into {first} classes, which is what the data set names"
            raise Problem("T-165", Exit.CONFIG, what, fix="objectives.self_classifier.classes: 10, or what you expect")
        blocks = [(encoder.width, hidden, nn.BatchNorm1d(hidden), nn.LeakyReLU()), (hidden, out, None, None)]
        self.projector = ProjectionHead(blocks)
        self.heads = nn.ParameterList(torch.empty(round(first * times), out) for times in settings["heads"])
        for weight in (*self.heads, *(m.weight for m in self.projector.modules() if isinstance(m, nn.Linear))):
            nn.init.trunc_normal_(weight, std=0.02)
        self.queue: Tensor
        self.owners: Tensor
        self.register_buffer("queue", torch.zeros(settings["queue"], out))
        self.register_buffer("owners", torch.full((settings["queue"],), -1))
        self.told = torch.tensor(math.inf)

    def loss(self, encoder: Encoder, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        first, views = large(batch.views), len(features)
        z = F.normalize(single(self.projector(torch.cat([f.pooled for f in features]))), dim=1)
        z = distributed.gather(z.unflatten(0, (views, -1)).transpose(0, 1))  # (N, V, D)
        asked = torch.arange(views, device=z.device)
        pairs = (asked[:, None] != asked) & ((asked[:, None] < first) | (asked < first))
        losses, log = [], {}
        with torch.autocast(z.device.type, enabled=False):
            z = torch.cat([self.neighbours(z[:, 0], batch)[:, None], z[:, 1:]], 1)
            for head in self.heads:
                s = z @ F.normalize(head, dim=1).T
                losses.append((self.pairwise(s) * pairs).sum() / pairs.sum())
                log[f"classes_used_of_{len(head)}"] = used(s[:, 0].detach())
                if head is self.heads[0]:
                    self.told = information((s.detach()[:, 0] / self.settings["row_temperature"]).softmax(1))
        return {"loss": torch.stack(losses).mean(), "information": self.told} | log

    def pairwise(self, s: Tensor) -> Tensor:
        """Cosines (N, V, C) of one head -> losses (V, V): row the view of the target, column that of the prediction."""
        n, _, classes = s.shape
        target = (s / self.settings["column_temperature"]).log_softmax(0).softmax(2)
        row = (s / self.settings["row_temperature"]).log_softmax(2)
        predicted = row - (row.logsumexp(0) - math.log(n)) - math.log(classes)
        return -torch.einsum("nac,nbc->ab", target, predicted) / n

    def neighbours(self, z: Tensor, batch: Batch) -> Tensor:
        """Unit rows (N, D) of the first view -> those of the nearest other image in the queue, once it is full."""
        if not len(self.queue):
            return z
        own, clock, found = distributed.gather(batch.index.to(z.device, non_blocking=True)), batch.clock, z
        if clock.epoch >= self.settings["queue_from_epoch"] and clock.step * len(z) >= len(self.queue):
            cosines = (z.detach() @ self.queue.T).masked_fill(own[:, None] == self.owners, -math.inf)
            found = self.queue[cosines.argmax(1)]
        enqueue(self.queue, z.detach(), clock.step)
        enqueue(self.owners, own, clock.step)
        return found

    def spread(self) -> float:
        return float(self.told)

    def assign(self, pooled: Tensor) -> Tensor:
        return F.normalize(self.projector(pooled), dim=1) @ F.normalize(self.heads[0], dim=1).T


def used(s: Tensor) -> Tensor:
    """Scores (N, C) -> how many classes are the largest of some row."""
    return s.new_zeros(s.shape[1]).index_fill_(0, s.argmax(1), 1.0).sum()
