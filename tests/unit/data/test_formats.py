"""Readers: real archives against an independent reading, the written rule for odd images, and hostile input."""

import os
import pickle
import pickletools
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sandglass.data import decode as decode_module
from sandglass.data.archive import extract
from sandglass.data.catalog import CATALOG, Entry
from sandglass.data.decode import BadImage, decode
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


# ------------------------------------------------------------------------------------------ one image


def decoded(image: Image.Image, path: Path, **options: Any) -> tuple[np.ndarray, Counter[str]]:
    image.save(path, **options)
    notes: Counter[str] = Counter()
    return decode(path, notes), notes


def test_rgb_is_taken_as_it_is(tmp_path: Path) -> None:
    pixels = RANDOM.integers(0, 256, (9, 14, 3), dtype=np.uint8)
    found, notes = decoded(Image.fromarray(pixels), tmp_path / "a.PNG", format="PNG")
    assert np.array_equal(found, pixels) and not notes


def test_grey_one_bit_and_palette_are_repeated_or_looked_up(tmp_path: Path) -> None:
    grey = RANDOM.integers(0, 256, (9, 14), dtype=np.uint8)
    found, notes = decoded(Image.fromarray(grey), tmp_path / "a.png")
    assert np.array_equal(found, np.repeat(grey[..., None], 3, axis=2)) and notes == {"grey converted to RGB": 1}
    found, notes = decoded(Image.fromarray(grey > 127), tmp_path / "b.png")
    assert np.array_equal(found[..., 1], (grey > 127) * 255) and notes == {"1-bit converted to RGB": 1}
    palette = Image.fromarray(grey % 2, mode="P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    found, notes = decoded(palette, tmp_path / "c.png")
    assert np.array_equal(found, np.array([[10, 20, 30], [200, 100, 50]], dtype=np.uint8)[grey % 2])
    assert notes == {"palette converted to RGB": 1}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    alpha = np.zeros((8, 8), dtype=np.uint8)
    alpha[:4] = 255
    image = Image.fromarray(np.zeros((8, 8, 4), dtype=np.uint8))
    image.putalpha(Image.fromarray(alpha))
    if mode == "P":
        image = Image.fromarray((alpha == 0).astype(np.uint8), mode="P")
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.info["transparency"] = 1
    found, notes = decoded(image if mode == "P" else image.convert(mode), tmp_path / "a.png")
    assert np.array_equal(found[..., 0], 255 - alpha)
    assert notes == {"transparency laid on white": 1}


def test_half_transparent_black_is_mid_grey(tmp_path: Path) -> None:
    found, _ = decoded(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), tmp_path / "a.png")
    assert np.unique(found).tolist() == [127]


def test_cmyk_is_converted(tmp_path: Path) -> None:
    found, notes = decoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=100)
    assert found[0, 0, 0] > 250 and found[0, 0, 1:].max() < 5  # red
    assert notes == {"CMYK converted to RGB": 1}


@pytest.mark.parametrize(("orientation", "turned"), [(3, 2), (6, 3), (8, 1)])
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, turned: int) -> None:
    pixels = RANDOM.integers(0, 256, (9, 14, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[decode_module.ORIENTATION] = orientation
    found, notes = decoded(Image.fromarray(pixels), tmp_path / "a.png", exif=exif)
    assert np.array_equal(found, np.rot90(pixels, turned)) and notes == {"turned upright by EXIF": 1}


def test_the_first_of_a_cameras_pictures_is_taken(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    notes: Counter[str] = Counter()
    assert decode(tmp_path / "a.jpg", notes)[0, 0].argmax() == 0
    assert notes == {"first of several pictures taken": 1}


def test_what_is_refused_and_why(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((16, 16), 40_000, dtype=np.uint16))
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    jpeg = picture(tmp_path / "whole.jpg", (64, 64)).read_bytes()
    made: dict[str, tuple[str, Any]] = {
        "16-bit.png": ("pixels of kind I;16", deep),
        "float.tiff": ("pixels of kind F", Image.new("F", (16, 16))),
        "large.png": ("megapixels", Image.new("1", (8_000, 6_000))),
        "small.png": ("sides of 8 px", Image.new("RGB", (1, 1))),
        "thin.png": ("aspect", Image.new("RGB", (8, 400))),
        "empty.jpg": ("empty", b""),
        "page.jpg": ("web page", b"\n<!DOCTYPE HTML><html></html>"),
        "junk.jpg": ("not an image", b"junk" * 100),
        "cut.jpg": ("truncated", jpeg[: int(len(jpeg) * 0.9)]),
        "cut.png": ("truncated", picture(tmp_path / "whole.png", (64, 64)).read_bytes()[:-3000]),
        "header.jpg": ("Truncated", jpeg[:10]),
        "vector.jpg": ("not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"),
    }
    for name, (_, content) in made.items():
        (tmp_path / name).write_bytes(content) if isinstance(content, bytes) else content.save(tmp_path / name)
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "pages.tiff", save_all=True, append_images=frames[1:])
    made |= {"moves.gif": ("frames", None), "pages.tiff": ("pages", None), "absent.jpg": ("missing", None)}
    for name, (said, _) in made.items():
        with pytest.raises(BadImage, match=said):
            decode(tmp_path / name, Counter())


def test_verify_would_have_passed_the_cut_jpeg(tmp_path: Path) -> None:
    """Why images are decoded fully."""
    data = picture(tmp_path / "a.jpg", (64, 64)).read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: int(len(data) * 0.9)])
    with Image.open(tmp_path / "a.jpg") as image:
        image.verify()
    with pytest.raises(BadImage):
        decode(tmp_path / "a.jpg", Counter())


@pytest.mark.timeout(10)
def test_a_pipe_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(BadImage, match="regular file"):
        decode(tmp_path / "a.jpg", Counter())


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


