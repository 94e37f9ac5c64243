"""Do batched views train as well as torchvision's, made one PIL image at a time? kNN after the same SimCLR training.

    python benchmarks/views_in_training.py cifar-10-python-subset.tar.gz [--epochs 20] [--seeds 3]

Both ways see the same images in the same order from the same weights; only the views differ. SimCLR recipe at 32 px (no
blur), NT-Xent at temperature 0.5, backbone `toy`, AdamW 2e-3 with a cosine. Prints one line per way and seed, then the
difference of the means with its standard error over seeds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from sandglass.backbones.grid import build
from sandglass.config import resolve
from sandglass.data import catalog, pack
from sandglass.data.loader import epoch_order, open_split, step_generator
from sandglass.evaluate import PROBES
from sandglass.evaluate.features import Subject
from sandglass.views.recipes import make_views

BATCH = 128
ONE_BY_ONE = v2.Compose(
    [
        v2.RandomResizedCrop(32, (0.08, 1.0), antialias=True),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
        v2.RandomGrayscale(0.2),
    ]
)


def pil_views(images: Tensor) -> list[Tensor]:
    """Two views (B, 3, 32, 32) of uint8 images, by torchvision on PIL images; draws from torch's global generator."""
    pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()]
    stacks = (np.stack([np.asarray(ONE_BY_ONE(picture)) for picture in pictures]) for _ in range(2))
    return [torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255 for stack in stacks]


def train_and_judge(folder: Path, way: str, seed: int, epochs: int) -> float:
    """Top-1 of the weighted kNN probe (k = 200) on the test images."""
    split = open_split(folder, "train")
    torch.manual_seed(seed)
    encoder = build("toy", 32, 0, split.info["mean"], split.info["std"])
    projector = SimCLRProjectionHead(encoder.width, 64, 32)
    loss = NTXentLoss(0.5)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *projector.parameters()], lr=2e-3, weight_decay=0.01)
    steps = len(split) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    torch.manual_seed(100 + seed)
    encoder.train()
    for epoch in range(epochs):
        order = epoch_order(len(split), seed, epoch)
        for step in range(steps):
            images, sizes = split.take(order[step * BATCH : (step + 1) * BATCH])
            if way == "pil":
                views = pil_views(images)
            else:
                views = make_views("simclr", {}, images, sizes, 32, step_generator(seed, epoch, step, "views"))
            optimizer.zero_grad()
            loss(*(projector(encoder(view).pooled) for view in views)).backward()
            optimizer.step()
            schedule.step()
    subject = Subject(encoder, folder, 32, torch.device("cpu"), labels=1.0, seed=seed, pretrained=None)
    rows = PROBES.get("knn")(subject, resolve(PROBES, "knn", {}), seed)
    return next(float(row["value"]) for row in rows if row["metric"] == "top1" and row["split"] == "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="an archive in CIFAR-10's format")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        entry = catalog.Entry(name="cifar10", format="cifar10", about="")
        pack.pack(entry, asked.archive, folder, store_size=None, val_fraction=0.0, seed=0, on_bad_image="error")
        found: dict[str, list[float]] = {"pil": [], "batched": []}
        for seed in range(asked.seeds):
            for way, values in found.items():
                values.append(train_and_judge(folder, way, seed, asked.epochs))
                print(f"{way:<8} seed {seed}  kNN top-1 {100 * values[-1]:.1f} %", flush=True)
    difference = 100 * (np.array(found["batched"]) - np.array(found["pil"]))
    error = difference.std(ddof=1) / len(difference) ** 0.5 if len(difference) > 1 else float("nan")
    print(f"batched - pil: {difference.mean():+.2f} points, standard error {error:.2f} (n = {len(difference)} seeds)")


if __name__ == "__main__":
    main()
