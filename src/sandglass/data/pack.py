"""Turn a data set into one uint8 array per split, decoded once, beside a sidecar that says what it is.

<split>.npy is (N,3,H,W) where all images have one size, else the flat (3,h,w) images one after another;
<split>_sizes.npy is (N,2) of h, w; <split>_labels.npy is int64 (N,), -1 for none; <split>_rows.npy says which image of
the source's split each row is. info.json is written last: its presence means whole. Mean and deviation are those of
all pixels / 255 of the training split (without one, of the unlabelled images), from exact histograms.
"""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sandglass.data.archive import extract
from sandglass.data.catalog import Entry
from sandglass.data.decode import BadImage
from sandglass.data.formats import Contents, read
from sandglass.data.splits import stratified_cut
from sandglass.errors import Exit, Problem
from sandglass.runs import write_json

MAX_SKIPPED = 0.001  # of all images
MAX_LEAKED = 0.01  # of the test images may occur among the training images; CIFAR and others have a few
HEADER_BYTES = 128  # of a .npy file: room for any shape that occurs


def pack(
    entry: Entry,
    source_path: Path | None,
    folder: Path,
    *,
    store_size: int | None,
    val_fraction: float,
    seed: int,
    on_bad_image: str,
) -> dict[str, Any]:
    """Pack `source_path` (an archive, a folder, or None for an embedded set) into `folder`; returns the sidecar.

    `store_size` px is the shorter side that larger images are shrunk to (antialiased, aspect kept); none is enlarged.
    `val_fraction` of the training images, stratified by `seed`, becomes the validation split, if the source has none.
    `on_bad_image`: "error", or "skip" for at most 0.1 % of all images.
    Raises Problem: those of archive.extract and formats.read; D-104 (65) bad images; D-109 (65) no contrast; D-110 (65)
    test images among the training images; D-117 (65) a class too small to split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "info.json").unlink(missing_ok=True)
    staging = folder / ".packing"  # of one writer at a time, so what is there was left by a killed one
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        with _unpacked(source_path, staging) as root:
            contents = read(entry, root)
            info = _pack(contents, staging, folder, store_size, val_fraction, seed, on_bad_image)
        info = {
            "name": entry.name,
            "format": entry.format,
            **info,
            "store_size": store_size,
            "val_fraction": val_fraction,
            "seed": seed,
            "licence": entry.licence,
            "citation": entry.citation,
            "homepage": entry.homepage,
        }
        for file in sorted(staging.iterdir()):
            file.replace(folder / file.name)
        write_json(folder / "info.json", info)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return info


@contextmanager
def _unpacked(source: Path | None, beside: Path) -> Iterator[Path | None]:
    """The source as a folder; an archive is unpacked for as long as it is needed."""
    if source is None or source.is_dir():
        yield source
        return
    with tempfile.TemporaryDirectory(dir=beside, prefix="unpacked.") as place:
        yield extract(source, Path(place, "tree"))


def _pack(
    contents: Contents,
    staging: Path,
    folder: Path,
    store_size: int | None,
    val_fraction: float,
    seed: int,
    on_bad_image: str,
) -> dict[str, Any]:
    """Write every split into `staging`; the facts of the sidecar that come from the images."""
    splits = {name: (name, np.arange(len(part.labels))) for name, part in contents.parts.items()}
    measured = "train" if "train" in splits else "unlabelled"
    if "val" not in splits and "train" in splits and val_fraction > 0:
        train, val = stratified_cut(contents.parts["train"].labels, val_fraction, seed)
        splits |= {"train": ("train", train), "val": ("train", val)}
    bad: list[tuple[str, str, str]] = []
    written: dict[str, _Writer] = {}
    histogram = np.zeros((3, 256), dtype=np.int64)
    for split, (source, rows) in splits.items():
        part = contents.parts[source]
        with _Writer(staging, split) as writer:
            for row in rows.tolist():
                try:
                    image = shrink(part.load(row), store_size).transpose(2, 0, 1)
                except BadImage as error:
                    bad.append((split, part.name(row), str(error)))
                    continue
                writer.add(image, int(part.labels[row]), row)
                if split == measured:
                    histogram += np.stack([np.bincount(plane.ravel(), minlength=256) for plane in image])
        written[split] = writer
    _judge_bad(bad, sum(len(rows) for _, rows in splits.values()), folder, staging, on_bad_image)
    if contents.folds:
        write_json(staging / "folds.json", contents.folds)
    mean, std = _moments(histogram)
    classes = len(contents.classes)
    return {
        "classes": contents.classes,
        "counts": {split: len(writer.labels) for split, writer in written.items()},
        "class_counts": {
            split: np.bincount(writer.labels, minlength=classes).tolist()
            for split, writer in written.items()
            if split != "unlabelled"
        },
        "mean": mean,
        "std": std,
        "size": written[measured].size,
        "fingerprint": _fingerprint(contents.classes, written),
        "repeated_test_images": _repeated(written, lambda split, row: contents.parts[splits[split][0]].name(row)),
        "split_rule": contents.rule,
        "conversions": dict(sorted(contents.notes.items())),
        "skipped": len(bad),
    }


class _Writer:
    """One split, appended image by image. The .npy header is written last, when the shape is known."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self.labels: list[int] = []
        self.rows: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        self.hashes: list[bytes] = []

    def __enter__(self) -> _Writer:
        self.stack = ExitStack()
        self.file = self.stack.enter_context((self.folder / f"{self.split}.npy").open("wb"))
        self.file.write(bytes(HEADER_BYTES))
        return self

    def add(self, image: np.ndarray, label: int, row: int) -> None:
        """image uint8 (3,h,w)."""
        data = np.ascontiguousarray(image)
        self.file.write(data.data)
        self.labels.append(label)
        self.rows.append(row)
        self.sizes.append((data.shape[1], data.shape[2]))
        self.hashes.append(hashlib.sha256(repr(data.shape).encode() + data.tobytes()).digest())

    @property
    def size(self) -> list[int] | None:
        """[h, w] if all images have one size."""
        return list(self.sizes[0]) if len(set(self.sizes)) == 1 else None

    def __exit__(self, failed: object, *_: object) -> None:
        with self.stack:
            if failed:
                return
            n, size = len(self.labels), self.size
            shape = (n, 3, *size) if size else (self.file.tell() - HEADER_BYTES,)
            self.file.seek(0)
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self.file, header)
            assert self.file.tell() == HEADER_BYTES
            self.file.flush()
            os.fsync(self.file.fileno())
        np.save(self.folder / f"{self.split}_labels.npy", np.array(self.labels, dtype=np.int64))
        np.save(self.folder / f"{self.split}_rows.npy", np.array(self.rows, dtype=np.int64))
        np.save(self.folder / f"{self.split}_sizes.npy", np.array(self.sizes, dtype=np.int64).reshape(n, 2))


