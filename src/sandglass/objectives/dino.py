"""DINO: predict, from every view, what a slowly moving copy of the network says of the large ones, centred, sharpened.

    P_i = softmax((t_i - c) / teacher temperature),  t: the teacher's scores, without gradient
    L = mean over large views i and all views v != i, and over the batch, of  - sum_k P_i log softmax(s_v / temperature)
    c <- 0.9 c + 0.1 mean(t), after use, over the large views of all processes;  teacher <- m teacher + (1 - m) student

Caron et al. 2021. The teacher starts as an exact copy, keeps batch-norm statistics of its own, and is what is judged.
The momentum starts at 1 - 1 / (0.05 steps), between 0.98 and 0.998: the published values are for runs a hundred times
as long. The last layer has unit rows and rests for an epoch (a tenth of the run at most). The head has batch norm if
the backbone has. Collapse is a teacher that says the same of every image, be it sure or not: it tells nothing of them.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sandglass import distributed
from sandglass.backbones.grid import Encoder, Features
from sandglass.data.loader import Batch
from sandglass.objectives._base import Objective, information
from sandglass.objectives._parts import cosine, follow, large, see, single, still

PAPER = "arXiv 2104.14294"
VIEWS = "multi_crop"
KIND = "two views and smaller crops"
BACKBONES = "any that takes smaller crops"
SETTINGS = {
    "hidden": (2048, 1, 65536),  # width inside the head
    "bottleneck": (256, 1, 65536),  # width before its last layer
    "out": (4096, 2, 1000000),  # scores
    "temperature": (0.1, 0.01, 1.0),  # of the student
    "teacher_temperature": (0.04, 0.001, 1.0),  # at the start
    "teacher_temperature_end": (0.04, 0.001, 1.0),  # above 0.07 is unstable
    "warm_share": (0.1, 0.0, 1.0),  # of the run, in which the one becomes the other
    "centre_momentum": (0.9, 0.0, 1.0),
    "momentum": (0.0, 0.0, 1.0),  # of the teacher at the start; 0: by the number of steps
    "momentum_end": (1.0, 0.0, 1.0),
    "frozen_epochs": (1, 0, 1000),  # of the last layer
}
PRESETS = {
    "blog": {"out": 2048, "momentum": 0.99, "momentum_end": 0.99, "frozen_epochs": 0},
}
TRAIN = {
    "cnn": {"optimizer": "sgd", "lr_per_256": 0.03, "weight_decay": 1e-4, "warmup_epochs": 10.0, "clip_norm": 3.0},
    "transformer": {"optimizer": "adamw", "lr_per_256": 5e-4, "weight_decay": 0.04, "warmup_epochs": 10.0},
    "blog": {
        "optimizer": "sgd",
        "lr_per_256": 0.06,
        "weight_decay": 5e-4,
        "decay": "everything",
        "warmup_epochs": 0.0,
        "clip_norm": 0.0,
    },
}


class Head(nn.Module):
    """Pooled features (B, C) to cosines (B, out) of a bottleneck with the unit rows of the last layer."""

    def __init__(self, width: int, hidden: int, bottleneck: int, out: int, norm: bool) -> None:
        super().__init__()
        blocks = [(a, hidden, nn.BatchNorm1d(hidden) if norm else None, nn.GELU(), not norm) for a in (width, hidden)]
        self.layers = ProjectionHead([*blocks, (hidden, bottleneck, None, None, True)])
        self.last = nn.Parameter(nn.init.trunc_normal_(torch.empty(out, bottleneck), std=0.02))
        for layer in self.layers.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor, frozen: bool = False) -> Tensor:
        z = F.normalize(single(self.layers(pooled)), dim=1)
        with torch.autocast(z.device.type, enabled=False):
            return z @ F.normalize(self.last.detach() if frozen else self.last, dim=1).T


class DINO(Objective):
    """Self-distillation with no labels (Caron et al. 2021)."""

    together = True
    kept = ("teacher_head", "centre")
    measure = "what the teacher tells of an image, in nats,"
    alarm = 0.01
    patience = 500
    remedy = "a lower lr_per_256, a longer warmup_epochs, a lower teacher temperature, or a larger batch_size"

    def __init__(self, encoder: Encoder, settings: dict[str, Any], classes: int) -> None:
        super().__init__(encoder, settings, classes)
        self.settings = settings
        norm = any(isinstance(module, _BatchNorm) for module in encoder.modules())
        self.head = Head(encoder.width, settings["hidden"], settings["bottleneck"], settings["out"], norm)
        self.teacher = still(copy.deepcopy(encoder))
        self.teacher_head = still(copy.deepcopy(self.head))
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(settings["out"]))
        self.steps = 1
        self.told = torch.tensor(math.inf)

    def loss(self, encoder: Encoder, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        settings, clock, first = self.settings, batch.clock, large(batch.views)
        self.steps = clock.steps
        frozen = clock.step < min(settings["frozen_epochs"] * clock.steps_per_epoch, clock.steps // 10)
        student = self.head(torch.cat([f.pooled for f in features]), frozen)
        with torch.no_grad():
            taught = see(self.teacher, batch.views[:first], self.together)
            teacher = self.teacher_head(torch.cat([f.pooled for f in taught]))
            wanted = ((teacher - self.centre) / self.teacher_temperature(clock.progress)).softmax(1)
            entropy, self.told = torch.special.entr(wanted).sum(1).mean(), information(wanted)
            mean = teacher.mean(0)
            distributed.average([mean])
            self.centre.lerp_(mean, 1 - settings["centre_momentum"])
        p = wanted.chunk(first)
        predicted = (student / settings["temperature"]).log_softmax(1).chunk(len(features))
        pairs = [(i, v) for i in range(first) for v in range(len(features)) if v != i]
        loss = -torch.stack([(p[i] * predicted[v]).sum(1).mean() for i, v in pairs]).mean()
        return {"loss": loss, "teacher_entropy": entropy, "kl": loss.detach() - entropy, "information": self.told}

    def teacher_temperature(self, progress: float) -> float:
        """Linear from the start to the end of the warm share, constant from there."""
        start, end = self.settings["teacher_temperature"], self.settings["teacher_temperature_end"]
        share = self.settings["warm_share"]
        return end if progress >= share else start + (end - start) * progress / share

    def spread(self) -> float:
        return float(self.told)

    def after_step(self, encoder: Encoder, progress: float) -> None:
        start = self.settings["momentum"] or min(max(1 - 1 / (0.05 * self.steps), 0.98), 0.998)
        momentum = cosine(progress, start, self.settings["momentum_end"])
        follow(self.teacher, encoder, momentum)
        follow(self.teacher_head, self.head, momentum)

    def judged(self, encoder: Encoder) -> Encoder:
        teacher: Any = self.teacher
        return teacher

    def assign(self, pooled: Tensor) -> Tensor:
        return self.teacher_head(pooled) - self.centre
