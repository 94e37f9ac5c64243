"""Images without labels: beside class folders, or alone; what needs labels never starts on them."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sandglass.config import load
from sandglass.data.catalog import Entry
from sandglass.data.formats import read
from sandglass.data.loader import open_split
from sandglass.data.pack import pack
from sandglass.errors import Exit, Problem
from sandglass.study import plan

RANDOM = np.random.default_rng(0)


def pictures(folder: Path, *names: str) -> Path:
    """Noise of 10 x 12 px, brighter from picture to picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.fromarray(RANDOM.integers(20 * i, 20 * i + 100, (10, 12, 3), dtype=np.uint8)).save(folder / name)
    return folder


def own(format: str) -> Entry:
    return Entry(name="mine", format=format, about="")


def packed(format: str, source: Path, folder: Path) -> dict[str, Any]:
    settings = {"store_size": None, "val_fraction": 0.25, "seed": 0, "on_bad_image": "error"}
    return pack(own(format), source, folder, **settings)


def classes(root: Path, inside: str = "") -> Path:
    for name in ("cat", "dog"):
        pictures(root / inside / name, *(f"{i}.png" for i in range(5)))
    return root


def refused(format: str, root: Path) -> Problem:
    with pytest.raises(Problem) as caught:
        read(own(format), root)
    assert caught.value.exit == Exit.CONTENT, caught.value.screen()
    return caught.value


@pytest.mark.parametrize("inside", ["", "train"])
@pytest.mark.parametrize("name", ["unlabelled", "Unlabeled"])
def test_images_beside_the_classes_are_for_pretraining_alone(tmp_path: Path, inside: str, name: str) -> None:
    classes(tmp_path / "mine", inside)
    pictures(tmp_path / "mine" / inside / name / "2019", "a.png", "b.png", "c.png")
    info = packed("folder", tmp_path / "mine", tmp_path / "packed")
    assert info["classes"] == ["cat", "dog"]
    assert info["counts"] == {"train": 6, "val": 2, "test": 2, "unlabelled": 3}
    assert info["class_counts"] == {"train": [3, 3], "val": [1, 1], "test": [1, 1]}
    train, pretrain = (open_split(tmp_path / "packed", split) for split in ("train", "pretrain"))
    assert pretrain.labels.tolist() == [*train.labels.tolist(), -1, -1, -1] and train.labels.min() == 0
    for row, file in enumerate(("a.png", "b.png", "c.png")):
        with Image.open(tmp_path / "mine" / inside / name / "2019" / file) as image:
            assert np.array_equal(pretrain.take(np.array([6 + row]))[0][0].permute(1, 2, 0), image)
    seen = train.take(np.arange(6))[0].numpy() / 255
    assert np.allclose(info["mean"], seen.mean(axis=(0, 2, 3)), atol=1e-12), "measured on train alone"


def test_images_alone_have_no_classes_whatever_their_folders_are_called(tmp_path: Path) -> None:
    pictures(tmp_path / "mine", "a.png", "b.png")
    pictures(tmp_path / "mine" / "train" / "cat", "c.png")
    info = packed("images", tmp_path / "mine", tmp_path / "packed")
    assert info["classes"] == [] and info["counts"] == {"unlabelled": 3} and info["class_counts"] == {}
    split = open_split(tmp_path / "packed", "pretrain")
    assert split.labels.tolist() == [-1, -1, -1]
    pixels = split.take(np.arange(3))[0].numpy() / 255
    assert np.allclose(info["mean"], pixels.mean(axis=(0, 2, 3)), atol=1e-12)
    assert np.allclose(info["std"], pixels.std(axis=(0, 2, 3)), atol=1e-12)
    for absent in ("train", "val"):
        with pytest.raises(Problem, match=f"no {absent} images"):
            open_split(tmp_path / "packed", absent)


def test_what_is_meant_by_an_image_in_no_class_folder_is_asked(tmp_path: Path) -> None:
    pictures(tmp_path / "flat", "a.png", "b.png")
    problem = refused("folder", tmp_path / "flat")
    assert "2 images in no class folder" in problem.what and "format: images" in problem.fix
    pictures(classes(tmp_path / "beside"), "stray.JPG")
    assert "stray.JPG" in refused("folder", tmp_path / "beside").where
    pictures(pictures(tmp_path / "wrapped", "a.png") / "cat", "b.png")
    assert "a.png" in refused("folder", tmp_path / "wrapped").where, "the only folder does not hide what lies beside it"


def test_folders_without_any_image_are_refused(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "IMG_1.HEIC").write_bytes(b"?")
    problem = refused("images", tmp_path / "none")
    assert "no image" in problem.what and "'other files ignored': 1" in problem.why
    (classes(tmp_path / "some") / "unlabelled").mkdir()
    assert "unlabelled" in refused("folder", tmp_path / "some").where
    assert "unlabelled: only in test/" in refused("folder", misplaced(tmp_path / "test")).where


def misplaced(root: Path) -> Path:
    for split in ("train", "test"):
        classes(root, split)
    pictures(root / "test" / "unlabelled", "a.png")
    return root


# ------------------------------------------------------------------------------------------ the plan

STUDY = """\
study: mine
data: {{sets: {{photos: {{format: images, source: ../photos}}}}}}
studies:
  mine:
    {{data: {data}, size: 32, backbone: toy, seeds: [0], pretrain: {pretrain}, {more}}}
"""


def planned(folder: Path, data: str = "photos", pretrain: str = "{}", more: str = "") -> list[str]:
    (folder / "params.yaml").write_text(STUDY.format(data=data, pretrain=pretrain, more=more))
    return [run.stage for run in plan(load(folder / "params.yaml"))]


def test_pretraining_alone_is_planned(tmp_path: Path) -> None:
    assert planned(tmp_path) == ["data", "pretrain", "report"]


@pytest.mark.parametrize(
    ("what", "asked"),
    [
        ("probe", {"more": "probe: {probe: knn}"}),
        ("finetune", {"more": "finetune: {init: pretrained}"}),
        ("pretrain.objective: supervised", {"pretrain": "{objective: supervised}"}),
        ("pretrain.online_probe", {"pretrain": "{online_probe: true}"}),
    ],
)
def test_what_needs_labels_is_refused_when_it_is_planned(tmp_path: Path, what: str, asked: dict[str, str]) -> None:
    with pytest.raises(Problem) as caught:
        planned(tmp_path, **asked)
    assert (caught.value.id, caught.value.exit) == ("C-123", Exit.CONFIG)
    assert caught.value.what == f"{what} needs labels, and no image of photos has one"


def test_the_fix_it_names_works_beside_a_labelled_set(tmp_path: Path) -> None:
    asked = "probe: {probe: knn}"
    with pytest.raises(Problem) as caught:
        planned(tmp_path, "[photos, digits]", more=asked)
    (row,) = re.findall(r"exclude: \[.*\]", caught.value.fix)
    assert planned(tmp_path, "[photos, digits]", more=f"{asked}, {row}").count("probe") == 1
