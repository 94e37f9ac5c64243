"""The published tables as data: every number, where it was printed, how it came about, and whether it can be trusted.

Three sources, one CSV each, digits as printed. A table is named `source/table` (`thesis/4.6`, `blog/ImageNette`); a
study names the one it answers, or a whole source. A protocol is what a run of ours must share before its number may
stand beside a published one: None means that the source does not say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import pandas as pd

from sandglass.errors import Exit, Problem, did_you_mean

COLUMNS = ("table", "data set", "model", "setting", "metric", "printed", "value", "unit", "status", "note")
STATUSES = ("as printed", "disputed", "corrected")
COSTS = {"minutes": "minutes", "peak_gb": "GB"}  # printed beside some accuracies

SOURCES = {
    "blog": "CATIE, blog on self-supervised learning in computer vision, 26 June 2023",
    "thesis": "Floros, MSc thesis on auxiliary tasks for small data, University of Edinburgh, 2024",
    "lecture": "Kalhor, lecture on transformers and layer-wise learning, chapter 3, University of Tehran",
}

BLOG = {
    "backbone": "resnet18",
    "size": 224,
    "epochs": 200,
    "batch size": 256,
    "evaluation": "linear classifier on the backbone; frozen, online or finetuned is not said",
    "split": "validation",
    "seeds": 1,
    "device": None,
}
THESIS = {
    "parameters": "15 M",
    "size": 32,
    "epochs": 100,
    "batch size": 128,
    "optimiser": "Adam, 1e-4",
    "augmentation": None,
    "evaluation": "supervised from scratch, with the auxiliary loss",
    "split": "test, on which the weight of the loss was chosen as well",
    "seeds": 1,
}
FGSM = {"attack": "FGSM, 1/255", "space of epsilon": None, "clipped": None}


@dataclass(frozen=True)
class Table:
    """One published table: what it shows, how many numbers it has, under which protocol."""

    caption: str
    rows: int
    protocol: dict[str, Any] = field(default_factory=dict)


TABLES = {
    "blog/ImageNette": Table(
        "Ten methods under five view policies",
        50,
        BLOG | {"split": "validation; 23 of the 50 numbers are not multiples of 1/500, the size of that split"},
    ),
    "blog/ImageNette v2-160": Table("Ten methods under five view policies", 50, BLOG | {"upsampled from": 160}),
    "blog/ImageWoof": Table("Ten methods under five view policies", 50, BLOG),
    "blog/NABirds": Table(
        "Ten methods under two view policies, top-1 and top-5", 40, BLOG | {"split": "own, 9,907 images"}
    ),
    "thesis/4.1": Table("DRLoc by weight", 40, THESIS),
    "thesis/4.2": Table("Masked embedding by weight", 40, THESIS),
    "thesis/4.3": Table("Both tasks together", 56, THESIS),
    "thesis/4.4": Table("The best of each", 33, THESIS),
    "thesis/4.5": Table("Masked embedding by mask ratio", 28, THESIS),
    "thesis/4.6": Table("Clean and under FGSM", 32, THESIS | FGSM),
    "lecture/vit_variants": Table("Sizes of the vision transformer", 15),
    "lecture/imagenet_models": Table("Cost and accuracy on ImageNet", 148),
    "lecture/isda_imagenet": Table("Implicit semantic augmentation, ImageNet errors", 56),
    "lecture/greedy_cifar10": Table("Greedy layer-wise training, CIFAR-10", 15),
    "lecture/greedy_imagenet": Table("Greedy layer-wise training, ImageNet", 46),
    "lecture/hpca_cifar10": Table("Hebbian PCA by label fraction, CIFAR-10", 128),
    "lecture/gim_librispeech": Table("Greedy InfoMax, LibriSpeech", 14),
    "lecture/loco_imagenet_linear": Table("Local contrastive learning, ImageNet linear", 11),
    "lecture/loco_maskrcnn": Table("Local contrastive learning, Mask R-CNN", 52),
    "lecture/psl_imagenet_linear": Table("Progressive stage-wise learning, ImageNet linear", 36),
    "lecture/psl_semisup_imagenet": Table("Progressive stage-wise learning, few labels", 10),
    "lecture/si_branching_reid": Table("Branching by separation index, re-identification", 93),
}

# Numbers that must not be taken as printed: columns that pick them, status, why. The first that fits counts.
REMARKS: tuple[tuple[dict[str, str], str, str], ...] = (
    (
        {"table": "blog/ImageWoof", "model": "SwaV", "setting": "Baseline"},
        "disputed",
        "below chance: collapsed",
    ),
    (
        {"table": "blog/ImageWoof", "model": "SwaV", "setting": "SimCLR"},
        "disputed",
        "at chance: collapsed",
    ),
    ({"table": "blog/NABirds"}, "disputed", "9,907 test images instead of the official 24,633"),
    (
        {"table": "lecture/hpca_cifar10"},
        "corrected",
        "majority reading of a block printed several times, garbled",
    ),
)


def load(source: str) -> pd.DataFrame:
    """Every number of a source ("blog", "thesis", "lecture"), in COLUMNS.

    `printed` keeps the digits of the print; `value` is the number, an accuracy (`unit` "accuracy") as a fraction.
    Raises Problem P-101 (78) for an unknown source, P-102 (70) if the file in the package is not what it should be.
    """
    if source not in SOURCES:
        raise Problem("P-101", Exit.CONFIG, f"no published source '{source}'", fix=did_you_mean(source, SOURCES))
    frame = {"blog": _blog, "thesis": _thesis, "lecture": _lecture}[source](_raw(source))
    frame["table"] = source + "/" + frame["table"]
    remarks = [_remark(row) for row in frame.to_dict("records")]
    frame["status"], frame["note"] = [status for status, _ in remarks], [note for _, note in remarks]
    _validate(source, frame)
    return frame[list(COLUMNS)]


def answers(name: str) -> pd.DataFrame:
    """The numbers a study answers: of one table ("thesis/4.6") or of a whole source ("blog").

    Raises Problem P-101 (78) for an unknown name.
    """
    if name in TABLES:
        frame = load(name.partition("/")[0])
        return frame[frame["table"] == name].reset_index(drop=True)
    if name in SOURCES:
        return load(name)
    raise Problem("P-101", Exit.CONFIG, f"no published table '{name}'", fix=did_you_mean(name, [*SOURCES, *TABLES]))


def costs(name: str) -> pd.DataFrame:
    """What the numbers of a table cost, in COLUMNS, where it was printed: metrics "minutes" and "peak_gb"."""
    if not name.startswith("blog"):
        return pd.DataFrame(columns=COLUMNS)
    raw = _raw("blog")
    rows = raw.melt([key for key in raw if key not in COSTS], list(COSTS), "cost", "paid").query("paid != ''")
    frame = _blog(rows.drop(columns=["metric", "value"]).rename(columns={"cost": "metric", "paid": "value"}))
    frame = frame.assign(table="blog/" + frame["table"], status="as printed", note="", unit=frame["metric"].map(COSTS))
    return frame[(frame["table"] == name) | (name == "blog")][list(COLUMNS)].reset_index(drop=True)


def _raw(source: str) -> pd.DataFrame:
    with files("sandglass.report").joinpath(f"published/{source}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype=str, keep_default_na=False)


def _blog(raw: pd.DataFrame) -> pd.DataFrame:
    frame = raw.rename(columns={"dataset": "data set", "method": "model", "policy": "setting", "value": "printed"})
    return frame.assign(table=raw["dataset"], value=raw["value"].astype(float), unit="accuracy")


def auxiliaries(drloc: float, me: float, ratio: float) -> str:
    """A setting of the thesis by the weights of its two tasks and the share that is masked: "DRLoc 0.1"."""
    words = [f"DRLoc {drloc:g}"] * (drloc > 0) + [f"ME {me:g}, mask {ratio:.2f}"] * (me > 0)
    return " + ".join(words) or "cross-entropy"


def _thesis(raw: pd.DataFrame) -> pd.DataFrame:
    numbers = raw[["lambda_drloc", "lambda_me", "mask_ratio"]].replace("", "nan").astype(float)
    settings = [auxiliaries(*row) for row in numbers.itertuples(index=False)]
    metric = raw["attack"].map({"none": "top1", "fgsm_eps1/255": "robust_top1"})
    frame = raw.rename(columns={"dataset": "data set", "accuracy": "printed"})
    return frame.assign(setting=settings, metric=metric, value=raw["accuracy"].astype(float) / 100, unit="accuracy")


def _lecture(raw: pd.DataFrame) -> pd.DataFrame:
    setting = [", ".join(filter(None, pair)) for pair in zip(raw["group"], raw["setting"])]
    frame = raw.rename(columns={"value": "printed"})
    return frame.assign(
        **{"data set": "", "setting": setting, "value": raw["value"].astype(float), "unit": "as printed"}
    )


def _remark(row: dict[str, Any]) -> tuple[str, str]:
    """Status and note of one number."""
    fits = (rest for picks, *rest in REMARKS if all(row[key] == value for key, value in picks.items()))
    status, note = next(fits, ("as printed", ""))
    return status, note


def _validate(source: str, frame: pd.DataFrame) -> None:
    counts = {name: table.rows for name, table in TABLES.items() if name.startswith(f"{source}/")}
    found = frame["table"].value_counts().to_dict()
    wild = frame[(frame["unit"] == "accuracy") & ~frame["value"].between(0, 1)]
    if found != counts or frame[["value", "metric"]].isna().any(axis=None) or len(wild):
        raise Problem("P-102", Exit.INTERNAL, f"published/{source}.csv is damaged", why=f"rows per table: {found}")
