"""Readers of the layouts that data sets come in: what is in each split, and how to get image i of it.

A reader looks at names and labels only; images are decoded one by one (decode.py) when they are asked for. Nothing
outside the source folder is opened, and pickles go through an allow-list (unpickle.py).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sandglass.data.catalog import Entry
from sandglass.data.decode import SUFFIXES, decode
from sandglass.data.splits import stratified_cut
from sandglass.data.unpickle import damaged, load_pickle
from sandglass.errors import Exit, Problem

LITTER = {"thumbs.db", "desktop.ini", "__macosx"}  # and every name that begins with a dot
TEST_SHARE = 0.2  # cut from a folder that has no test part
UNLABELLED = ("unlabelled", "unlabeled")  # a folder of this name beside class folders is no class


@dataclass(frozen=True)
class Part:
    """One split: labels int64 (N,), -1 for none; the name of image i for messages; image i itself, uint8 (H,W,3)."""

    labels: np.ndarray
    name: Callable[[int], str]
    load: Callable[[int], np.ndarray]  # raises decode.BadImage


@dataclass(frozen=True)
class Contents:
    """What a source holds."""

    classes: list[str]
    parts: dict[str, Part]  # train, test; val and unlabelled where the source has them
    notes: Counter[str] = field(default_factory=Counter)  # conversions and ignored files, filled while reading
    rule: str = "as published"  # how test was told from train
    folds: list[list[int]] | None = None  # STL-10: rows of its training images


def read(entry: Entry, root: Path | None) -> Contents:
    """The contents of an unpacked source (None for an embedded one).

    Raises Problem: D-105 (65) the layout is not that of the format; D-106 (65) counts are not the published ones;
    D-107 (65) classes; D-108 (65) labels out of range; D-111 (77) a link or name that leads out; D-112 (77) an unsafe
    pickle; D-113 (65) a damaged file.
    """
    contents = READERS[entry.format](root.resolve() if root else Path())
    _check(entry, contents)
    return contents


def _check(entry: Entry, contents: Contents) -> None:
    found = {split: len(part.labels) for split, part in contents.parts.items()}
    if entry.splits and found != dict(entry.splits):
        raise Problem(
            "D-106",
            Exit.CONTENT,
            f"{entry.name} is not complete",
            why=f"found {_counts(found)}; published {_counts(dict(entry.splits))}",
            fix="fetch the archive anew; a part of a data set is declared under data.sets",
        )
    classes = len(contents.classes)
    labelled = contents.parts.keys() != {"unlabelled"}
    if labelled and (classes < 2 or (entry.classes and classes != entry.classes)):
        raise Problem(
            "D-107",
            Exit.CONTENT,
            f"{entry.name} has {classes} class{'es' * (classes != 1)}",
            where=", ".join(contents.classes[:10]),
            why=f"{entry.classes} are published" if entry.classes else "a data set needs at least two",
        )
    for split, part in contents.parts.items():
        labels = part.labels
        lowest = -1 if split == "unlabelled" else 0
        wrong = np.flatnonzero((labels < lowest) | (labels >= classes))
        if len(wrong):
            rows = ", ".join(f"{part.name(i)}: {labels[i]}" for i in wrong[:5])
            why = f"labels go from 0 to {classes - 1}"
            raise Problem(
                "D-108", Exit.CONTENT, f"{len(wrong):,} labels of {split} are out of range", where=rows, why=why
            )
        if split in ("train", "test"):
            empty = [contents.classes[c] for c in np.flatnonzero(np.bincount(labels, minlength=classes) == 0)]
            if empty:
                some = ", ".join(empty[:5]) + (f" (+{len(empty) - 5} more)" if len(empty) > 5 else "")
                why = "training and test images must have the same classes"
                raise Problem(
                    "D-107", Exit.CONTENT, f"{len(empty)} classes have no {split} images", where=some, why=why
                )


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {split}" for split, n in found.items()) or "nothing"


# --------------------------------------------------------------------------------------------- folders of files


def _folder(root: Path) -> Contents:
    """train/ with test/ (and val/), or train/ with val/ as the test split, or class folders alone, cut 4 to 1.

    Images in unlabelled/, at the top or in train/, are for pretraining alone.
    """
    notes: Counter[str] = Counter()
    root = _descend(root, lambda r: (r / "train").is_dir() or len(_folders(r, Counter())) != 1 or bool(_loose(r)))
    found = _folders(root, Counter())
    parts: dict[str, Path] = {name: root / name for name in ("train", "val", "test") if name in found}
    if "train" not in parts:
        parts = {"train": root}
    if "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
    unlabelled = [path for top in dict.fromkeys((root, parts["train"])) for path in _unlabelled(top)]
    names = {split: _classes(path, unlabelled, notes) for split, path in parts.items()}
    classes = names["train"]
    for split, own in names.items():
        if difference := sorted(set(classes) ^ set(own)):
            where = "\n".join(f"{c}: only in {parts['train' if c in classes else split].name}/" for c in difference[:5])
            what = f"train and {split} have different classes"
            raise Problem("D-107", Exit.CONTENT, what, where=where, fix="each split has one folder for each class")
    files = {s: [_images(path / c, root, notes) for c in classes] for s, path in parts.items()}
    for split, lists in files.items():
        if empty := [c for c, paths in zip(classes, lists) if not paths]:
            where = ", ".join(f"{parts[split].name}/{c}" for c in empty[:5])
            why = f"ignored there: {dict(notes)}" if notes else ""
            raise Problem("D-107", Exit.CONTENT, f"{len(empty)} class folders hold no image", where=where, why=why)
    made = {split: _files_part(lists, root, notes) for split, lists in files.items()}
    rule = "as the source has it"
    if "test" not in made and classes:
        whole = made["train"]
        stay, cut = stratified_cut(whole.labels, TEST_SHARE, seed=0)  # the same for every study
        made = {"train": _rows(whole, stay), "test": _rows(whole, cut)}
        rule = f"test is {TEST_SHARE:.0%} of each class, cut with seed 0"
    if unlabelled:
        made["unlabelled"] = _unlabelled_part(unlabelled, root, notes)
    return Contents([_WORDNET.get(name, name) for name in classes], made, notes, rule)


def _image_files(root: Path) -> Contents:
    """All images in a folder and below it; what their folders are called means nothing."""
    notes: Counter[str] = Counter()
    return Contents([], {"unlabelled": _unlabelled_part([root], root, notes)}, notes, "no image has a label")


def _unlabelled(path: Path) -> list[Path]:
    """The folders in `path` whose images have no label."""
    return [path / name for name in _folders(path, Counter()) if name.lower() in UNLABELLED]


def _unlabelled_part(folders: list[Path], root: Path, notes: Counter[str]) -> Part:
    files = [file for folder in folders for file in _images(folder, root, notes)]
    if not files:
        why = f"ignored there: {dict(notes)}" if notes else ""
        raise Problem("D-105", Exit.CONTENT, "no image found", where=", ".join(map(shown, folders)), why=why)
    return _part_of(files, np.full(len(files), -1, dtype=np.int64), root, notes)


def _loose(path: Path) -> list[Path]:
    """The image files in `path` itself."""
    named = (item for item in sorted(path.iterdir()) if item.suffix.lower() in SUFFIXES and not _litter(item.name))
    return [item for item in named if not item.is_dir()]


def _classes(path: Path, unlabelled: list[Path], notes: Counter[str]) -> list[str]:
    """The class folders in `path`. Images beside them have no class: whether that is meant, only a person knows."""
    if loose := _loose(path):
        raise Problem(
            "D-105",
            Exit.CONTENT,
            f"{len(loose):,} image{'s' * (len(loose) > 1)} in no class folder",
            where=shown(loose[0]) + (", ..." if len(loose) > 1 else ""),
            fix="move them into a class folder; without labels into a folder `unlabelled` beside the class folders;\n"
            "and if no image has a label, say `format: images`",
        )
    return [name for name in _folders(path, notes) if path / name not in unlabelled]


def _imagenette(root: Path) -> Contents:
    """train/ and val/ with a folder for each WordNet id. Results are reported on the published val: it is our test."""
    root = _descend(root, lambda r: (r / "train").is_dir())
    _need(root, "train", "val")
    return _folder(root)


def _nabirds(root: Path) -> Contents:
    """Tables of `<image id> <value>` lines beside images/; classes are those that have images, by their number."""
    root = _descend(root, lambda r: (r / "images.txt").is_file())
    _need(root, "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt", "images")
    notes: Counter[str] = Counter()
    tables = ("images", "image_class_labels", "train_test_split", "classes")
    paths, numbers, training, names = (_table(root / f"{table}.txt") for table in tables)
    if not paths.keys() == numbers.keys() == training.keys():
        odd = sorted((paths.keys() ^ numbers.keys()) | (paths.keys() ^ training.keys()))
        raise damaged(root, f"{len(odd):,} images are not in all of {', '.join(tables[:3])}: {', '.join(odd[:3])} ...")
    used = sorted(set(numbers.values()), key=lambda number: (len(number), number))
    if unnamed := [number for number in used if number not in names]:
        raise damaged(root / "classes.txt", f"no name for the classes {', '.join(unnamed[:5])}")
    place = {number: i for i, number in enumerate(used)}
    made = {}
    for split, flag in (("train", "1"), ("test", "0")):
        ids = [key for key in paths if training[key] == flag]
        files = [_inside(root / "images" / paths[key], root) for key in ids]
        labels = np.array([place[numbers[key]] for key in ids], dtype=np.int64)
        made[split] = _part_of(files, labels, root, notes)
    return Contents([names[number] for number in used], made, notes)


def _table(path: Path) -> dict[str, str]:
    """Lines of `key value with spaces`, as a dict in their order; a byte-order mark and CRLF are taken as they come."""
    rows = [line.split(maxsplit=1) for line in _text(path).splitlines() if line.strip()]
    found = {row[0]: row[-1].strip() for row in rows}
    if any(len(row) != 2 for row in rows) or len(found) != len(rows):
        raise damaged(path, "a line is not `key value`, or a key is repeated")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise damaged(path, str(error)) from None


def _descend(root: Path, arrived: Callable[[Path], bool]) -> Path:
    """`root`, or the one folder that an archive wraps its contents in."""
    if arrived(root):
        return root
    inner = _folders(root, Counter())
    return root / inner[0] if len(inner) == 1 else root


def _need(root: Path, *names: str) -> None:
    """Refuse a layout in which a file or folder is missing, or is something else, or lies elsewhere."""
    if missing := [name for name in names if not ((root / name).is_file() or (root / name).is_dir())]:
        found = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        raise Problem(
            "D-105",
            Exit.CONTENT,
            f"not the layout expected: no {', '.join(missing)}",
            where=f"found {found}",
            fix="check `format` and `source`, or fetch the archive anew",
        )
    for name in names:
        _inside(root / name, root)


def _inside(path: Path, root: Path) -> Path:
    """`path`, if what it leads to is below `root`."""
    try:
        real = path.resolve()
    except (OSError, RuntimeError):  # links in a circle
        real = Path("a circle of links")
    if not real.is_relative_to(root):
        raise Problem(
            "D-111",
            Exit.REFUSED,
            "a link or a name leads out of the data set",
            where=f"{shown(path)} -> {shown(real)}",
            why="nothing outside the source folder is read, and links to folders are not followed",
            fix="copy the files in, or name the folder that holds them as the source",
            kept="nothing was read from there",
        )
    return path


def _litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in LITTER


def _folders(path: Path, notes: Counter[str]) -> list[str]:
    """The folders in `path`, sorted by name."""
    found = []
    for item in sorted(path.iterdir()):
        if _litter(item.name):
            notes["hidden files ignored"] += 1
        elif item.is_dir():
            found.append(_inside(item, item).name)  # a true folder leads to itself
    return found


def _images(folder: Path, root: Path, notes: Counter[str]) -> list[Path]:
    """The image files in a class folder and below, sorted; what is ignored is counted. Decoding judges the rest."""
    found: list[Path] = []
    for item in sorted(os.scandir(folder), key=lambda item: item.name):
        path = Path(item)
        if _litter(item.name):
            notes["hidden files ignored"] += 1
            continue
        if item.is_symlink():
            _inside(path, path if path.is_dir() else root)
        if item.is_dir():
            found += _images(path, root, notes)
        elif path.suffix.lower() in SUFFIXES:
            found.append(path)
        else:
            notes["other files ignored"] += 1
    return found


def _files_part(lists: list[list[Path]], root: Path, notes: Counter[str]) -> Part:
    """A split whose class c has the files lists[c]."""
    labels = np.repeat(np.arange(len(lists), dtype=np.int64), [len(found) for found in lists])
    return _part_of([path for found in lists for path in found], labels, root, notes)


def _part_of(files: list[Path], labels: np.ndarray, root: Path, notes: Counter[str]) -> Part:
    return Part(labels, lambda i: shown(files[i].relative_to(root)), lambda i: decode(files[i], notes))


def shown(path: Path) -> str:
    """A path that can be printed whatever bytes are in it."""
    return str(path).encode("utf-8", "backslashreplace").decode().replace("\n", "\\n")


def _rows(part: Part, rows: np.ndarray) -> Part:
    return Part(part.labels[rows], lambda i: part.name(rows[i]), lambda i: part.load(rows[i]))


# --------------------------------------------------------------------------------------------- arrays


def _digits(_: Path) -> Contents:
    """scikit-learn's 1,797 digits, 0..16 -> 0..255. Test: the last fifth of each class in the file's order.

    The file goes from writer to writer, so the test digits are mostly by writers that are not trained on.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    labels = data.target.astype(np.int64)
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=3)
    test = np.sort(
        np.concatenate([rows[-round(len(rows) / 5) :] for rows in (np.flatnonzero(labels == c) for c in range(10))])
    )
    whole = _array_part(images, labels, "digit")
    stay = np.setdiff1d(np.arange(len(labels)), test)
    notes = Counter({"grey converted to RGB": len(labels)})
    parts = {"train": _rows(whole, stay), "test": _rows(whole, test)}
    return Contents(
        [str(c) for c in range(10)], parts, notes, "test is the last fifth of each class in the file's order"
    )


