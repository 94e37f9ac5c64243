"""What the stages rely on, asked of every probe and every attack in the registers."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sandglass.backbones.grid import Features
from sandglass.config import resolve
from sandglass.evaluate import ATTACKS, PROBES
from sandglass.evaluate.features import Row, Subject

SHORT = {"linear_augmented": {"epochs": 50, "least_steps": 0}}
JUDGED = [name for name in PROBES if name != "clusters"]  # which judges what a pretraining left
PROBE_CASES = [(name, preset) for name in JUDGED for preset in (None, *PROBES.presets(name))]
LIBRARY = ("autoattack", "autoattack_l2")  # tests/unit/evaluate/test_robust_extra.py, where the package is
OWN = [name for name in ATTACKS if name not in LIBRARY]
SWEPT = [name for name in OWN if "epsilons" in ATTACKS.declared(name) and name != "masking"]
FEW = {"square": {"queries": 20}, "masking": {"queries": 20, "steps": 3}}
ATTACK_CASES = [(name, preset) for name in SWEPT for preset in (None, *ATTACKS.presets(name))]


class Colour(nn.Module):
    """An encoder without weights: the mean colour of an image, in deviations of `blobs` from their origin."""

    width = 3

    def forward(self, images: Tensor) -> Features:
        grid = (images * 255 - 60) / 6
        return Features(grid, grid, grid.mean((2, 3)))


def blobs(folder: Path, distance: float) -> Path:
    """Packed 4 x 4 images of one colour each: three classes of unit Gaussians (of 6 levels), their centres `distance`
    from the origin, a grey of level 60; classes 3 to 6 are empty."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir()
    counts = {"train": 300, "val": 150, "test": 600}
    for part, n in counts.items():
        labels = torch.arange(n) % 3
        colours = torch.randn(n, 3, generator=generator) + distance * torch.eye(3)[labels]
        images = (colours * 6 + 60).round().clamp(0, 255).byte()[:, :, None, None].expand(n, 3, 4, 4)
        arrays = {"": images.numpy(), "_labels": labels.numpy(), "_sizes": np.full((n, 2), 4)}
        for name, values in arrays.items():
            np.save(folder / f"{part}{name}.npy", values)
    (folder / "info.json").write_text(json.dumps({"name": "blobs", "counts": counts, "classes": [*"abcdefg"]}))
    return folder


def subject(packed: Path, labels: float = 1.0) -> Subject:
    return Subject(Colour(), packed, 4, torch.device("cpu"), labels, seed=0, pretrained=None)  # type: ignore[arg-type]


def chosen(name: str, preset: str | None) -> dict[str, Any]:
    return resolve(PROBES, name, SHORT.get(name, {}) | ({"preset": preset} if preset else {}))


def accuracy(rows: list[Row], split: str) -> float:
    return next(row["value"] for row in rows if row["metric"] == "top1" and row["split"] == split)


def test_reading_the_registers_imports_no_torch() -> None:
    code = (
        "import sys; from sandglass.evaluate import ATTACKS as A, PROBES as P;"
        "print([*map(A.about, A), *map(P.about, P)], 'torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert told.rstrip().endswith("False")


@pytest.mark.parametrize("register, name", [(r, n) for r in (PROBES, ATTACKS) for n in r])
def test_presets_name_declared_settings(register, name: str) -> None:  # type: ignore[no-untyped-def]
    for values in register.presets(name).values():
        resolve(register, name, values)  # raises for an unknown name, a wrong type, a value out of range


@pytest.mark.parametrize("name, preset", PROBE_CASES)
def test_a_probe_returns_rows_and_repeats_itself(name: str, preset: str | None, tmp_path: Path) -> None:
    judged, settings = subject(blobs(tmp_path / "blobs", 2.0)), chosen(name, preset)
    judged.encoder.train()
    rows, state = PROBES.get(name)(judged, settings, 0), torch.get_rng_state()
    assert rows and json.loads(json.dumps(rows)) == rows
    assert len({(row["metric"], row["split"]) for row in rows}) == len(rows)
    for row in rows:
        assert math.isfinite(row["value"]) and row["split"] in ("train", "val", "test")
        if "ci_lo" in row:
            assert 0 <= row["ci_lo"] <= row["value"] <= row["ci_hi"] <= 1 and row["n"] > 0
    right = judged.answers["predicted"] == judged.features.test_labels
    assert int(right.sum()) / 600 == accuracy(rows, "test"), "what it says of each image is what it was judged by"
    assert PROBES.get(name)(subject(judged.packed), settings, 0) == rows
    assert torch.equal(torch.get_rng_state(), state) and judged.encoder.training


@pytest.mark.parametrize("name, preset", PROBE_CASES)
def test_a_probe_sees_what_is_there_and_nothing_more(name: str, preset: str | None, tmp_path: Path) -> None:
    apart = PROBES.get(name)(subject(blobs(tmp_path / "apart", 20.0)), chosen(name, preset), 0)
    assert accuracy(apart, "test") == accuracy(apart, "val") == 1
    nothing = PROBES.get(name)(subject(blobs(tmp_path / "nothing", 0.0)), chosen(name, preset), 0)
    assert abs(accuracy(nothing, "test") - 1 / 3) < 4 * (2 / 9 / 600) ** 0.5  # four standard deviations of guessing
    told = {(row["metric"], row["split"]): row for row in nothing}
    for split, n in (("val", 150), ("test", 600)):
        assert {told[metric, split]["n"] for metric in ("top1", "top5", "macro_top1")} == {n}
        assert {"ci_lo", "ci_hi"} <= set(told["top1", split]) & set(told["top5", split])


@pytest.mark.parametrize("name, preset", PROBE_CASES)
def test_images_whose_labels_may_not_be_used_are_of_no_account(name: str, preset: str | None, tmp_path: Path) -> None:
    judged = subject(blobs(tmp_path / "blobs", 2.0), labels=0.1)
    assert len(judged.labelled) == len(judged.features.train) == 30
    rows = PROBES.get(name)(judged, chosen(name, preset), 0)
    images = np.load(judged.packed / "train.npy")
    others = np.setdiff1d(np.arange(300), judged.labelled)
    images[others] = 255 - images[others]
    np.save(judged.packed / "train.npy", images)
    assert PROBES.get(name)(subject(judged.packed, labels=0.1), chosen(name, preset), 0) == rows
    assert PROBES.get(name)(subject(judged.packed), chosen(name, preset), 0) != rows


def victim() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 7)).eval()
    return model, torch.rand(20, 3, 8, 8), torch.arange(20) % 7


