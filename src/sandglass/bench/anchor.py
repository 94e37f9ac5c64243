"""lightly's own way, as its documentation shows BYOL: the anchor of every speed-up.

Its transforms on one PIL image at a time, in a DataLoader with as many workers as there are cores (none where CPU
seconds are counted: there they can only cost). Nothing is made worse than it is: the images lie decoded in memory,
blur is off where its documentation for small images turns it off, GPU batches come from pinned memory. The policy is
that of our recipe `byol`, which was taken from the same paper.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from sandglass.data.loader import Split

PREFETCHED = 2  # batches a worker, DataLoader's default
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def transform(settings: dict[str, Any], size: int, normalize: dict[str, list[float]] | None) -> BYOLTransform:
    """Its two views by the values of our recipe `byol` as `recipes.for_size` gives them."""
    shared: dict[str, Any] = {
        "input_size": size,
        "min_scale": settings["crop_scale_min"],
        "hf_prob": settings["hflip"],
        "vf_prob": settings["vflip"],
        "cj_prob": settings["jitter"],
        "cj_bright": settings["brightness"],
        "cj_contrast": settings["contrast"],
        "cj_sat": settings["saturation"],
        "cj_hue": settings["hue"],
        "random_gray_scale": settings["grey"],
        "sigmas": (settings["blur_sigma_min"], settings["blur_sigma_max"]),
        "normalize": normalize,
    }
    return BYOLTransform(
        BYOLView1Transform(gaussian_blur=settings["blur"], solarization_prob=settings["solarize"], **shared),
        BYOLView2Transform(gaussian_blur=settings["blur_odd"], solarization_prob=settings["solarize_odd"], **shared),
    )


class PilImages(Dataset[Any]):
    """A packed split as torchvision's own sets give theirs: an array in memory, a PIL image when one is asked for."""

    def __init__(self, split: Split, transform: BYOLTransform) -> None:
        self.labels, self.transform, self.arrays = split.labels.tolist(), transform, []
        for row, (height, width) in enumerate(split.sizes.tolist()):
            image, _ = split.take(np.array([row]))
            self.arrays.append(image[0, :, :height, :width].permute(1, 2, 0).contiguous().numpy())

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.arrays[row])), self.labels[row]


@contextmanager
def batches(images: PilImages, batch: int, steps: int, workers: int, device: torch.device) -> Iterator[Iterator[Any]]:
    """`steps` batches ([view, view], labels) on the device, once what workers made ahead has been used up."""
    ahead = PREFETCHED * workers
    order = RandomSampler(images, num_samples=(steps + 2 * ahead) * batch)  # work goes on to the end, as in an epoch
    loader = DataLoader(images, batch, sampler=order, num_workers=workers, pin_memory=device.type == "cuda")

    def stream() -> Generator[Any, None, None]:
        made = iter(loader)
        for _ in range(ahead):
            next(made)
        for views, labels in made:
            yield [view.to(device, non_blocking=True) for view in views], labels.to(device, non_blocking=True)

    with closing(stream()) as moved:  # which ends the workers, so that none works on in another's turn
        yield moved


class Shipped(nn.Module):
    """BYOL as lightly's documentation writes it out: its heads, loss and momentum update, SGD, float32, NCHW."""

    def __init__(self, backbone: nn.Module, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = BYOLProjectionHead(width, hidden, out)
        self.prediction_head = BYOLPredictionHead(out, hidden, out)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NegativeCosineSimilarity()
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.06)

    def forward(self, x: Tensor) -> Tensor:
        return self.prediction_head(self.projection_head(self.backbone(x).flatten(start_dim=1)))

    def forward_momentum(self, x: Tensor) -> Tensor:
        return self.projection_head_momentum(self.backbone_momentum(x).flatten(start_dim=1)).detach()

    def step(self, x0: Tensor, x1: Tensor) -> Tensor:
        update_momentum(self.backbone, self.backbone_momentum, m=0.996)
        update_momentum(self.projection_head, self.projection_head_momentum, m=0.996)
        p0, z0 = self(x0), self.forward_momentum(x0)
        p1, z1 = self(x1), self.forward_momentum(x1)
        loss = 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()
