"""Folders that are not what they should be: `sandglass data` names the files and packs nothing; nothing of the user's
changes."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import BIRDS, birds, contents, picture


def animated(path):
    first, *more = (Image.fromarray(picture.noise.integers(0, 256, (12, 12, 3), dtype=np.uint8)) for _ in range(3))
    first.save(path, save_all=True, append_images=more)


def emptied(root):
    shutil.rmtree(root)
    (root / "train" / "heron").mkdir(parents=True)
    (root / "train" / "heron" / "notes.txt").write_text("no picture")


def leaked(root):
    for i in range(3):
        shutil.copy(root / f"train/owl/{i}.png", root / f"test/owl/{i}.png")


def flat(root):
    for path in sorted(root.rglob("*.png")):
        Image.new("RGB", (12, 12), (9, 9, 9)).save(path)


def single(root):
    for path in sorted((root / "train").rglob("*.png")):
        if path.name != "0.png":
            path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-60])


OWL = "train/owl/0.png"
REFUSED = {  # what is wrong -> how it comes about, exit code, words of the screen
    "it is missing": (shutil.rmtree, 66, ["D-102", "is not there", "../birds", "data.sets.birds.source"]),
    "it is a text file": (lambda r: (shutil.rmtree(r), r.write_text("x")), 65, ["A-101", "neither tar nor zip"]),
    "no pictures": (emptied, 65, ["D-107", "train/heron", "'other files ignored': 1"]),
    "one class": (lambda r: [shutil.rmtree(r / s / "owl") for s in ("train", "test")], 65, ["D-107", "1 class", "two"]),
    "a class without pictures": (
        lambda r: [(r / s / "duck").mkdir() for s in ("train", "test")],
        65,
        ["D-107", "train/duck"],
    ),
    "a class that the test has not": (lambda r: shutil.rmtree(r / "test/owl"), 65, ["D-107", "owl: only in train/"]),
    "training pictures in the test": (leaked, 65, ["D-110", "3 of 12 test images are training images too"]),
    "an empty file": (lambda r: (r / OWL).write_bytes(b""), 65, ["D-104", "1 of 24", OWL, "the file is empty"]),
    "a cut file": (lambda r: cut(r / OWL), 65, ["D-104", OWL, "truncated", "bad_images.csv"]),
    "a web page": (lambda r: (r / OWL).write_text("<!doctype html><html></html>"), 65, ["D-104", OWL, "a web page"]),
    "16 bits": (
        lambda r: Image.fromarray(np.full((12, 12), 40000, dtype=np.uint16)).save(r / OWL),
        65,
        ["D-104", OWL, "I;16", "convert them to 8-bit"],
    ),
    "floating point": (
        lambda r: Image.fromarray(np.full((12, 12), 0.5, dtype=np.float32)).save(r / "train/owl/f.tiff"),
        65,
        ["D-104", "train/owl/f.tiff", "pixels of kind F"],
    ),
    "a moving picture": (lambda r: animated(r / "train/owl/a.gif"), 65, ["D-104", "train/owl/a.gif", "3 frames"]),
    "144 megapixels": (
        lambda r: Image.new("1", (12000, 12000)).save(r / "train/owl/big.png"),
        65,
        ["D-104", "train/owl/big.png", "12000 x 12000 px: more than 40 megapixels"],
    ),
    "one pixel": (lambda r: picture(r / OWL, 1, 1), 65, ["D-104", OWL, "1 x 1 px", "8 px"]),
    "a stripe": (lambda r: picture(r / OWL, 500, 10), 65, ["D-104", OWL, "500 x 10 px", "aspect of at most 20"]),
    "a link that leads out": (
        lambda r: (r / "train/owl/l.png").symlink_to("/etc/hostname"),
        77,
        ["D-111", "leads out", "/etc/hostname"],
    ),
    "a link to its own folder": (
        lambda r: (r / "train/owl/loop").symlink_to(r / "train/owl"),
        77,
        ["D-111", "links to folders are not followed"],
    ),
    "a pipe, which is never opened": (
        lambda r: os.mkfifo(r / "train/owl/p.png"),
        65,
        ["D-104", "train/owl/p.png", "not a regular file"],
    ),
    "one colour": (flat, 65, ["D-109", "no contrast", "divide by zero"]),
    "one picture a class": (single, 65, ["D-117", "2 of 2 classes have a single image", "2 images"]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what, sandglass, tmp_path):
    spoil, exit, words = REFUSED[what]
    spoil(birds(tmp_path / "birds"))
    before = contents(tmp_path / "birds") if (tmp_path / "birds").is_dir() else None
    code, told = sandglass("data", settings=BIRDS)
    assert code == exit and all(word in told for word in words), told
    packed = list((tmp_path / "place").rglob("*.npy")) + list((tmp_path / "place").rglob("info.json"))
    assert not packed, "nothing is packed"
    assert before is None or contents(tmp_path / "birds") == before, "nothing of the user's has changed"


def modes(root):
    for mode in ("L", "P", "RGBA", "1"):
        picture(root / f"train/owl/{mode}.png", mode=mode)
    picture(root / "train/owl/c.jpg", mode="CMYK")


def turned(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(root / OWL).resize((24, 12)).save(root / OWL, exif=exif)


def litter(root):
    (root / "train/owl/._0.png").write_bytes(b"x")
    (root / "train/Thumbs.db").write_bytes(b"x")
    (root / "train/.ipynb_checkpoints").mkdir()
    picture(root / "train/owl/UP.PNG")


def odd_names(root):
    picture(root / "train/owl/new\nline.png")
    picture(root / f"train/owl/{'x' * 240}.png")
    shutil.copy(picture(root / "train/owl/raw.png"), os.fsencode(root / "train/owl") + b"/\xff.png")
    (root / "train/owl/raw.png").unlink()


TAKEN = {
    "grey, palette, transparent, one bit, CMYK": (
        modes,
        ["1 grey conv", "1 palette conv", "1 transparency laid on white", "1 1-bit conv", "1 CMYK conv"],
    ),
    "turned by EXIF": (turned, ["1 turned"]),
    "hidden files and capital letters": (litter, ["11 train", "3 hidden files ignored"]),
    "a line break, bytes that are no text, 240 letters": (odd_names, ["13 train"]),
    "sizes of all kinds, which need not be declared": (lambda r: picture(r / OWL, 99, 40), ["10 train"]),
}


@pytest.mark.parametrize("what", TAKEN)
def test_taken_and_counted(what, sandglass, tmp_path):
    change, words = TAKEN[what]
    change(birds(tmp_path / "birds"))
    code, told = sandglass("data", settings=BIRDS)
    assert code == 0 and all(word in told for word in words), told


def test_a_batch_larger_than_the_data_and_the_largest_legal_one(sandglass, tmp_path):
    birds(tmp_path / "birds")
    settings = BIRDS.replace("batch_size: 4", "batch_size: 64")
    assert sandglass("data", settings=settings)[0] == 0
    code, told = sandglass("finetune", settings=settings)
    assert code == 78 and "0 steps per epoch: batch_size 64 is larger than the 10" in told and "10 or less" in told


def test_a_share_of_labels_leaves_no_class_empty_as_each_gives_at_least_one(sandglass, tmp_path):
    birds(tmp_path / "birds")
    settings = BIRDS.replace("batch_size: 4", "batch_size: 2, labels: 0.001")
    assert sandglass("data", settings=settings)[0] == sandglass("finetune", settings=settings)[0] == 0
    (chosen,) = Path("results/finetune").glob("*/labelled.npz")
    labels = np.load(next(Path("results/data").glob("*/train_labels.npy")))
    assert sorted(labels[np.load(chosen)["index"]]) == [0, 1]


def test_pictures_without_labels_are_refused_to_what_needs_them(sandglass, tmp_path):
    birds(tmp_path / "birds")
    code, told = sandglass("plan", settings=BIRDS.replace("format: folder", "format: images"))
    assert code == 78 and "C-123" in told and "finetune needs labels" in told and "unlabelled/" in told


def test_a_folder_that_may_not_be_read(sandglass, tmp_path, monkeypatch):
    """Root may read everything, so the system's answer to others is given in its place."""
    birds(tmp_path / "birds")
    scandir = os.scandir

    def denied(path="."):
        if not isinstance(path, int) and "birds" in os.fspath(path):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    code, told = sandglass("data", settings=BIRDS)
    assert code == 73 and "R-120" in told and "ermission" in told and "birds" in told, told


def test_pictures_changed_after_packing_change_no_run_as_arrays_are_read_and_not_the_folder(sandglass, tmp_path):
    birds(tmp_path / "birds")
    assert sandglass("data", settings=BIRDS)[0] == 0
    flat(tmp_path / "birds")
    assert sandglass("finetune", settings=BIRDS)[0] == 0
    arrays = next(Path("results/data").glob("*/train.npy"))
    arrays.write_bytes(arrays.read_bytes()[:-100])
    for file in Path("results/finetune").glob("*/*"):
        file.unlink()
    shutil.rmtree("state/finetune")
    code, told = sandglass("finetune", settings=BIRDS)
    assert code == 65 and "D-116" in told and "pack again" in told, told
