"""Packing: real archives in, arrays and a sidecar out; whole or nothing."""

import csv
import hashlib
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sandglass.data import formats
from sandglass.data.catalog import CATALOG, Entry
from sandglass.data.loader import open_split
from sandglass.data.pack import pack, shrink
from sandglass.errors import Exit, Problem

RANDOM = np.random.default_rng(0)


def own(format: str) -> Entry:
    return Entry(name="mine", format=format, about="", licence="mine", citation="me")


def packed(entry: Entry, source: Path | None, folder: Path, **more: Any) -> dict[str, Any]:
    settings = {"store_size": None, "val_fraction": 0.0, "seed": 0, "on_bad_image": "error"} | more
    return pack(entry, source, folder, **settings)


def toy(root: Path, images: int = 12, sizes: tuple[tuple[int, int], ...] = ((10, 12),)) -> Path:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                pixels = RANDOM.integers(0, 256, (*sizes[i % len(sizes)], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i:02}.png")
    return root


def refused(exit: Exit, source: Path, folder: Path, **more: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        packed(own("folder"), source, folder, **more)
    assert caught.value.exit == exit, caught.value.screen()
    assert not (folder / "info.json").exists() and not list(folder.glob("*.npy")) and not (folder / ".packing").exists()
    return caught.value


def test_the_cifar10_subset_has_the_known_counts_mean_and_deviation(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "cifar10/cifar-10-python-subset.tar.gz"
    info = packed(own("cifar10"), source, tmp_path / "a")
    assert info["counts"] == {"train": 5000, "test": 1000}
    assert info["class_counts"] == {"train": [500] * 10, "test": [100] * 10}
    assert [round(value, 4) for value in info["mean"]] == [0.4935, 0.4842, 0.4473]
    assert [round(value, 4) for value in info["std"]] == [0.2482, 0.2446, 0.2624]
    assert json.loads((tmp_path / "a/info.json").read_text()) == info
    with tarfile.open(source) as tar:
        file = tar.extractfile("cifar-10-batches-py/data_batch_2")
        assert file is not None
        batch = pickle.load(file, encoding="bytes")
    taken, sizes = open_split(tmp_path / "a", "train").take(np.arange(1000, 2000))
    assert np.array_equal(taken.reshape(1000, 3072), batch[b"data"])
    assert open_split(tmp_path / "a", "train").labels[1000:2000].tolist() == batch[b"labels"]
    assert sizes.unique().tolist() == [32]


def test_validation_is_cut_from_train_recorded_and_not_measured(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "cifar100/cifar-100-python-subset.tar.gz"
    whole = packed(own("cifar100"), source, tmp_path / "whole")
    cut = packed(own("cifar100"), source, tmp_path / "cut", val_fraction=0.1)
    assert [round(value, 4) for value in whole["mean"]] == [0.5150, 0.4937, 0.4505]  # as published beside the subset
    assert [round(value, 4) for value in whole["std"]] == [0.2672, 0.2582, 0.2782]
    rows = {split: np.load(tmp_path / "cut" / f"{split}_rows.npy") for split in ("train", "val")}
    assert sorted([*rows["train"], *rows["val"]]) == list(range(1117))
    assert min(cut["class_counts"]["val"]) >= 1 and cut["counts"]["test"] == 916
    images = open_split(tmp_path / "whole", "train").take(np.arange(1117))[0].numpy()
    for split in ("train", "val"):
        assert np.array_equal(
            open_split(tmp_path / "cut", split).take(np.arange(len(rows[split])))[0], images[rows[split]]
        )
    assert np.allclose(cut["mean"], (images[rows["train"]] / 255).mean(axis=(0, 2, 3)), atol=1e-12)
    assert np.allclose(cut["std"], (images[rows["train"]] / 255).std(axis=(0, 2, 3)), atol=1e-12)
    assert cut["fingerprint"] != whole["fingerprint"]


def test_digits_need_no_source(tmp_path: Path) -> None:
    info = packed(CATALOG["digits"], None, tmp_path / "a", val_fraction=0.1, store_size=64)
    assert info["counts"] == {"train": 1295, "val": 143, "test": 359}
    assert info["size"] == [8, 8]  # never enlarged
    assert info["licence"] == "CC BY 4.0" and "last fifth" in info["split_rule"]


def test_imagenette_is_shrunk_and_its_names_are_kept(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "imagenette/imagenette2-224sq-subset.tgz"
    info = packed(own("imagenette"), source, tmp_path / "a", store_size=64, val_fraction=0.1)
    assert info["counts"] == {"train": 540, "val": 60, "test": 250}
    assert info["size"] == [64, 64] and info["classes"][4] == "church"
    assert info["conversions"] == {"grey converted to RGB": 12}
    assert open_split(tmp_path / "a", "train").take(np.arange(2))[0].shape == (2, 3, 64, 64)


def test_stl10_pretrains_on_train_and_unlabelled(tmp_path: Path, shared_data: Path) -> None:
    info = packed(own("stl10"), shared_data / "stl10/stl10_binary-mini.tar.gz", tmp_path / "a")
    assert info["counts"] == {"train": 16, "test": 10, "unlabelled": 104}
    split = open_split(tmp_path / "a", "pretrain")
    assert len(split) == 120 and (split.labels == -1).sum() == 104
    assert len(json.loads((tmp_path / "a/folds.json").read_text())) == 10


def test_images_of_many_sizes_are_kept_as_they_are(tmp_path: Path) -> None:
    source = toy(tmp_path / "source", sizes=((10, 12), (9, 30), (16, 8)))
    info = packed(own("folder"), source, tmp_path / "a")
    split = open_split(tmp_path / "a", "train")
    assert info["size"] is None and not split.images_uniform
    taken, sizes = split.take(np.array([13, 2, 0]))
    for row, name in enumerate(("dog/01", "cat/02", "cat/00")):
        with Image.open(source / "train" / f"{name}.png") as image:
            pixels = np.asarray(image).transpose(2, 0, 1)
        height, width = sizes[row].tolist()
        assert (height, width) == pixels.shape[1:]
        assert np.array_equal(taken[row, :, :height, :width], pixels)


def test_the_shorter_side_shrinks_and_nothing_grows() -> None:
    image = RANDOM.integers(0, 256, (60, 100, 3), dtype=np.uint8)
    assert shrink(image, 30).shape == (30, 50, 3)
    assert shrink(image.transpose(1, 0, 2), 30).shape == (50, 30, 3)
    assert shrink(image, 60) is image and shrink(image, 200) is image and shrink(image, None) is image


def test_shrinking_is_antialiased() -> None:
    """A checkerboard of single pixels becomes even grey; without antialiasing it stays black and white."""
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    small = shrink(np.repeat(board[..., None], 3, axis=2).astype(np.uint8), 16)
    assert abs(small.astype(int) - 127).max() <= 8


def test_packing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    source = toy(tmp_path / "source")
    first = packed(own("folder"), source, tmp_path / "a", val_fraction=0.2, seed=4)
    again = packed(own("folder"), source, tmp_path / "b", val_fraction=0.2, seed=4)
    assert first == again
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    other = packed(own("folder"), source, tmp_path / "c", val_fraction=0.2, seed=5)
    assert other["fingerprint"] != first["fingerprint"]


def test_the_fingerprint_is_of_pixels_labels_and_names(tmp_path: Path) -> None:
    source = toy(tmp_path / "source")
    prints = [packed(own("folder"), source, tmp_path / "a")["fingerprint"]]
    with Image.open(source / "train/cat/00.png") as image:
        pixels = np.array(image)
    pixels[3, 3, 1] ^= 1
    Image.fromarray(pixels).save(source / "train/cat/00.png")
    prints.append(packed(own("folder"), source, tmp_path / "a")["fingerprint"])
    (source / "train/cat/11.png").rename(source / "train/dog/!.png")  # the images stay in their order
    prints.append(packed(own("folder"), source, tmp_path / "a")["fingerprint"])
    for split in ("train", "test"):
        (source / split / "cat").rename(source / split / "Cat")
    prints.append(packed(own("folder"), source, tmp_path / "a")["fingerprint"])
    assert len(set(prints)) == 4


def test_bad_images_are_counted_and_listed_and_nothing_is_packed(tmp_path: Path) -> None:
    source = toy(tmp_path / "source")
    (source / "train/cat/03.png").write_bytes(b"<html>moved</html>")
    (source / "train/dog/05.png").write_bytes((source / "train/dog/05.png").read_bytes()[:-40])
    (source / "test/dog/00.png").write_bytes(b"")
    problem = refused(Exit.CONTENT, source, tmp_path / "a")
    assert problem.id == "D-104" and problem.what == "3 of 48 images cannot be used"
    assert problem.where.startswith("train/cat/03.png") and "+2 more" in problem.where
    with (tmp_path / "a/bad_images.csv").open() as file:
        rows = list(csv.reader(file))
    assert [row[1] for row in rows[1:]] == ["train/cat/03.png", "train/dog/05.png", "test/dog/00.png"]
    assert rows[1][2] == "a web page, not an image"


def test_one_in_a_thousand_may_be_skipped_and_not_more(tmp_path: Path) -> None:
    source = toy(tmp_path / "source", images=250)
    (source / "train/cat/003.png").write_bytes(b"")
    (source / "train/cat/03.png").write_bytes(b"")
    refused(Exit.CONTENT, source, tmp_path / "a", on_bad_image="skip")
    (source / "train/cat/003.png").unlink()
    assert "on_bad_image: skip" in refused(Exit.CONTENT, source, tmp_path / "a").fix
    info = packed(own("folder"), source, tmp_path / "a", on_bad_image="skip")
    assert info["skipped"] == 1 and info["counts"] == {"train": 499, "test": 500}
    assert 3 not in np.load(tmp_path / "a/train_rows.npy") and len(open_split(tmp_path / "a", "train")) == 499
    assert "empty" in (tmp_path / "a/bad_images.csv").read_text()


def test_images_without_contrast_are_refused(tmp_path: Path) -> None:
    source = toy(tmp_path / "source")
    for file in source.glob("*/*/*.png"):
        with Image.open(file) as image:
            red, green, _ = image.split()
        Image.merge("RGB", (red, green, Image.new("L", red.size, 7))).save(file)
    assert "channel 2" in refused(Exit.CONTENT, source, tmp_path / "a").why


def test_test_images_among_the_training_images(tmp_path: Path) -> None:
    source = toy(tmp_path / "source", images=100)
    (source / "test/cat/00.png").write_bytes((source / "train/dog/07.png").read_bytes())
    (source / "test/cat/01.png").write_bytes((source / "train/cat/08.png").read_bytes())
    info = packed(own("folder"), source, tmp_path / "a")
    assert info["repeated_test_images"] == {"train": 2}  # 1 % of 200: told


def test_validation_images_count_as_training_images_there(tmp_path: Path) -> None:
    source = toy(tmp_path / "source", images=100)
    packed(own("folder"), source, tmp_path / "a", val_fraction=0.5)
    rows = np.load(tmp_path / "a/val_rows.npy")[:3]  # the first hundred rows are cats
    for i, row in enumerate(rows):
        (source / f"test/cat/{i:02}.png").write_bytes((source / f"train/cat/{row:02}.png").read_bytes())
    problem = refused(Exit.CONTENT, source, tmp_path / "b", val_fraction=0.5)
    assert problem.what == "3 of 200 test images are training images too"
    assert problem.where.splitlines() == [f"test/cat/{i:02}.png = train/cat/{row:02}.png" for i, row in enumerate(rows)]


def test_a_damaged_archive_packs_nothing(tmp_path: Path, shared_data: Path) -> None:
    whole = (shared_data / "cifar100/cifar-100-python-subset.tar.gz").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(whole[: len(whole) // 2])
    assert refused(Exit.CONTENT, tmp_path / "a.tar.gz", tmp_path / "a").id == "A-102"


def test_what_a_killed_packing_left_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder = toy(tmp_path / "source"), tmp_path / "a"
    before = packed(own("folder"), source, folder)
    monkeypatch.setattr(formats, "decode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        packed(own("folder"), source, folder)
    assert not (folder / "info.json").exists()  # what is not whole does not look whole
    monkeypatch.undo()
    (folder / ".packing").mkdir()
    (folder / ".packing/train.npy").write_bytes(b"half")
    assert packed(own("folder"), source, folder) == before


def test_other_files_of_the_run_folder_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    source = toy(tmp_path / "source")
    listing = {p: hashlib.sha256(p.read_bytes()).digest() for p in source.rglob("*.png")}
    packed(own("folder"), source, folder)
    assert (folder / "run.json").read_text() == "{}"
    assert {p: hashlib.sha256(p.read_bytes()).digest() for p in source.rglob("*") if p.is_file()} == listing
