"""What is in a folder or an archive of images, and what packing would do with it, before it is used.

Every image is read and decoded by the code that packing uses, so what is said here is what packing meets. Nothing is
written; an archive is unpacked into the system's temporary folder for as long as it is looked at.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter, defaultdict
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.progress import track

from sandglass.config import Data
from sandglass.data.archive import extract
from sandglass.data.catalog import CATALOG, Entry
from sandglass.data.decode import SUFFIXES, BadImage, decode
from sandglass.data.formats import Contents, Part, read, shown
from sandglass.data.pack import MAX_LEAKED, MAX_SKIPPED
from sandglass.data.splits import stratified_cut
from sandglass.errors import Exit, Problem

# A file that only one layout has, in the folder or in the one folder that an archive wraps its contents in. The layout
# of Imagenette is that of any folder with train/ and val/.
MARKS = {"cifar10": "batches.meta", "cifar100": "meta", "stl10": "train_X.bin", "nabirds": "images.txt"}
SIZES = (32, 64)  # px of the proposed study, whose backbone is for small images: the largest that needs no enlarging
MANY = 5  # of a kind are named, the others counted; --json names all


def inspect(source: Path) -> dict[str, Any]:
    """The facts of `source`, a folder or an archive, ready for JSON; `show` makes a page of them.

    Images that the reader of the layout refuses are looked at as they lie, under the split `unsorted`, with the
    folders that hold them for classes. Raises Problem D-102 (66) if nothing is there, and those of archive.extract.
    """
    if not source.exists():
        raise Problem("D-102", Exit.MISSING, "there is nothing to look at", where=str(source), fix="check the path")
    with ExitStack() as stack:
        root = source
        if source.is_file():
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="sandglass."))
            root = extract(source, Path(place, "tree"))
        return _inspect(source, root)


def _inspect(source: Path, root: Path) -> dict[str, Any]:
    lying = _as_they_lie(root)
    in_one_folder = "images" if lying.classes == ["."] else "folder"
    layout = next((f for f, mark in MARKS.items() if any(_marked(root, mark))), in_one_folder)
    refusal: Problem | None = None
    try:
        contents = read(Entry(name=source.name, format=layout, about=""), root)
    except Problem as problem:
        refusal, contents = problem, lying
    seen = _Seen(contents)
    try:
        packing = _refused(refusal) if refusal else _packing(contents, seen)
    except Problem as problem:
        packing = _refused(problem)
    sizes = sorted(seen.sizes, key=lambda size: (size[0] * size[1], size))
    middle = sizes[(len(sizes) - 1) // 2] if sizes else (0, 0)
    return {
        "source": shown(source),
        "layout": layout,
        "split_rule": contents.rule,
        "images": {split: len(part.labels) for split, part in contents.parts.items()},
        "classes": {split: _class_counts(part, contents.classes) for split, part in contents.parts.items()},
        "unlabelled": sum(int((part.labels < 0).sum()) for part in contents.parts.values()),
        "sizes": {"least": sizes[0], "median": middle, "largest": sizes[-1]} if sizes else {},
        "modes": _modes(contents.notes, len(sizes)),
        "notes": {text: n for text, n in sorted(contents.notes.items()) if not _is_mode(text)},
        "broken": seen.broken,
        "duplicates": seen.duplicates(),
        "packing": packing,
        "params": _params(source, layout, min(middle)),
    }


def _marked(root: Path, mark: str) -> list[Path]:
    return [path for path in (root / mark, *root.glob(f"*/{mark}")) if path.is_file()]


def _as_they_lie(root: Path) -> Contents:
    """All image files below `root` as one split, whatever folders they are in; links are left alone."""
    found = (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and not path.is_symlink())
    files = sorted(path for path in found if not any(s.startswith(".") for s in path.relative_to(root).parts))
    folders = [shown(path.parent.relative_to(root)) for path in files]
    classes = sorted(set(folders))
    labels = np.array([classes.index(folder) for folder in folders], dtype=np.int64)
    notes: Counter[str] = Counter()
    part = Part(labels, lambda i: shown(files[i].relative_to(root)), lambda i: decode(files[i], notes))
    return Contents(classes, {"unsorted": part}, notes, "not split")


class _Seen:
    """Every image of every split, decoded once."""

    def __init__(self, contents: Contents) -> None:
        self.parts = contents.parts
        self.sizes: list[tuple[int, int]] = []  # width, height
        self.broken: list[dict[str, str]] = []
        self.copies: defaultdict[bytes, list[tuple[str, int]]] = defaultdict(list)  # sha256 of pixels: split, row
        self.measured = "train" if "train" in self.parts else "unlabelled"  # as packing measures mean and deviation
        self.darkest, self.brightest = np.full(3, 255), np.zeros(3)  # of those images, by channel
        every = [(split, row) for split, part in self.parts.items() for row in range(len(part.labels))]
        console = Console(stderr=True)
        for split, row in track(every, "decoding", console=console, transient=True, disable=not sys.stderr.isatty()):
            self._look(split, row)

    def _look(self, split: str, row: int) -> None:
        part = self.parts[split]
        try:
            image = part.load(row)
        except BadImage as error:
            self.broken.append({"split": split, "image": part.name(row), "reason": str(error)})
            return
        self.sizes.append((image.shape[1], image.shape[0]))
        self.copies[sha256(repr(image.shape).encode() + image.tobytes()).digest()].append((split, row))
        if split == self.measured:
            self.darkest = np.minimum(self.darkest, image.min(axis=(0, 1)))
            self.brightest = np.maximum(self.brightest, image.max(axis=(0, 1)))

    def duplicates(self) -> dict[str, Any]:
        """Images that are equal pixel for pixel: within a split, across two, and under two classes."""
        within, across, groups, contradictions = Counter[str](), Counter[str](), [], 0
        for places in self.copies.values():
            count = Counter(split for split, _ in places)
            within.update({split: n - 1 for split, n in count.items() if n > 1})
            across.update(f"{a} and {b}" for i, a in enumerate(count) for b in list(count)[i + 1 :])
            if len(places) > 1:
                groups.append([self.parts[split].name(row) for split, row in places])
                labels = {int(self.parts[split].labels[row]) for split, row in places} - {-1}
                contradictions += len(labels) > 1
        return {"within": dict(within), "across": dict(across), "of_two_classes": contradictions, "groups": groups}

    def leaked(self) -> int:
        """Test images that are training images too."""
        homes = [Counter(split for split, _ in places) for places in self.copies.values()]
        return sum(home["test"] for home in homes if home["train"] or home["val"])


def _packing(contents: Contents, seen: _Seen) -> dict[str, Any]:
    """What becomes of it with the settings of `data:` as they come. Raises the Problem with which packing refuses."""
    counts = {split: len(part.labels) for split, part in contents.parts.items()}
    fraction = Data().val_fraction
    cut = "val" not in counts and "train" in counts
    if cut:
        train, val = stratified_cut(contents.parts["train"].labels, fraction, seed=0)
        counts |= {"train": len(train), "val": len(val)}
    total, broken, leaked = sum(counts.values()), len(seen.broken), seen.leaked()
    if broken:
        few = broken <= MAX_SKIPPED * total
        fix = f", or data.on_bad_image: skip  (at most {MAX_SKIPPED:.1%})" if few else ""
        what = f"{broken:,} of {total:,} images cannot be used"
        raise Problem("D-104", Exit.CONTENT, what, fix=f"mend or remove them{fix}")
    if (seen.darkest == seen.brightest).any():
        raise Problem("D-109", Exit.CONTENT, "the training images have no contrast")
    if leaked > MAX_LEAKED * counts.get("test", 0):
        what = f"{leaked:,} of {counts['test']:,} test images are training images too"
        raise Problem("D-110", Exit.CONTENT, what, fix="keep one of each, named above")
    rule = "" if not cut else f"val is {fraction:.0%} of each class of train (data.val_fraction)"
    return {"counts": counts, "bytes": sum(3 * w * h for w, h in seen.sizes), "rule": rule}


def _refused(problem: Problem) -> dict[str, Any]:
    return {"refused": problem.record(), "screen": problem.screen()}


def _class_counts(part: Part, classes: list[str]) -> dict[str, int]:
    counts = np.bincount(part.labels[part.labels >= 0], minlength=len(classes)).tolist()
    names = classes + [f"label {label}" for label in range(len(classes), len(counts))]
    return dict(zip(names, counts, strict=True))


def _is_mode(note: str) -> bool:
    return note.endswith("converted to RGB") or note.startswith("transparency")


def _modes(notes: Counter[str], decoded: int) -> dict[str, int]:
    """Images by colour mode, from what decoding converted."""
    odd = {note: n for note, n in sorted(notes.items()) if _is_mode(note)}
    return {"RGB": decoded - sum(odd.values())} | odd


def _params(source: Path, layout: str, side: int) -> list[str]:
    """Four lines that are a whole settings file: this data set, and a study of it that says the least."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", source.name.split(".")[0]).strip("_")[:40] or "images"
    name = f"my_{name}" if name in CATALOG or not name[0].isalnum() else name
    size = max((size for size in SIZES if size <= side), default=SIZES[0])
    data: dict[str, Any] = {"sets": {name: {"format": layout, "source": str(source)}}}
    if side > 256:
        data = {"store_size": 256} | data  # of photographs: a quarter of the bytes and more, and as good at 224 px
    study = {"data": name, "size": size, "backbone": "hourglass_tiny", "seeds": [0, 1, 2]}
    study |= {"pretrain": {"objective": "byol"}}
    if layout != "images":
        study |= {"probe": {"probe": ["knn", "linear"]}}
    return [f"study: {name}", f"data: {_flow(data)}", "studies:", f"  {name}: {_flow(study)}"]


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).strip()


