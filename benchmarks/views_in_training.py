"""Do batched views train as well as torchvision's, made one image at a time? Probes after the same SimCLR training.

    python benchmarks/views_in_training.py cifar-10-python-subset.tar.gz results.csv [--epochs 20] [--seeds 3]

All ways see the same images in the same order from the same weights in the loop of training; only the views differ.
torchvision works on tensors, in float32 as ours do, or on PIL images, where each operation rounds down to 8 bits.
SimCLR recipe at 32 px (no blur), backbone `toy`. A line for each way, seed and probe goes to the table; then the
differences of the means are printed for each probe, with their standard error over the seeds and, to judge them by,
the deviation over the seeds of torchvision's way.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from sandglass.backbones.grid import build
from sandglass.config import Engine, Pretrain, resolve
from sandglass.data import catalog, pack
from sandglass.data.loader import Batch, Clock, open_split
from sandglass.engine.batches import Batches
from sandglass.engine.task import Task
from sandglass.engine.train import train
from sandglass.evaluate import PROBES
from sandglass.evaluate.features import Subject
from sandglass.objectives import OBJECTIVES
from sandglass.views import RECIPES

CPU = torch.device("cpu")
ONE_BY_ONE = v2.Compose(
    [
        v2.RandomResizedCrop(32, (0.08, 1.0), antialias=True),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
        v2.RandomGrayscale(0.2),
    ]
)


class Tensors(Batches):
    """The same batches with views by torchvision, one image after another, from torch's own generator."""

    def _part(self, clock: Clock, which: Tensor, rank: int) -> Batch:
        batch = super()._part(clock, which, rank)
        images, _ = self.task.split.take(batch.index)
        return replace(batch, views=[torch.stack([self.view(image) for image in images]) for _ in range(2)])

    def view(self, image: Tensor) -> Tensor:
        """Of one image (3, 32, 32) of bytes, in 0..1."""
        return ONE_BY_ONE(image.float() / 255).clamp(0, 1)


class PilImages(Tensors):
    def view(self, image: Tensor) -> Tensor:
        picture = ONE_BY_ONE(Image.fromarray(image.permute(1, 2, 0).numpy()))
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


WAYS = {"PIL images": PilImages, "tensors": Tensors, "batched": Batches}


def top1(folder: Path, way: str, seed: int, epochs: int) -> dict[str, float]:
    """Of each probe, on the test images, after a training."""
    split = open_split(folder, "train")
    torch.manual_seed(seed)
    encoder = build("toy", 32, 0, split.info["mean"], split.info["std"])
    objective = OBJECTIVES.get("simclr")(encoder, resolve(OBJECTIVES, "simclr", {"hidden": 64, "out": 32}), 0)
    settings = Pretrain(epochs=epochs, batch_size=128, lr_per_256=4e-3, warmup_epochs=1, precision="float32")
    views = {"simclr": resolve(RECIPES, "simclr", {})}
    task = Task(encoder, objective, {}, split, torch.arange(len(split)), views, 32, settings.model_dump(), seed)
    with tempfile.TemporaryDirectory() as state:
        train(task, Path(state), Engine(checkpoint_minutes=1e6), lambda text: None, WAYS[way](task, CPU))
    subject = Subject(encoder, folder, 32, CPU, labels=1.0, seed=seed, pretrained=None)
    found = {}
    for probe in ("knn", "linear"):
        rows = PROBES.get(probe)(subject, resolve(PROBES, probe, {}), seed)
        found[probe] = next(float(row["value"]) for row in rows if row["metric"] == "top1" and row["split"] == "test")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="an archive in CIFAR-10's format")
    parser.add_argument("table", type=Path, help="a CSV file to write")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        entry = catalog.Entry(name="cifar10", format="cifar10", about="")
        pack.pack(entry, asked.archive, folder, store_size=None, val_fraction=0.1, seed=0, on_bad_image="error")
        n = len(open_split(folder, "train"))
        for seed in range(asked.seeds):
            for way in WAYS:
                for probe, value in top1(folder, way, seed, asked.epochs).items():
                    rows.append({"views": way, "seed": seed, "probe": probe, "top1": value})
                    rows[-1] |= {"epochs": asked.epochs, "train_images": n}
                    print(f"{way:<10} seed {seed}  {probe:<6} top-1 {100 * value:.1f} %", flush=True)
                pd.DataFrame(rows).to_csv(asked.table, index=False)
    for probe, some in pd.DataFrame(rows).groupby("probe"):
        values = {way: 100 * part["top1"].to_numpy() for way, part in some.groupby("views")}
        for way in ("tensors", "PIL images"):
            difference, spread = values["batched"] - values[way], values[way].std(ddof=1)
            error = difference.std(ddof=1) / len(difference) ** 0.5
            print(
                f"{probe}: batched - {way} {difference.mean():+.2f} points, standard error {error:.2f}, "
                f"seeds deviate by {spread:.2f} (n = {len(difference)})"
            )


if __name__ == "__main__":
    main()
