"""`sandglass check`: what will not fit is found before anything is fetched or packed, and nothing is written."""

from pathlib import Path

import numpy as np
import pytest

from .conftest import birds, picture

BIRDS = """\
study: mine
data: {sets: {birds: {format: folder, source: ../birds}}}
studies:
  mine: {data: birds, size: 32, backbone: toy, seeds: [0], PARTS}
"""
BYOL = "pretrain: {objective: byol, batch_size: 4}"
REFUSED = {
    "a folder that is not there": ("birds", "hawks", BYOL, 66, ["D-102", "hawks"]),
    "a batch larger than the images": (
        "", "", "pretrain: {objective: byol, batch_size: 64}", 78,
        ["T-102", "0 steps per epoch: batch_size 64 is larger than the 10", "batch_size: 10 or less"],
    ),
    "a batch larger than the labels used": (
        "", "", "finetune: {labels: 0.2, batch_size: 4}", 78, ["T-102", "larger than the 2", "batch_size: 2 or less"],
    ),
    "a batch larger than a published set": (
        "data: birds", "data: stl10", "pretrain: {objective: byol, batch_size: 110000}", 78, ["T-102", "the 105000"],
    ),
    "a probe that has nothing to choose on": (
        "data: {", "data: {val_fraction: 0, ", "probe: {probe: linear, init: random}", 78,
        ["E-120", "chooses l2", "data.val_fraction"],
    ),
    "the same on a published set that is not here": (
        "data: {", "data: {val_fraction: 0, ", "data: cifar10, probe: {probe: linear_augmented, init: random}", 78,
        ["E-120", "chooses lr_per_256"],
    ),
    "an archive that only a person may fetch": (
        "data: birds", "data: nabirds", BYOL, 66, ["D-103", "nabirds has to be fetched by hand"],
    ),
}  # fmt: skip


def settings(parts):
    text = BIRDS.replace("PARTS", parts)
    return text.replace("data: birds, ", "") if parts.startswith("data:") else text


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_found_without_packing(what, sandglass, tmp_path):
    old, new, parts, exit, words = REFUSED[what]
    birds(tmp_path / "birds")
    code, told = sandglass("check", settings=settings(parts).replace(old, new))
    assert code == exit and all(word in told for word in words), told
    assert [path.name for path in Path().iterdir()] == ["params.yaml"]


def test_a_class_that_only_one_split_has_is_found_by_the_names_alone(sandglass, tmp_path):
    birds(tmp_path / "birds")
    (tmp_path / "birds/train/crow").mkdir()
    picture(tmp_path / "birds/train/crow/0.png")
    code, told = sandglass("check", settings=settings(BYOL))
    assert code == 65 and "crow: only in train/" in told


def test_the_count_before_packing_is_the_count_of_packing(sandglass, tmp_path):
    birds(tmp_path / "birds")
    for i in range(3):
        picture(tmp_path / f"birds/unlabelled/{i}.png")
    fits = settings("pretrain: {objective: byol, batch_size: 13}, finetune: {init: scratch, batch_size: 10}")
    code, before = sandglass("check", settings=fits)
    assert code == 0 and "data set birds: 10 train, 2 val, 12 test, 3 unlabelled (counted by name" in before
    assert sandglass("data", settings=fits)[0] == 0
    code, after = sandglass("check", settings=fits)
    counts = {path.name: len(np.load(path)) for path in Path("results/data").glob("*/*_labels.npy")}
    assert counts == {"train_labels.npy": 10, "test_labels.npy": 12, "unlabelled_labels.npy": 3, "val_labels.npy": 2}
    assert code == 0 and "10 train" in after and "3 unlabelled" in after and "(packed)" in after


def test_what_a_class_gives_of_its_labels_is_counted_class_by_class(sandglass, tmp_path):
    birds(tmp_path / "birds")  # 2 classes of 5: a share of 0.01 is one of each
    assert sandglass("check", settings=settings("finetune: {labels: 0.01, batch_size: 2}"))[0] == 0
    assert sandglass("check", settings=settings("finetune: {labels: 0.01, batch_size: 3}"))[0] == 78
