"""SwAV: predict, from one view, to which prototypes another was assigned, where all prototypes share a batch equally.

    s_v = z_v . c_k,  z_v = unit(g(f(v))),  c_k unit prototypes        q_i = Sinkhorn(s_i / epsilon), without gradient
    L = mean over large views i and all views v != i, and over the batch, of  - sum_k q_i log softmax(s_v / temperature)

Caron et al. 2020. Sinkhorn runs on logarithms, in which no epsilon overflows, over the rows of all processes.
Prototypes have no bias: it would leave the codes and let the prediction fit how often each occurs without looking. They
rest for `frozen_steps` (an epoch at least, a tenth of the run at most). Epsilon is small at first; after three tenths
of the run it becomes `later_epsilon` if the codes are by then far from uniform. One queue, of the first view, serves
all large views. Collapse is alike features: codes are uniform, a constant predicts them, L = ln K.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import SwaVProjectionHead
from torch import Tensor, nn

from sandglass import distributed
from sandglass.backbones.grid import Encoder, Features
from sandglass.data.loader import Batch, Clock
from sandglass.objectives._base import Objective, deviation
from sandglass.objectives._parts import enqueue, large, single

PAPER = "arXiv 2006.09882"
VIEWS = "multi_crop"
KIND = "two views and smaller crops"
BACKBONES = "any that takes smaller crops"
SETTINGS = {
    "hidden": (2048, 1, 65536),  # width inside the projector
    "out": (128, 1, 65536),  # width of the space of the prototypes
    "prototypes": (0, 0, 65536),  # 0: 30 for each class, 100 at least and 500 at most
    "bias": False,  # of the prototypes
    "temperature": (0.1, 0.01, 1.0),  # of the prediction
    "epsilon": (0.03, 0.001, 1.0),  # of the codes: the smaller, the surer
    "later_epsilon": (0.05, 0.001, 1.0),
    "iterations": (3, 1, 100),  # of Sinkhorn
    "frozen_steps": (500, 0, 1000000),  # of the prototypes; 0: they learn from the start
    "queue": (0, 0, 1000000),  # earlier images that take part in the codes, at most half of the data; 0: none
    "queue_from": (0.075, 0.0, 1.0),  # share of the run after which the queue is used
}
PRESETS = {
    "blog": {"prototypes": 3000, "bias": True, "epsilon": 0.05, "later_epsilon": 0.05, "frozen_steps": 0},
}
CROPS = {
    "cnn": {"crop_scale_min": 0.14, "small_count": 6, "small_crop_scale_min": 0.05, "small_crop_scale_max": 0.14},
}
TRAIN = {
    "cnn": {"optimizer": "lars", "lr_per_256": 0.6, "weight_decay": 1e-6, "warmup_epochs": 10.0, "clip_norm": 0.0},
    "transformer": {"optimizer": "adamw", "lr_per_256": 5e-4, "weight_decay": 0.05, "warmup_epochs": 10.0},
    "blog": {
        "optimizer": "adam",
        "lr_per_256": 1e-3,
        "weight_decay": 1e-6,
        "decay": "everything",
        "warmup_epochs": 0.0,
        "clip_norm": 0.0,
    },
}

LATER = 0.3  # of the run
SURE = 0.8  # entropy of the codes over ln K, below which epsilon may grow


class SwAV(Objective):
    """Swapping assignments between views (Caron et al. 2020)."""

    views = (2, math.inf)
    together = True
    kept = ("projector", "prototypes")
    measure = "of loss, deviation and prototypes in use, the nearest to its limit, in units of that limit,"
    alarm = 1.0
    patience = 500

    def __init__(self, encoder: Encoder, settings: dict[str, Any], classes: int) -> None:
        super().__init__(encoder, settings, classes)
        self.settings = settings
        count = settings["prototypes"] or min(max(30 * classes, 100), 500)
        self.projector = SwaVProjectionHead(encoder.width, settings["hidden"], settings["out"])
        self.prototypes = nn.Linear(settings["out"], count, bias=settings["bias"])
        self.to_the_sphere()
        self.epsilon: Tensor
        self.queue: Tensor
        self.register_buffer("epsilon", torch.tensor(settings["epsilon"]))
        self.register_buffer("queue", torch.zeros(settings["queue"], settings["out"]))
        self.margin = torch.tensor(math.inf)
        self.remedy = f"objectives.swav: {{epsilon: {settings['epsilon'] / 1.5:.2g}, prototypes: {max(2, count // 2)}}}"

    def loss(self, encoder: Encoder, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        settings, clock, first = self.settings, batch.clock, range(large(batch.views))
        z = F.normalize(single(self.projector(torch.cat([f.pooled for f in features]))), dim=1)
        rest = min(max(clock.steps_per_epoch, settings["frozen_steps"]), clock.steps // 10)
        frozen = bool(settings["frozen_steps"]) and clock.step < rest
        with torch.autocast(z.device.type, enabled=False):
            scores = self.scores(z, frozen).chunk(len(features))
            codes = [self.codes(z.detach().chunk(len(features))[i], clock) for i in first]
            predicted = [(s / settings["temperature"]).log_softmax(1) for s in scores]
            pairs = [(i, v) for i in first for v in range(len(features)) if v != i]
            loss = -torch.stack([(codes[i] * predicted[v]).sum(1).mean() for i, v in pairs]).mean()
        enqueue(self.queue, distributed.gather(z.detach().chunk(len(features))[0]), clock.step)
        entropy = torch.special.entr(codes[0]).sum(1).mean() / math.log(codes[0].shape[1])
        distributed.average([entropy])
        if clock.progress >= LATER:
            self.epsilon.copy_(torch.where(entropy < SURE, settings["later_epsilon"], self.epsilon))
        watched = self.guard(loss.detach(), z.detach(), torch.cat(scores).detach())
        return {"loss": loss, "code_entropy": entropy} | watched

    def scores(self, z: Tensor, frozen: bool = False) -> Tensor:
        """Unit rows (B, D) -> cosines with the prototypes (B, K), which do not learn while `frozen`."""
        parts = self.prototypes.weight, self.prototypes.bias
        return F.linear(z, *(part.detach() if frozen and part is not None else part for part in parts))

    @torch.no_grad()
    def codes(self, z: Tensor, clock: Clock) -> Tensor:
        """Of one large view of this process's images: unit rows (B, D) -> (B, K), each row sums to 1."""
        rows = distributed.gather(z)
        n, filled = len(rows), clock.step * len(rows) >= len(self.queue)
        if filled and clock.progress >= self.settings["queue_from"]:
            rows = torch.cat([rows, self.queue])
        q = sinkhorn(self.scores(rows), self.epsilon, self.settings["iterations"])
        return q[:n].chunk(distributed.processes())[distributed.rank()]

    @torch.no_grad()
    def guard(self, loss: Tensor, z: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """How far from collapse, 1 being the edge of it: the loss from ln K, features from each other, and how many
        prototypes are the nearest of some view."""
        n, count = scores.shape
        used = scores.new_zeros(count).index_fill_(0, scores.argmax(1), 1.0).sum()
        ratios = ((1 - loss / math.log(count)) / 0.01, deviation(z).to(loss) / 0.2, used / (min(count, n) / 50))
        self.margin = torch.stack(ratios).min()
        return {"margin": self.margin, "prototypes_used": used}

    def spread(self) -> float:
        return float(self.margin)

    def after_step(self, encoder: Encoder, progress: float) -> None:
        self.to_the_sphere()

    @torch.no_grad()
    def to_the_sphere(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def assign(self, pooled: Tensor) -> Tensor:
        return self.scores(F.normalize(self.projector(pooled), dim=1))


def sinkhorn(scores: Tensor, epsilon: Tensor | float, iterations: int) -> Tensor:
    """(B, K) -> exp(scores / epsilon) with columns made of equal sums, then rows of sum 1, in turn (Cuturi 2013)."""
    q = scores / epsilon
    for _ in range(iterations):
        q = q - q.logsumexp(0, keepdim=True)
        q = q - q.logsumexp(1, keepdim=True)
    return q.exp()