# --------------------------------------------------------------------------------------------- for people


def show(facts: dict[str, Any]) -> str:
    """The facts on one screen."""
    some = max(facts["classes"].values(), key=len)
    folders = "folders" if "unsorted" in facts["images"] else "classes"
    total = sum(facts["images"].values())
    lines = [f"{facts['source']}: {total:,} images of {len(some)} {folders}, layout {facts['layout']}"]

    def say(label: str, text: str) -> None:
        lines.append(f"  {label:<10} {text}")

    say("splits", f"{_counted(facts['images'])} ({facts['split_rule']})")
    for split, classes in facts["classes"].items():
        if any(classes.values()):
            say(folders if split in ("train", "unsorted") else "", f"{split}: {_counted(classes, 10)}")
    say("unlabelled", f"{facts['unlabelled']:,}")
    if facts["sizes"]:
        say("sizes", ", ".join(f"{k} {w} x {h}" for k, (w, h) in facts["sizes"].items()) + " px (width x height)")
    say("colours", _counted(facts["modes"]))
    if facts["notes"]:
        say("noted", _counted(facts["notes"]))
    broken = [f"{row['image']}: {row['reason']}" for row in facts["broken"]]
    say("broken", "\n".join([f"{len(broken):,}", *_some(broken)]).replace("\n", "\n" + " " * 13))
    say("duplicates", "\n".join(_duplicates(facts["duplicates"])).replace("\n", "\n" + " " * 13))
    packing = facts["packing"]
    if "refused" in packing:
        say("packing", "would refuse this:\n    " + packing["screen"].replace("\n", "\n    "))
    else:
        rule = f"; {packing['rule']}" if packing["rule"] else ""
        say("packing", f"would make {_counted(packing['counts'])}{rule}; {packing['bytes'] / 1e6:,.1f} MB as they come")
    say("to use it", "params.yaml:")
    return "\n".join([*lines, "", *facts["params"]])


def _duplicates(found: dict[str, Any]) -> list[str]:
    if not found["groups"]:
        return ["0"]
    rows = [f"{n:,} more copies within {split}" for split, n in found["within"].items()]
    rows += [f"{n:,} pictures in both {splits}" for splits, n in found["across"].items()]
    rows += [f"{found['of_two_classes']:,} pictures of two classes"] if found["of_two_classes"] else []
    return rows + _some([" = ".join(group) for group in found["groups"]])


def _some(rows: list[str]) -> list[str]:
    return rows[:MANY] + [f"(+{len(rows) - MANY:,} more)"] * (len(rows) > MANY)


def _counted(counts: dict[str, int], most: int = 100) -> str:
    rows = [f"{name} {n:,}" for name, n in counts.items()]
    return ", ".join(rows[:most]) + (f" (+{len(rows) - most:,} more)" if len(rows) > most else "") or "none"
