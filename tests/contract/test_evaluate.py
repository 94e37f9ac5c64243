"""What the stages rely on, asked of every probe and every attack in the registers."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sandglass.config import resolve
from sandglass.evaluate import ATTACKS, PROBES
from sandglass.evaluate.features import FeatureSet

PROBE_CASES = [(name, preset) for name in PROBES if name != "clusters" for preset in (None, *PROBES.presets(name))]
ATTACK_CASES = [(name, preset) for name in ATTACKS for preset in (None, *ATTACKS.presets(name))]


def blobs(distance: float) -> FeatureSet:
    """Three classes of unit Gaussians, their centres `distance` from the origin; classes 3 to 6 are empty."""
    generator = torch.Generator().manual_seed(0)

    def part(n: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(n) % 3
        return torch.randn(n, 8, generator=generator) + distance * torch.eye(8)[labels], labels

    return FeatureSet(*part(300), *part(150), *part(600), classes=7)


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
def test_a_probe_returns_flat_numbers_and_repeats_itself(name: str, preset: str | None) -> None:
    features, settings = blobs(2.0), resolve(PROBES, name, {"preset": preset} if preset else {})
    before = features.train.clone()
    numbers = PROBES.get(name)(features, settings, 0)
    assert {"top1", "top5", "val_top1", "n"} <= set(numbers)
    assert all(isinstance(value, int | float) and math.isfinite(value) for value in numbers.values())
    assert numbers["n"] == 600
    assert json.loads(json.dumps(numbers)) == numbers
    assert PROBES.get(name)(features, settings, 0) == numbers
    assert torch.equal(features.train, before)


@pytest.mark.parametrize("name, preset", PROBE_CASES)
def test_a_probe_sees_what_is_there_and_nothing_more(name: str, preset: str | None) -> None:
    settings = resolve(PROBES, name, {"preset": preset} if preset else {})
    apart = PROBES.get(name)(blobs(20.0), settings, 0)
    assert apart["top1"] == apart["val_top1"] == 1
    nothing = PROBES.get(name)(blobs(0.0), settings, 0)
    assert abs(nothing["top1"] - 1 / 3) < 4 * (2 / 9 / 600) ** 0.5  # four standard deviations of guessing


@pytest.mark.parametrize("name, preset", ATTACK_CASES)
def test_an_attack_returns_tidy_rows_and_examples_and_leaves_all_as_it_was(name: str, preset: str | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 7)).eval()
    images, labels = torch.rand(20, 3, 8, 8), torch.arange(20) % 7
    settings = resolve(ATTACKS, name, {"preset": preset} if preset else {})
    before, state = images.clone(), torch.get_rng_state()
    rows, examples = ATTACKS.get(name)(model, images, labels, settings, 3)
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state)
    assert not images.requires_grad and all(p.grad is None for p in model.parameters())

    assert json.loads(json.dumps(rows)) == rows
    assert all(row["attack"] == name and row["n"] == 20 and row["split"] == "test" for row in rows)
    table = {(row["metric"], row.get("epsilon")): row["value"] for row in rows}
    assert len(table) == len(rows)
    clean = float((model(images).argmax(1) == labels).double().mean())
    for epsilon in settings["epsilons"]:
        robust = table["robust_top1", epsilon]
        assert table["clean_top1", epsilon] == clean
        assert table["drop", epsilon] == pytest.approx(robust - clean)
        assert table["retention", epsilon] == pytest.approx(robust / clean)
    assert table["robust_top1", 0.0] == clean
    assert 0 <= table["zero_gradient_share", None] <= 1

    assert examples["clean"].shape == examples["adversarial"].shape == (8, 3, 8, 8)
    for key in ("labels", "clean_prediction", "adversarial_prediction", "epsilon"):
        assert examples[key].shape == (8,)
    reach = np.abs(examples["adversarial"] - examples["clean"]).max(axis=(1, 2, 3))
    assert (reach <= examples["epsilon"] / 255 + 1e-6).all()
    assert ATTACKS.get(name)(model, images, labels, settings, 3)[0] == rows
