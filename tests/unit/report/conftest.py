"""A small study as it lies on disk after it was run: digits, three seeds, every stage. The numbers are made up: smooth
functions of what they depend on plus noise from a fixed seed, so that tables and figures look as they will."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EPSILONS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
PROVENANCE = {
    "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "changed": False},
    "versions": {"python": "3.11.2", "sandglass": "0.1.0", "timm": "1.0.31", "torch": "2.15.0"},
    "made": "2025-11-21 03:00 +0000",
}


class Study:
    """Writes run folders below `root` and remembers them in plan order."""

    def __init__(self, root: Path, data: str = "digits", about: str = "A first look at everything.") -> None:
        self.root, self.data = root, data
        self.about = {"name": "demo", "title": "Sandglass demo", "about": about, "published": None, "seeds": [0, 1, 2]}
        self.runs: list[dict[str, Any]] = []
        self.rng = np.random.default_rng(0)
        self.labels = np.arange(300) * 7 % 10

    def folder(self, key: str) -> Path:
        return self.root / "results" / key

    def add(
        self,
        stage: str,
        words: str,
        seed: int | None,
        columns: dict[str, Any],
        rows: list[dict[str, Any]],
        needs: tuple[str, ...] = (),
        settings: dict[str, Any] | None = None,
        minutes: float = 0.2,
    ) -> str:
        name = f"{words}{'' if seed is None else f'-s{seed}'}-{len(self.runs):08x}"
        settings = settings or {"data": self.data, "size": 32}
        run = {
            "stage": stage,
            "name": name,
            "seed": seed,
            "settings": settings,
            "needs": list(needs),
            "columns": columns,
        }
        folder = self.folder(f"{stage}/{name}")
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(run | {"derived": {"device": "cpu", "threads": 2}}))
        (folder / "result.json").write_text(json.dumps({"format": 1, "rows": rows, "files": {}, "minutes": minutes}))
        self.runs.append(run | {"done": True})
        return f"{stage}/{name}"

    def remove_result(self, key: str) -> None:
        (self.folder(key) / "result.json").unlink()
        next(run for run in self.runs if f"{run['stage']}/{run['name']}" == key)["done"] = False

    def keys(self, stage: str) -> list[str]:
        return [f"{run['stage']}/{run['name']}" for run in self.runs if run["stage"] == stage]

    def noise(self, scale: float) -> float:
        return float(self.rng.normal(0, scale))

    def images(self, n: int) -> np.ndarray:
        """(n, 3, 32, 32) uint8."""
        y, x = np.mgrid[:32, :32] / 32
        waves = [np.sin(2 * np.pi * (label % 4 * x + label // 4 * y)) for label in self.labels[:n]]
        return np.stack([np.stack([128 + 100 * wave, 255 * x, 128 - 100 * wave]) for wave in waves]).astype(np.uint8)

    def curve(self, key: str, metrics: Callable[[float], dict[str, float]], steps: int = 300) -> None:
        lines = [
            {"step": s, "epoch": s / 15, **metrics(s / steps), "lr": 1e-3 * (1 - s / steps)}
            for s in range(0, steps + 1, 10)
        ]
        (self.folder(key) / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    # ------------------------------------------------------------------ stages

    def pack(self) -> str:
        counts = {"train": 1149, "val": 288, "test": 360}
        rows = [{"metric": "images", "value": n, "split": split} for split, n in counts.items()]
        key = self.add("data", self.data, None, {"data set": self.data}, rows)
        info = {
            "name": self.data,
            "classes": [str(k) for k in range(10)],
            "counts": counts,
            "size": [8, 8],
            "licence": "CC BY 4.0",
            "citation": "Alpaydin & Kaynak (1998). Optical Recognition of Handwritten Digits. UCI.",
            "fingerprint": "ab" * 32,
        }
        (self.folder(key) / "info.json").write_text(json.dumps(info))
        return key

    def pretrain(self, packed: str, seed: int) -> str:
        columns = {
            "data set": self.data,
            "size": 32,
            "backbone": "hourglass_tiny",
            "objective": "byol",
            "views": "simclr",
        }
        rows = [
            {"metric": "images_per_second", "value": 1500 + self.noise(20)},
            {"metric": "minutes", "value": 2.1 + self.noise(0.1)},
            {"metric": "peak_memory_gib", "value": 0.61},
            {"metric": "feature_std", "value": 0.52 + self.noise(0.02)},
        ]
        columns |= {"init": "scratch", "labels": 1.0}
        key = self.add("pretrain", "digits-hourglass_tiny-byol-simclr", seed, columns, rows, (packed,), minutes=2.1)

        def logged(t: float) -> dict[str, float]:
            return {
                "loss": 0.15 + 1.8 * np.exp(-5 * t) + self.noise(0.02),
                "feature_std": 0.55 - 0.4 * np.exp(-8 * t) + self.noise(0.01),
                "knn_top1": 0.92 - 0.5 * np.exp(-6 * t) + self.noise(0.008),
            }

        self.curve(key, logged)
        images = self.images(8)
        views = {
            f"view{v}": np.clip(np.roll(images, v + 2, axis=3) * (0.7 + 0.3 * v), 0, 255).astype(np.uint8)
            for v in range(2)
        }
        np.savez(self.folder(key) / "views.npz", original=images, **views)
        return key

    def probe(self, packed: str, seed: int, probe: str, init: str, parent: str | None) -> str:
        top1 = {"knn": 0.96, "linear": 0.935}[probe] - {"random": 0.21, "pretrained": 0.0}[init] + self.noise(0.006)
        columns = {"data set": self.data, "size": 32, "backbone": "hourglass_tiny", "init": init, "probe": probe}
        columns |= {"objective": "byol", "views": "simclr"} if parent else {"objective": "none"}
        rows = [
            {"metric": "top1", "value": top1, "split": "test", "n": 360},
            {"metric": "top1", "value": top1 + 0.01, "split": "val", "n": 360},
            {"metric": "top5", "value": 0.99, "split": "test", "n": 360},
        ]
        needs = (packed, parent) if parent else (packed,)
        key = self.add(
            "probe", f"{probe}-digits-hourglass_tiny-{'byol' if parent else 'random'}", seed, columns, rows, needs
        )
        labels = self.labels
        spread = 6.0 if parent else 2.0
        angle = labels * 2 * np.pi / 10
        xy = spread * np.stack([np.cos(angle), np.sin(angle)], 1) + self.rng.normal(0, 1, (300, 2))
        np.savez(self.folder(key) / "embedding.npz", xy=xy.astype(np.float32), labels=labels)
        return key

    def finetune(self, packed: str, seed: int, init: str, auxiliary: str, parent: str | None) -> str:
        gain = {"none": 0.0, "drloc": 0.012, "masked_embedding": 0.006, "drloc+masked_embedding": 0.015}[auxiliary]
        top1 = (0.93 if parent else 0.86) + gain + self.noise(0.008)
        columns = {"data set": self.data, "size": 32, "backbone": "hourglass_tiny", "views": "crop_flip", "init": init}
        columns |= {"labels": 0.1, "auxiliary": auxiliary, "objective": "byol" if parent else "none"}
        rows = [
            {"metric": "top1", "value": top1, "split": "test", "n": 360},
            {"metric": "cross_entropy", "value": 2 * (1 - top1), "split": "test", "n": 360},
            {"metric": "images_per_second", "value": 900 + self.noise(20)},
            {"metric": "minutes", "value": 0.8 + self.noise(0.05)},
            {"metric": "peak_memory_gib", "value": 0.7},
        ]
        needs = (packed, parent) if parent else (packed,)
        key = self.add("finetune", f"digits-hourglass_tiny-{init}-{auxiliary}", seed, columns, rows, needs, minutes=0.8)
        self.curve(key, lambda t: {"loss": 2.3 * np.exp(-(4 if parent else 2.5) * t) + 0.05 + self.noise(0.02)})
        return key

    def attack(self, packed: str, model: str) -> str:
        columns = next(run["columns"] for run in self.runs if f"{run['stage']}/{run['name']}" == model) | {
            "attack": "fgsm"
        }
        clean = json.loads((self.folder(model) / "result.json").read_text())["rows"][0]["value"]
        shared = {"split": "test", "n": 360, "attack": "fgsm"}
        rows: list[dict[str, Any]] = [{"metric": "zero_gradient_share", "value": 0.0} | shared]
        for epsilon in EPSILONS:
            robust = clean * np.exp(-epsilon / 5) + self.noise(0.004) * (epsilon > 0)
            values = {"clean_top1": clean, "robust_top1": robust, "drop": robust - clean, "retention": robust / clean}
            rows += [{"metric": m, "value": v, "epsilon": epsilon} | shared for m, v in values.items()]
        seed = int(model.rpartition("-s")[2][0])
        key = self.add("attack", f"fgsm-{model.partition('/')[2][:-12]}", seed, columns, rows, (packed, model))
        images, labels = self.images(6), self.labels[:6]
        signs = self.rng.choice([-1, 1], images.shape)
        examples = {
            "clean": images,
            "adversarial": np.clip(images + 8 * signs, 0, 255).astype(np.uint8),
            "labels": labels,
            "clean_prediction": labels,
            "adversarial_prediction": np.where(np.arange(6) % 3, labels, 8),
            "epsilon": np.full(6, 8.0, np.float32),
        }
        np.savez(self.folder(key) / "examples.npz", **examples)
        return key


@pytest.fixture
def empty_study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def finished(root: Path, data: str = "digits") -> Study:
    """The whole demo study, run."""
    study = Study(root, data)
    packed = study.pack()
    seeds = (0, 1, 2)
    pretrained = [study.pretrain(packed, seed) for seed in seeds]
    for probe in ("knn", "linear"):
        for seed in seeds:
            study.probe(packed, seed, probe, "pretrained", pretrained[seed])
            study.probe(packed, seed, probe, "random", None)
    models = [
        study.finetune(packed, seed, init, auxiliary, pretrained[seed] if init == "pretrained" else None)
        for seed in seeds
        for init in ("scratch", "pretrained")
        for auxiliary in ("none", "drloc", "masked_embedding", "drloc+masked_embedding")
    ]
    for model in models:
        study.attack(packed, model)
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The finished demo study; tests that change it make their own with `finished`."""
    return finished(tmp_path_factory.mktemp("demo"))