@pytest.mark.parametrize("name", OWN)
def test_an_attack_returns_tidy_rows_and_examples_and_leaves_all_as_it_was(name: str) -> None:
    (model, images, labels), settings = victim(), resolve(ATTACKS, name, FEW.get(name, {}))
    before, state = images.clone(), torch.get_rng_state()
    rows, examples, predictions = ATTACKS.get(name)(model, images, labels, settings, 3)
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state)
    assert not images.requires_grad and all(p.grad is None for p in model.parameters())
    assert json.loads(json.dumps(rows)) == rows
    assert all(row["attack"] == name and row["n"] == 20 and row["split"] == "test" for row in rows)
    assert len({(row["metric"], row.get("epsilon")) for row in rows}) == len(rows)

    shown = len(examples["labels"])
    assert examples["clean"].shape == examples["adversarial"].shape == (shown, 3, 8, 8)
    assert len(examples.get("epsilon", examples.get("names", ()))) == shown
    for key in ("labels", "clean_prediction", "adversarial_prediction"):
        assert examples[key].shape == (shown,)
    with torch.no_grad():
        assert np.array_equal(predictions["clean"], model(images).argmax(1))
    assert np.array_equal(predictions["labels"], labels)
    assert predictions["attacked"].shape == (len(predictions.get("epsilons", predictions.get("names", ()))), 20)
    assert ATTACKS.get(name)(model, images, labels, settings, 3)[0] == rows


@pytest.mark.parametrize("name, preset", ATTACK_CASES)
def test_a_sweep_says_what_is_left_at_every_epsilon(name: str, preset: str | None) -> None:
    model, images, labels = victim()
    settings = resolve(ATTACKS, name, FEW.get(name, {}) | ({"preset": preset} if preset else {}))
    rows, examples, predictions = ATTACKS.get(name)(model, images, labels, settings, 3)
    table = {(row["metric"], row.get("epsilon")): row["value"] for row in rows}
    clean = float((model(images).argmax(1) == labels).double().mean())
    for epsilon, attacked in zip(settings["epsilons"], predictions["attacked"], strict=True):
        robust = table["robust_top1", epsilon]
        assert robust == (attacked == labels.numpy()).mean()
        assert table["clean_top1", epsilon] == clean
        assert table["drop", epsilon] == pytest.approx(robust - clean)
        assert table["retention", epsilon] == pytest.approx(robust / clean)
    assert table["robust_top1", 0.0] == clean
    assert 0 <= table["zero_gradient_images", None] <= table["zero_gradient_share", None] <= 1
    curve = [table["robust_top1", epsilon] for epsilon in settings["epsilons"]]
    assert min(curve) <= table["robust_area", None] <= max(curve)
    change = (examples["adversarial"] - examples["clean"]).reshape(8, -1)
    reach = np.linalg.norm(change, axis=1) if name.endswith("_l2") else np.abs(change).max(axis=1)
    assert (reach <= examples["epsilon"] / 255 + 1e-6).all()
