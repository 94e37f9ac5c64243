"""An attack that was killed goes on from what it had, and ends with the same bits."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sandglass.config import resolve
from sandglass.evaluate import ATTACKS
from sandglass.evaluate.attacks import _base
from sandglass.evaluate.attacks._kept import Kept

SETTINGS: dict[str, dict[str, Any]] = {
    "pgd": {"epsilons": [0.0, 2.0, 8.0], "steps": 2, "restarts": 2, "loss": "both"},
    "pgd_l2": {"epsilons": [64.0], "steps": 2, "restarts": 2},
    "fgsm": {"epsilons": [1.0, 4.0]},
    "square": {"epsilons": [8.0], "queries": 9},
    "corruptions": {"levels": [2]},
    "masking": {"epsilons": [4.0], "steps": 2, "restarts": 2, "queries": 9},
}


class Killed(Exception):
    """As by a scheduler."""


class Mortal(nn.Module):
    """A classifier that is killed when it has been asked `asked` times more."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 5)).eval()
        self.asked = 10**9

    def forward(self, images: Tensor) -> Tensor:
        self.asked -= 1
        if self.asked < 0:
            raise Killed
        return self.net(images)


def go(name: str, model: Mortal, kept: Kept | None) -> _base.Outcome:
    images = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return ATTACKS.get(name)(
        model, images, torch.arange(30) % 5, resolve(ATTACKS, name, SETTINGS[name]), 3, kept or Kept()
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_killed_again_and_again_it_ends_with_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_base, "BATCH", 8)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no power cut here
    model = Mortal()
    whole = go(name, model, None)
    asked = 10**9 - model.asked
    lives, left = 0, 0
    while True:
        lives, model.asked = lives + 1, max(asked // 3, 40)  # of one life
        try:
            outcome = go(name, model, Kept(tmp_path, "these weights", seconds=0))
            break
        except Killed:
            files = len(list(tmp_path.rglob("*.pt")))
            assert files > left  # every life got something done
            left = files
    assert lives >= 2 or asked <= 40
    assert outcome.rows == whole.rows
    for mine, theirs in ((outcome.examples, whole.examples), (outcome.predictions, whole.predictions)):
        assert mine.keys() == theirs.keys()
        assert all(np.array_equal(mine[key], theirs[key]) for key in mine)
    model.asked = 4  # two to see that the model is what it was, two to spare
    if name != "masking":
        assert go(name, model, Kept(tmp_path, "these weights", seconds=0)).rows == whole.rows


def test_what_is_damaged_or_of_another_model_is_computed_again(tmp_path: Path) -> None:
    counted = []

    def compute() -> dict[str, Tensor]:
        counted.append(1)
        return {"prediction": torch.arange(3)}

    def kept(of: str = "a") -> Kept:
        return Kept(tmp_path, of, seconds=0)

    for _ in range(2):
        assert kept()("part", compute)["prediction"].tolist() == [0, 1, 2]
    assert len(counted) == 1
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    kept()("part", compute)
    assert len(counted) == 2
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:40])
    kept()("part", compute)
    kept("b")("part", compute)
    assert len(counted) == 4
    kept().within("shelf")("part", compute)
    kept().within("shelf")("part", compute)
    assert len(counted) == 5


def test_parts_are_written_together(tmp_path: Path) -> None:
    """Within the seconds nothing is written; after them, one file has all that there is."""
    kept = Kept(tmp_path, seconds=3600)
    kept("one", lambda: {"prediction": torch.zeros(1)})
    assert not list(tmp_path.iterdir())
    kept.seconds = 0
    kept("two", lambda: {"prediction": torch.ones(1)})
    assert len(list(tmp_path.iterdir())) == 1 and Kept(tmp_path).parts.keys() == {"one", "two"}