def _cifar10(root: Path) -> Contents:
    root = _descend(root, lambda r: (r / "data_batch_1").is_file())
    batches = [f"data_batch_{i}" for i in range(1, 6)]
    _need(root, *batches, "test_batch", "batches.meta")
    return Contents(
        _names(root / "batches.meta", b"label_names"),
        {
            "train": _batches([root / name for name in batches], b"labels"),
            "test": _batches([root / "test_batch"], b"labels"),
        },
    )


def _cifar100(root: Path) -> Contents:
    root = _descend(root, lambda r: (r / "meta").is_file())
    _need(root, "train", "test", "meta")
    parts = {split: _batches([root / split], b"fine_labels") for split in ("train", "test")}
    return Contents(_names(root / "meta", b"fine_label_names"), parts)


def _names(path: Path, key: bytes) -> list[str]:
    names = load_pickle(path).get(key)
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise damaged(path, f"no list of names under {key.decode()}")
    return [name.decode(errors="replace") if isinstance(name, bytes) else name for name in names]


def _batches(paths: list[Path], key: bytes) -> Part:
    """CIFAR's batches: rows of 3,072 bytes, the red, green and blue planes of 32 x 32 px."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    for path in paths:
        table = load_pickle(path)
        data, found = table.get(b"data"), table.get(key)
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
            raise damaged(path, "no rows of 3,072 bytes under data")
        if not isinstance(found, list) or len(found) != len(data) or not all(type(label) is int for label in found):
            raise damaged(path, f"{len(data):,} images without as many whole numbers under {key.decode()}")
        images.append(data.reshape(-1, 3, 32, 32))
        labels += found
    where = "+".join(path.name for path in paths)
    return _array_part(np.concatenate(images).transpose(0, 2, 3, 1), np.array(labels, dtype=np.int64), where)


def _stl10(root: Path) -> Contents:
    """Planes of 96 x 96 bytes, each column by column; labels from 1. Unlabelled images where the file is there."""
    root = _descend(root, lambda r: (r / "train_X.bin").is_file())
    _need(root, "train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt")
    parts = {split: _planes(root / f"{split}_X.bin", root / f"{split}_y.bin") for split in ("train", "test")}
    if (root / "unlabeled_X.bin").exists():
        _need(root, "unlabeled_X.bin")
        parts["unlabelled"] = _planes(root / "unlabeled_X.bin", None)
    folds = None
    if (root / "fold_indices.txt").exists():
        _need(root, "fold_indices.txt")
        try:
            folds = [
                [int(word) for word in line.split()] for line in _text(root / "fold_indices.txt").splitlines() if line
            ]
        except ValueError as error:
            raise damaged(root / "fold_indices.txt", str(error)) from None
        if any(not 0 <= row < len(parts["train"].labels) for fold in folds for row in fold):
            raise damaged(root / "fold_indices.txt", "a fold names an image that is not there")
    return Contents(_text(root / "class_names.txt").split(), parts, folds=folds)


def _planes(images: Path, labels: Path | None) -> Part:
    size = images.stat().st_size
    if size == 0 or size % (3 * 96 * 96):
        raise damaged(images, f"{size:,} bytes are not a whole number of images of {3 * 96 * 96:,}")
    stored = np.memmap(images, dtype=np.uint8, mode="r").reshape(-1, 3, 96, 96)  # (N, channel, column, row)
    numbers = np.full(len(stored), -1, dtype=np.int64)
    if labels:
        numbers = np.fromfile(labels, dtype=np.uint8).astype(np.int64) - 1
        if len(numbers) != len(stored):
            raise damaged(labels, f"{len(numbers):,} labels for {len(stored):,} images")
    return _array_part(stored.transpose(0, 3, 2, 1), numbers, images.name)


def _array_part(images: np.ndarray, labels: np.ndarray, where: str) -> Part:
    """A split held as (N,H,W,3), in memory or mapped."""
    return Part(labels, lambda i: f"{where}[{i}]", lambda i: np.ascontiguousarray(images[i]))


READERS: dict[str, Callable[[Path], Contents]] = {
    "digits": _digits,
    "folder": _folder,
    "images": _image_files,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "stl10": _stl10,
    "imagenette": _imagenette,
    "nabirds": _nabirds,
}

_WORDNET = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
    "n02086240": "Shih-Tzu",
    "n02087394": "Rhodesian ridgeback",
    "n02088364": "beagle",
    "n02089973": "English foxhound",
    "n02093754": "Border terrier",
    "n02096294": "Australian terrier",
    "n02099601": "golden retriever",
    "n02105641": "Old English sheepdog",
    "n02111889": "Samoyed",
    "n02115641": "dingo",
}
