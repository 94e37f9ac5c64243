"""Readers: real archives against an independent reading, folders with every mistake, and links that lead out."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sandglass.data.archive import extract
from sandglass.data.catalog import CATALOG, Entry
from sandglass.data.formats import Contents, read
from sandglass.data.unpickle import load_pickle
from sandglass.errors import Exit, Problem

RANDOM = np.random.default_rng(0)


def own(format: str) -> Entry:
    return Entry(name="mine", format=format, about="")


def picture(path: Path, size: tuple[int, int] = (12, 10), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path, **options)
    return path


def refused(exit: Exit, format: str, root: Path) -> Problem:
    with pytest.raises(Problem) as caught:
        read(own(format), root)
    assert caught.value.exit == exit, caught.value.screen()
    return caught.value


# ------------------------------------------------------------------------------------------ folders


def three_classes(root: Path, *splits: str, images: int = 5) -> Path:
    for split in splits:
        for name in ("cat", "dog", "emu"):
            for i in range(images):
                picture(root / split / name / f"{i}.png")
    return root


def counts(contents: Contents) -> dict[str, list[int]]:
    return {split: np.bincount(part.labels).tolist() for split, part in contents.parts.items()}


@pytest.mark.parametrize(
    ("splits", "found"),
    [
        (("train", "test"), ["train", "test"]),
        (("train", "val"), ["train", "test"]),
        (("train", "val", "test"), ["train", "val", "test"]),
    ],
)
def test_folders_of_splits(tmp_path: Path, splits: tuple[str, ...], found: list[str]) -> None:
    contents = read(own("folder"), three_classes(tmp_path, *splits))
    assert contents.classes == ["cat", "dog", "emu"]
    assert sorted(contents.parts) == sorted(found)
    assert set(map(tuple, counts(contents).values())) == {(5, 5, 5)}
    assert contents.parts["test"].name(0) == f"{'test' if 'test' in splits else 'val'}/cat/0.png"


@pytest.mark.parametrize("wrap", ["", "birds"])
def test_class_folders_alone_are_cut_four_to_one(tmp_path: Path, wrap: str) -> None:
    three_classes(tmp_path / wrap, "")
    contents = read(own("folder"), tmp_path)
    assert counts(contents) == {"train": [4, 4, 4], "test": [1, 1, 1]}
    names = [part.name(i) for part in contents.parts.values() for i in range(len(part.labels))]
    assert len(set(names)) == 15
    assert "20%" in contents.rule


def test_litter_is_ignored_and_counted_and_suffixes_may_be_upper_case(tmp_path: Path) -> None:
    three_classes(tmp_path, "train", "test")
    for name in (".DS_Store", "Thumbs.db", "._0.png", "notes.txt"):
        (tmp_path / "train/cat" / name).write_bytes(b"?")
    (tmp_path / "train/.ipynb_checkpoints").mkdir()
    picture(tmp_path / "train/cat/more/UPPER.JPEG")
    contents = read(own("folder"), tmp_path)
    assert counts(contents)["train"] == [6, 5, 5]
    assert contents.notes == {"hidden files ignored": 4, "other files ignored": 1}


def test_odd_names_survive_and_can_be_printed(tmp_path: Path) -> None:
    three_classes(tmp_path, "train", "test")
    odd = os.fsdecode(b"a\xff\nb" + b"c" * 240 + b".png")
    (tmp_path / "train/cat/0.png").rename(tmp_path / "train/cat" / odd)
    part = read(own("folder"), tmp_path).parts["train"]
    rows = [i for i in range(5) if "\\udcff\\n" in part.name(i)]
    assert len(rows) == 1 and part.load(rows[0]).shape == (12, 10, 3)
    part.name(rows[0]).encode()


def test_class_mistakes_are_named(tmp_path: Path) -> None:
    three_classes(tmp_path / "a", "train", "test")
    picture(tmp_path / "a/test/owl/0.png")
    assert "owl: only in test/" in refused(Exit.CONTENT, "folder", tmp_path / "a").where
    three_classes(tmp_path / "b", "train", "test")
    (tmp_path / "b/train/owl").mkdir()
    (tmp_path / "b/test/owl").mkdir()
    assert "train/owl" in refused(Exit.CONTENT, "folder", tmp_path / "b").where
    picture(tmp_path / "c/train/cat/0.png")
    picture(tmp_path / "c/test/cat/0.png")
    assert "1 class" in refused(Exit.CONTENT, "folder", tmp_path / "c").what
    (tmp_path / "d").mkdir()
    assert "0 classes" in refused(Exit.CONTENT, "folder", tmp_path / "d").what


def test_links_out_of_the_root_are_refused(tmp_path: Path) -> None:
    outside = picture(tmp_path / "secret/0.png")
    for place, leads_to in {
        "file": outside,
        "folder": outside.parent,
        "circle": tmp_path / "circle/train/cat/link.png",
        "inner folder": tmp_path / "inner folder/train/dog",
    }.items():
        three_classes(tmp_path / place, "train", "test")
        (tmp_path / place / "train/cat/link.png").symlink_to(leads_to)
        assert refused(Exit.REFUSED, "folder", tmp_path / place).id == "D-111"
    (tmp_path / "split").mkdir()
    three_classes(tmp_path / "split", "train")
    (tmp_path / "split/test").symlink_to(tmp_path / "file/test")
    assert refused(Exit.REFUSED, "folder", tmp_path / "split").id == "D-111"


def test_a_link_to_a_file_inside_and_a_linked_root_are_fine(tmp_path: Path) -> None:
    three_classes(tmp_path / "real", "train", "test")
    (tmp_path / "real/train/cat/link.png").symlink_to("0.png")
    (tmp_path / "root").symlink_to("real")
    assert counts(read(own("folder"), tmp_path / "root"))["train"] == [6, 5, 5]


def test_imagenette_val_is_our_test_and_classes_have_names(tmp_path: Path, shared_data: Path) -> None:
    root = extract(shared_data / "imagenette/imagenette2-224sq-subset.tgz", tmp_path / "tree")
    contents = read(own("imagenette"), root)
    assert counts(contents) == {"train": [60] * 10, "test": [25] * 10}
    assert contents.classes[:2] == ["tench", "English springer"] and contents.classes[9] == "parachute"
    part = contents.parts["train"]
    with Image.open(root / "imagenette2-224sq" / part.name(70)) as image:
        assert np.array_equal(part.load(70), image.convert("RGB"))
    assert part.labels[70] == 1 and "n02102040" in part.name(70)
    loaded = [part.load(i) for part in contents.parts.values() for i in range(len(part.labels))]
    assert {image.shape for image in loaded} == {(224, 224, 3)}
    assert contents.notes["grey converted to RGB"] == 12


def nabirds(root: Path) -> Path:
    rows = [("aa-1", "0817/one.jpg", 817, 1), ("bb-2", "0817/two.jpg", 817, 0), ("cc-3", "0295/three.jpg", 295, 1)]
    rows.append(("dd-4", "0295/four.jpg", 295, 0))
    for _, path, *_ in rows:
        picture(root / "nabirds/images" / path)
    tables = {
        "images.txt": [f"{i} {path}" for i, path, *_ in rows],
        "image_class_labels.txt": [f"{i} {number}" for i, _, number, _ in rows],
        "train_test_split.txt": [f"{i} {training}" for i, *_, training in rows],
        "classes.txt": ["0 Birds", "295 Bald Eagle (Adult, subadult)", "817 Mallard"],
    }
    for name, lines in tables.items():
        (root / "nabirds" / name).write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n").encode())
    return root


def test_nabirds_tables_give_splits_and_the_classes_that_have_images(tmp_path: Path) -> None:
    contents = read(own("nabirds"), nabirds(tmp_path))
    assert contents.classes == ["Bald Eagle (Adult, subadult)", "Mallard"]
    train, test = contents.parts["train"], contents.parts["test"]
    assert [train.name(i) for i in range(2)] == ["images/0817/one.jpg", "images/0295/three.jpg"]
    assert train.labels.tolist() == [1, 0] and test.labels.tolist() == [1, 0]
    assert train.load(0).shape == (12, 10, 3)


def test_nabirds_tables_that_disagree_or_lead_out(tmp_path: Path) -> None:
    tables = nabirds(tmp_path) / "nabirds"
    images = (tables / "images.txt").read_text()
    (tables / "images.txt").write_text(images.replace("0817/one.jpg", "../../../etc/passwd"))
    assert refused(Exit.REFUSED, "nabirds", tmp_path).id == "D-111"
    (tables / "images.txt").write_text(images.replace("aa-1", "zz-9"))
    assert "aa-1" in refused(Exit.CONTENT, "nabirds", tmp_path).why
    (tables / "images.txt").unlink()
    assert "images.txt" in refused(Exit.CONTENT, "nabirds", tmp_path).what


# ------------------------------------------------------------------------------------------ arrays


def test_digits_go_from_0_to_255_and_test_is_the_end_of_each_class() -> None:
    from sklearn.datasets import load_digits

    contents, data = read(CATALOG["digits"], None), load_digits()
    train, test = contents.parts["train"], contents.parts["test"]
    zeros = data.images[data.target == 0]
    found = [test.load(i) for i in np.flatnonzero(test.labels == 0)]
    assert len(found) == 36  # of 178
    assert np.array_equal(np.stack(found)[..., 2], np.round(zeros[-36:] * 255 / 16))
    assert (len(train.labels), len(test.labels)) == (1438, 359)
    assert max(train.load(i).max() for i in range(50)) == 255


@pytest.mark.parametrize(("name", "key"), [("cifar10", b"labels"), ("cifar100", b"fine_labels")])
def test_cifar_is_what_an_ordinary_unpickler_reads(tmp_path: Path, shared_data: Path, name: str, key: bytes) -> None:
    archive = shared_data / name / f"{name.replace('cifar', 'cifar-')}-python-subset.tar.gz"
    root = extract(archive, tmp_path / "tree")
    contents = read(own(name), root)
    batch, offset = ("*/data_batch_3", 2000) if name == "cifar10" else ("*/train", 0)
    with next(root.glob(batch)).open("rb") as file:
        plain = pickle.load(file, encoding="bytes")
    part = contents.parts["train"]
    n = len(plain[key])
    assert part.labels[offset : offset + n].tolist() == plain[key]
    for i in (0, 1, n - 1):
        assert np.array_equal(part.load(offset + i), plain[b"data"][i].reshape(3, 32, 32).transpose(1, 2, 0))
    assert contents.classes[0] == {"cifar10": "airplane", "cifar100": "apple"}[name]
    assert len(contents.classes) == {"cifar10": 10, "cifar100": 100}[name]


def test_a_missing_batch_and_published_counts(tmp_path: Path, shared_data: Path) -> None:
    root = extract(shared_data / "cifar10/cifar-10-python-subset.tar.gz", tmp_path / "tree")
    with pytest.raises(Problem, match="not complete") as caught:  # a subset is not the published set
        read(CATALOG["cifar10"], root)
    assert (
        caught.value.exit == Exit.CONTENT and "5,000 train" in caught.value.why and "50,000 train" in caught.value.why
    )
    (root / "cifar-10-batches-py/data_batch_4").unlink()
    assert "data_batch_4" in refused(Exit.CONTENT, "cifar10", root).what


def test_cifar_with_labels_that_do_not_fit(tmp_path: Path, shared_data: Path) -> None:
    root = extract(shared_data / "cifar10/cifar-10-python-subset.tar.gz", tmp_path / "tree") / "cifar-10-batches-py"
    batch = load_pickle(root / "test_batch")
    labels = batch[b"labels"]
    for wrong, said in (
        ([10, *labels[1:]], "out of range"),
        ([-1, *labels[1:]], "out of range"),
        ([1.5, *labels[1:]], "damaged"),
        (labels[1:], "damaged"),
        ([1 if label == 0 else label for label in labels], "classes have no test images"),
    ):
        (root / "test_batch").write_bytes(pickle.dumps(batch | {b"labels": wrong}, protocol=2))
        assert said in refused(Exit.CONTENT, "cifar10", root).what


def test_stl10_is_read_column_by_column(tmp_path: Path, shared_data: Path) -> None:
    root = extract(shared_data / "stl10/stl10_binary-mini.tar.gz", tmp_path / "tree") / "stl10_binary"
    contents = read(own("stl10"), root)
    assert {split: len(part.labels) for split, part in contents.parts.items()} == {
        "train": 16,
        "test": 10,
        "unlabelled": 104,
    }
    assert contents.classes[:3] == ["airplane", "bird", "car"] and len(contents.classes) == 10
    rows = (shared_data / "stl10/stl10_binary-mini-rows.txt").read_text().split("unlabeled_X.bin")[0]
    named = [line.split()[1] for line in rows.split("test_X.bin:")[1].splitlines() if "<-" in line]
    assert [contents.classes[label] for label in contents.parts["test"].labels] == named
    raw = (root / "train_X.bin").read_bytes()
    image = contents.parts["train"].load(3)
    for y, x, channel in ((0, 0, 0), (5, 80, 1), (95, 2, 2)):
        assert image[y, x, channel] == raw[3 * 27648 + channel * 9216 + x * 96 + y]
    assert set(contents.parts["unlabelled"].labels) == {-1}
    assert contents.folds is not None and [len(fold) for fold in contents.folds] == [8] * 10


def test_stl10_official_labels_count_500_and_800_a_class(tmp_path: Path, shared_data: Path) -> None:
    """The authors' label and fold files, with blank images of the right length beside them."""
    for name in ("train_y.bin", "test_y.bin", "class_names.txt", "fold_indices.txt"):
        (tmp_path / name).write_bytes((shared_data / "stl10/official" / name).read_bytes())
    for name, n in (("train", 5_000), ("test", 8_000)):
        with (tmp_path / f"{name}_X.bin").open("wb") as file:
            file.truncate(n * 27_648)  # a hole: takes no room
    contents = read(own("stl10"), tmp_path)
    assert counts(contents) == {"train": [500] * 10, "test": [800] * 10}
    assert contents.folds is not None and [len(fold) for fold in contents.folds] == [1_000] * 10


