"""How many images a data set has, told before any is fetched, unpacked or decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sandglass.data.catalog import Entry
from sandglass.data.download import at_hand
from sandglass.data.formats import read
from sandglass.data.splits import label_fraction, stratified_cut
from sandglass.runs import read_json

ORDER = "train", "val", "test", "unlabelled"  # in which they are told


@dataclass(frozen=True)
class Census:
    """Images by split, and how that is known; `labels` of the training splits where they were read."""

    name: str
    counts: dict[str, int]  # empty where only unpacking would tell
    known: str
    labels: dict[str, np.ndarray]
    validation: bool  # whether there will be images to choose by, as far as is known

    def most(self, *splits: str, share: float = 1.0) -> int | None:
        """The images in these splits of which `share` has its label used; None where that is not known."""
        if all(split in self.labels for split in splits if split in self.counts) and self.counts:
            labels = [self.labels[split] for split in splits if split in self.counts]
            together = np.concatenate(labels) if labels else np.zeros(0, dtype=np.int64)
            return len(together) if share == 1.0 else len(label_fraction(together, share, seed=0))
        return sum(self.counts.get(split, 0) for split in splits) if self.counts and share == 1.0 else None

    def line(self) -> str:
        counted = ", ".join(f"{self.counts[split]:,} {split}" for split in ORDER if split in self.counts)
        return f"data set {self.name}: {counted or 'not counted'} ({self.known})"


def take(entry: Entry, packed: Path, raw: Path, mirror: str | None, val_fraction: float) -> Census:
    """Of a packed set its sidecar, of a folder its file names, of a set of the catalogue what is published.

    Raises Problem: D-102 (66) a local source is not there; D-103 (66) it must be fetched by hand, and was not; what
    `formats.read` refuses in a folder.
    """
    if (packed / "info.json").is_file():
        counts = read_json(packed / "info.json")["counts"]
        labels = {split: np.load(packed / f"{split}_labels.npy", allow_pickle=False) for split in counts}
        return Census(entry.name, counts, "packed", labels, "val" in counts)
    source = at_hand(entry, raw, mirror)
    if source and source.is_dir():
        labels = {split: part.labels for split, part in read(entry, source).parts.items()}
        if "val" not in labels and "train" in labels:
            stay, cut = stratified_cut(labels["train"], val_fraction, seed=0)
            labels |= {"train": labels["train"][stay], "val": labels["train"][cut]}
        counts = {split: len(own) for split, own in labels.items() if len(own)}
        known = "counted by name, not yet read: sandglass data inspect reads them"
        return Census(entry.name, counts, known, labels, "val" in counts)
    if entry.splits:
        where = "embedded" if not entry.source and not entry.by_hand else "at hand" if source else "not yet fetched"
        where += f", {entry.bytes / 1e6:,.0f} MB" if entry.bytes and not source else ""
        known = f"as published, val not yet cut from train; {where}"
        return Census(entry.name, dict(entry.splits), known, {}, "val" in entry.splits or val_fraction > 0)
    where = f"an archive: sandglass data inspect {source}" if source else f"not yet fetched from {entry.source}"
    return Census(entry.name, {}, where, {}, True)