# ------------------------------------------------------------------------------------------ hostile pickles


class _Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _global(module: str, name: str, argument: bytes) -> bytes:
    """A pickle that calls module.name(argument), by hand, so that any name can be asked for."""
    text = struct.pack("<B", len(argument)) + argument
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"U" + text + b"\x85R."


def hostile(canary: Path) -> dict[str, bytes]:
    command = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w')"
    nested = {b"labels": [0], b"data": _Calls(os.system, command)}
    return {
        "system": pickle.dumps(_Calls(os.system, command), protocol=2),
        "inside": pickle.dumps(nested, protocol=2),
        "newest protocol": pickle.dumps(nested, protocol=5),
        "eval": pickle.dumps(_Calls(eval, code), protocol=2),
        "exec": pickle.dumps(_Calls(exec, code), protocol=0),
        "numpy's own": _global("numpy.testing._private.utils", "runstring", code.encode()),
        "memory map": pickle.dumps({b"data": _Calls(np.memmap, str(canary), "u1", "w+", 0, (4,))}, protocol=2),
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0bos.system__\x93" + b"U\x01x\x85R.",
        "getattr": _global("builtins", "getattr", b"x"),
        "object array": pickle.dumps({b"data": np.array([_Calls(os.system, command)], dtype=object)}, protocol=2),
        "persistent": b"\x80\x02U\x04evilQ.",
        "subclass": pickle.dumps({b"data": np.zeros(3).view(np.matrix)}, protocol=2),
    }


@pytest.mark.parametrize("kind", hostile(Path("x")))
def test_a_hostile_pickle_is_refused_and_nothing_of_it_runs(tmp_path: Path, kind: str) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "data_batch_1").write_bytes(hostile(canary)[kind])
    with pytest.raises(Problem) as caught:
        load_pickle(tmp_path / "data_batch_1")
    assert caught.value.exit == Exit.REFUSED and caught.value.id == "D-112"
    assert not canary.exists()


def test_the_hostile_pickles_would_have_run(tmp_path: Path) -> None:
    """The corpus is live: an ordinary unpickler leaves the canary."""
    for kind in ("system", "inside", "newest protocol", "eval", "exec", "memory map", "object array"):
        canary = tmp_path / kind.replace(" ", "_")
        pickle.loads(hostile(canary)[kind])
        assert canary.exists(), kind


def test_a_hostile_batch_in_an_archive_layout(tmp_path: Path, shared_data: Path) -> None:
    root = extract(shared_data / "cifar10/cifar-10-python-subset.tar.gz", tmp_path / "tree")
    (root / "cifar-10-batches-py/test_batch").write_bytes(hostile(tmp_path / "canary")["inside"])
    assert "system" in refused(Exit.REFUSED, "cifar10", root).why
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("shape", [(10**12,), (2, 3073), (-1, 3072), "abc"])
def test_an_array_cannot_claim_more_than_its_bytes(tmp_path: Path, shape: Any) -> None:
    from numpy._core.multiarray import _reconstruct

    class Lying:
        def __reduce__(self) -> Any:
            return _reconstruct, (np.ndarray, (0,), b"b"), (1, shape, np.dtype("u1"), False, bytes(3072))

    (tmp_path / "a").write_bytes(pickle.dumps({b"data": Lying()}, protocol=2))
    with pytest.raises(Problem) as caught:
        load_pickle(tmp_path / "a")
    assert caught.value.exit == Exit.CONTENT


@pytest.mark.parametrize(
    "array", [np.array([b"x"]), np.array(["2020-01-01"], dtype="M8[D]"), np.array([1], dtype=object)]
)
def test_only_arrays_of_numbers_are_read(tmp_path: Path, array: np.ndarray) -> None:
    (tmp_path / "a").write_bytes(pickle.dumps({b"data": array}, protocol=2))
    with pytest.raises(Problem) as caught:
        load_pickle(tmp_path / "a")
    assert caught.value.exit == Exit.REFUSED


def test_a_pickle_cannot_change_the_reader_itself(tmp_path: Path) -> None:
    """BUILD on a class without __setstate__ writes its attributes; on ours it fails."""
    (tmp_path / "a").write_bytes(b"\x80\x02cnumpy\ndtype\n}U\x05dtypeNsb.")
    assert any(op.name == "BUILD" for op, *_ in pickletools.genops((tmp_path / "a").read_bytes()))
    with pytest.raises(Problem):
        load_pickle(tmp_path / "a")
    good = {b"data": np.arange(6, dtype=np.uint8).reshape(2, 3)}
    (tmp_path / "b").write_bytes(pickle.dumps(good, protocol=2))
    assert np.array_equal(load_pickle(tmp_path / "b")[b"data"], good[b"data"])


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize(
    "array", [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3))]
)
def test_ordinary_arrays_come_through(tmp_path: Path, protocol: int, array: np.ndarray) -> None:
    (tmp_path / "a").write_bytes(pickle.dumps({b"data": array, "text": ["é", b"x", 1]}, protocol=protocol))
    found = load_pickle(tmp_path / "a")
    assert np.array_equal(found[b"data"], array) and found[b"data"].dtype == array.dtype
    assert found[b"text"][1:] == [b"x", 1]


@pytest.mark.parametrize("kept", [0, 1, 40, 200])
def test_a_cut_pickle_is_damaged(tmp_path: Path, kept: int) -> None:
    whole = pickle.dumps({b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [0, 1]}, protocol=2)
    (tmp_path / "a").write_bytes(whole[:kept])
    with pytest.raises(Problem) as caught:
        load_pickle(tmp_path / "a")
    assert caught.value.exit == Exit.CONTENT and caught.value.id == "D-113"