def test_stl10_files_of_a_wrong_length(tmp_path: Path, shared_data: Path) -> None:
    root = extract(shared_data / "stl10/stl10_binary-mini.tar.gz", tmp_path / "tree") / "stl10_binary"
    labels = (root / "test_y.bin").read_bytes()
    (root / "test_y.bin").write_bytes(labels[:-1])
    assert "9 labels for 10 images" in refused(Exit.CONTENT, "stl10", root).why
    (root / "test_y.bin").write_bytes(b"\0" + labels[1:])  # labels begin at 1
    assert "out of range" in refused(Exit.CONTENT, "stl10", root).what
    (root / "test_X.bin").write_bytes((root / "test_X.bin").read_bytes()[:-1])
    assert "whole number of images" in refused(Exit.CONTENT, "stl10", root).why


class Hostile:
    """Touches its file when an ordinary unpickler meets it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def test_a_hostile_batch_in_an_archive_layout(tmp_path: Path, shared_data: Path) -> None:
    root = extract(shared_data / "cifar10/cifar-10-python-subset.tar.gz", tmp_path / "tree")
    (root / "cifar-10-batches-py/test_batch").write_bytes(
        pickle.dumps({b"labels": [0], b"data": Hostile(tmp_path / "canary")}, protocol=2)
    )
    assert "system" in refused(Exit.REFUSED, "cifar10", root).why
    assert not (tmp_path / "canary").exists()