def shrink(image: np.ndarray, shorter: int | None) -> np.ndarray:
    """uint8 (H,W,3) with its shorter side at most `shorter` px: bilinear, antialiased, aspect kept; never enlarged."""
    height, width = image.shape[:2]
    if shorter is None or min(height, width) <= shorter:
        return image
    scale = shorter / min(height, width)
    size = (max(shorter, round(width * scale)), max(shorter, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def _judge_bad(bad: list[tuple[str, str, str]], total: int, folder: Path, staging: Path, on_bad_image: str) -> None:
    """List unusable images in bad_images.csv; refuse the set unless they may be skipped and are few."""
    (folder / "bad_images.csv").unlink(missing_ok=True)
    if not bad:
        return
    few = len(bad) <= MAX_SKIPPED * total
    file = (staging if on_bad_image == "skip" and few else folder) / "bad_images.csv"
    with file.open("w", newline="", encoding="utf-8", errors="backslashreplace") as opened:
        csv.writer(opened).writerows([("split", "image", "reason"), *bad])
    if on_bad_image == "skip" and few:
        return
    reasons = Counter(reason for *_, reason in bad).most_common(3)
    raise Problem(
        "D-104",
        Exit.CONTENT,
        f"{len(bad):,} of {total:,} images cannot be used",
        where=bad[0][1] + (f"  (+{len(bad) - 1:,} more in {file})" if len(bad) > 1 else ""),
        why="\n".join(
            f"{reason}" + (f"  ({n:,} image{'s' * (n > 1)})" if len(bad) > 1 else "") for reason, n in reasons
        ),
        fix="mend or remove them"
        + (
            f", or data.on_bad_image: skip  (at most {MAX_SKIPPED:.1%})"
            if few
            else f"; {MAX_SKIPPED:.1%} may be skipped"
        ),
        kept=f"nothing was packed; the list is in {file}",
    )


def _moments(histogram: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel in [0,1], from counts of the 256 levels (3,256)."""
    levels = np.arange(256) / 255
    share = histogram / histogram.sum(axis=1, keepdims=True)
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(axis=1)
    if (variance == 0).any():
        raise Problem(
            "D-109",
            Exit.CONTENT,
            "the training images have no contrast",
            why=f"channel {int(variance.argmin())} has one value everywhere: normalisation would divide by zero",
            fix="check that the images are what they should be",
        )
    return mean.tolist(), np.sqrt(variance).tolist()


def _fingerprint(classes: list[str], written: dict[str, _Writer]) -> str:
    """sha256 over class names and, split by split, every label and every image's own sha256."""
    total = hashlib.sha256("\0".join(classes).encode(errors="surrogateescape"))
    for split in sorted(written):
        writer = written[split]
        total.update(f"\0{split} {len(writer.labels)}\0".encode())
        total.update(np.array(writer.labels, dtype="<i8").tobytes())
        total.update(b"".join(writer.hashes))
    return total.hexdigest()


def _repeated(written: dict[str, _Writer], name: Callable[[str, int], str]) -> dict[str, int]:
    """How many test images occur, pixel for pixel, in each other split; over 1 % among training images is refused.

    `name` tells an image by split and row.
    """
    if "test" not in written:
        return {}
    test = written["test"].hashes
    counts = {}
    for split, writer in written.items():
        if split != "test":
            seen = set(writer.hashes)
            counts[split] = sum(digest in seen for digest in test)
    trained = counts["train"] + counts.get("val", 0)
    if trained > MAX_LEAKED * len(test):
        seen_as = {
            digest: name(split, row)
            for split in ("train", "val")
            if split in written
            for digest, row in zip(written[split].hashes, written[split].rows)
        }
        same = [
            f"{name('test', row)} = {seen_as[digest]}"
            for digest, row in zip(test, written["test"].rows)
            if digest in seen_as
        ]
        raise Problem(
            "D-110",
            Exit.CONTENT,
            f"{trained:,} of {len(test):,} test images are training images too",
            where="\n".join(same[:5]) + (f"\n(+{len(same) - 5:,} more)" if len(same) > 5 else ""),
            why=f"equal pixel for pixel; more than {MAX_LEAKED:.0%} makes test figures meaningless",
            fix="keep one of each; sandglass data inspect names all",
            kept="nothing was packed",
        )
    return counts
