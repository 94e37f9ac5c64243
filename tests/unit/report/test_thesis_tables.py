"""The six tables of the thesis: laid out as printed, ours beside theirs, what so few runs cannot decide in words."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sandglass.report import published
from sandglass.report.collect import collect
from sandglass.report.page import write
from sandglass.report.thesis import MODELS, beside, csv, tables

SEEDS = 5
LOSSES = {  # words of a setting -> the tasks' own settings
    "cross-entropy": {},
    "DRLoc 0.1": {"drloc": {"weight": 0.1}},
    "DRLoc 0.2": {"drloc": {"weight": 0.2}},
    "ME 0.1, mask 0.75": {"masked_embedding": {"weight": 0.1, "ratio": 0.75}},
}
TRAIN = {"epochs": 100, "batch_size": 128, "optimizer": "adam", "lr_per_256": 2e-4}
READINGS = [("pixel", False), ("normalised", True)]


def top1(setting: str, seed: int) -> float:
    """DRLoc 0.2 is best on the test images, DRLoc 0.1 on those of validation."""
    gain = {"cross-entropy": 0.0, "DRLoc 0.1": 0.04, "DRLoc 0.2": 0.05, "ME 0.1, mask 0.75": 0.001}[setting]
    return 0.78 + gain + 0.002 * seed


def fill(study: Any, seeds: int = SEEDS, attacked: bool = True, validated: bool = True, **changes: Any) -> None:
    """A ResNet on CIFAR-10 with four losses, under two readings of FGSM."""
    study.about |= {"published": "thesis", "seeds": list(range(seeds))}
    packed = study.add("data", "cifar10", None, {"data set": "cifar10"}, [], settings={"data": "cifar10"})
    for (setting, tasks), seed in itertools.product(LOSSES.items(), range(seeds)):
        columns = {"data set": "cifar10", "backbone": "resnet312", "init": "scratch", "optimisation": "thesis"}
        columns |= {"auxiliary": "+".join(tasks) or "none"}
        settings = {"data": "cifar10", "size": 32, "backbone": "resnet312", "arguments": {}, "init": "scratch"}
        settings |= {"auxiliary": tasks, "split": "trainval", "train": TRAIN} | changes
        rows = [{"metric": "top1", "value": top1(setting, seed), "split": "test", "n": 10_000}]
        if validated:
            best = 0.9 if setting == "DRLoc 0.1" else 0.8
            rows.append({"metric": "top1", "value": best, "split": "val", "n": 5_000})
        run = study.add("finetune", setting.replace(" ", "_"), seed, columns, rows, (packed,), settings)
        for space, clip in READINGS if attacked and setting != "DRLoc 0.2" else []:
            fgsm = {"epsilons": [0.0, 1.0, 8.0], "space": space, "clip": clip}
            shared = {"split": "test", "n": 10_000, "metric": "robust_top1"}
            left = {0.0: top1(setting, seed), 1.0: 0.5 if space == "pixel" else 0.7, 8.0: 0.01}
            found = [shared | {"epsilon": epsilon, "value": value} for epsilon, value in left.items()]
            own = columns | {"attack": "fgsm"}
            study.add("attack", f"fgsm-{space}", seed, own, found, (packed, run), {"attack": {"fgsm": fgsm}})


def rows_of(study: Any) -> pd.DataFrame:
    frame = collect(study.root, [f"{run['stage']}/{run['name']}" for run in study.runs])
    return beside(study.about["published"], study.runs, frame)


def cells_of(study: Any, caption: str) -> dict[str, dict[str, list[str]]]:
    """(data set, model) -> column -> lines, of the one table whose caption has these words."""
    (table,) = [t for t in tables(rows_of(study), SEEDS) if caption in t.caption]
    return {(row[0], row[1]): {h: cell.split("\n") for h, cell in zip(table.head, row)} for row in table.rows}


def test_the_print_is_laid_out_whole(empty_study: Any) -> None:
    fill(empty_study)
    found = list(tables(rows_of(empty_study), SEEDS))
    assert [t.caption.split(",")[0] for t in found] == [f"Table 4.{n}" for n in (1, 2, 3, 4, 5, 6, 6)]
    text = "\n".join(cell for t in found for row in t.rows for cell in row)
    for row in published.answers("thesis").to_dict("records"):
        assert f"theirs {row['printed']}" in text
    for t in found:
        assert {row[1] for row in t.rows} == set(MODELS.values())


def test_a_cell_has_theirs_ours_with_interval_and_the_exact_test(empty_study: Any) -> None:
    fill(empty_study)
    cell = cells_of(empty_study, "Table 4.1")["CIFAR-10", "ResNet"]
    ours = [top1("DRLoc 0.1", seed) for seed in range(SEEDS)]
    low, high = stats.t.interval(0.95, SEEDS - 1, np.mean(ours), stats.sem(ours))
    both = stats.permutation_test(
        (ours, [top1("cross-entropy", seed) for seed in range(SEEDS)]),
        lambda a, b: abs(np.mean(a) - np.mean(b)),
        n_resamples=np.inf,
        alternative="greater",
    )
    assert cell["DRLoc 0.1"] == [
        "theirs 82.90 (+4.2)",
        f"ours {100 * np.mean(ours):.1f} ± {100 * np.std(ours, ddof=1):.1f} ({100 * low:.1f} – {100 * high:.1f})",
        f"+4.0, p = {both.pvalue:.1g}, Holm 0.02",  # two comparisons in this table
    ]
    assert cell["cross-entropy"][0] == "theirs 78.65" and len(cell["cross-entropy"]) == 2
    assert cell["DRLoc 0.025"][-1] == "ours n = 0"


def test_what_collapsed_is_in_no_mean_and_counted(empty_study: Any) -> None:
    fill(empty_study)
    for seed in range(2):
        fallen = next(r for r in empty_study.runs if r["name"].startswith("DRLoc_0.1") and r["seed"] == seed)
        file = empty_study.folder(f"finetune/{fallen['name']}") / "result.json"
        result = json.loads(file.read_text())
        result["rows"] += [{"metric": "collapsed", "value": 1, "split": "train"}]
        file.write_text(json.dumps(result))
    cell = cells_of(empty_study, "Table 4.1")["CIFAR-10", "ResNet"]["DRLoc 0.1"]
    ours = [top1("DRLoc 0.1", seed) for seed in range(2, SEEDS)]
    assert cell[1].startswith(f"ours {100 * np.mean(ours):.1f} ± ") and cell[-1] == "ours n = 3, 2 collapsed"


def test_what_their_test_images_leave_open_is_marked(empty_study: Any) -> None:
    fill(empty_study)
    cells = cells_of(empty_study, "Table 4.1")
    assert cells["CIFAR-10", "ViT"]["DRLoc 0.05"][0].endswith("?)")  # 62.45 -> 61.81
    assert cells["CIFAR-100", "ResNet"]["DRLoc 0.05"][0] == "theirs 36.72 (+1.6)"  # beyond 1.3 points


def test_the_best_weight_is_chosen_by_validation_images(empty_study: Any) -> None:
    fill(empty_study)
    best = cells_of(empty_study, "chosen by the mean accuracy on validation images")["CIFAR-10", "ResNet"]["DRLoc"]
    assert best[:2] == ["theirs 82.90: DRLoc 0.1", "DRLoc 0.1"]


def test_without_them_by_the_test_images_and_it_is_said(empty_study: Any) -> None:
    fill(empty_study, validated=False)
    best = cells_of(empty_study, "by the test images themselves")["CIFAR-10", "ResNet"]["DRLoc"]
    assert best[1] == "DRLoc 0.2"


def test_each_reading_of_the_attack_is_a_table(empty_study: Any) -> None:
    fill(empty_study)
    for words, accuracy in (("pixel units, not clipped", 50), ("normalised units, clipped", 70)):
        cell = cells_of(empty_study, words)["CIFAR-10", "ResNet"]
        assert cell["DRLoc, FGSM"][:2] == [
            "theirs 61.04 (+10.1)",
            f"ours {accuracy}.0 ± 0.0 ({accuracy}.0 – {accuracy}.0)",
        ]
        assert cell["DRLoc, clean"][1].startswith("ours 82.4 ")


@pytest.mark.parametrize(
    "seeds, words",
    [(3, "cannot be significant with n = 3"), (5, "cannot be significant"), (1, "One seed")],
)
def test_what_so_few_seeds_cannot_decide_is_said(empty_study: Any, seeds: int, words: str) -> None:
    fill(empty_study, seeds=seeds)
    text = "\n".join(note for t in tables(rows_of(empty_study), seeds) for note in t.notes)
    assert (words in text) == (seeds != 5)  # of two comparisons 5 against 5 seeds can decide


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"arguments": {"depth": 2}}, "resnet312 with depth 2"),
        ({"train": TRAIN | {"epochs": 20}}, "epochs 20, theirs 100"),
        ({"train": TRAIN | {"optimizer": "sgd"}}, "optimiser Sgd, 0.0001, theirs Adam, 1e-4"),
        ({"split": "train"}, "ours holds validation images out"),
    ],
)
def test_what_ours_did_otherwise_is_a_reason(empty_study: Any, changes: dict[str, Any], words: str) -> None:
    fill(empty_study, attacked=False, **changes)
    rows = rows_of(empty_study)
    assert rows[rows.n > 0]["not comparable"].map(lambda some: some == [words]).all()
    assert words in "\n".join(next(iter(tables(rows, SEEDS))).notes)


def test_a_reason_is_told_once_where_it_holds_and_in_a_cell_only_if_it_is_the_cells_own(empty_study: Any) -> None:
    fill(empty_study, attacked=False, arguments={"depth": 2})
    for run in empty_study.runs:
        if run["stage"] == "finetune":
            other = run["name"].startswith("DRLoc_0.1")
            run["settings"] = run["settings"] | {"train": TRAIN | {"epochs": 20 if other else 100}}
    frame = rows_of(empty_study)
    twin = frame[frame["model"] == "ResNet"].assign(model="ViT")
    twin["not comparable"] = [["vit312 with depth 9"]] * len(twin)
    both = pd.concat([frame[frame["model"] != "ViT"], twin], ignore_index=True)
    table = next(t for t in tables(both, SEEDS) if "Table 4.1" in t.caption)
    assert (
        "Ours of ResNet: resnet312 with depth 2." in table.notes and "Ours of ViT: vit312 with depth 9." in table.notes
    )
    cells = {(row[1], head): cell for row in table.rows if row[0] == "CIFAR-10" for head, cell in zip(table.head, row)}
    assert "epochs 20, theirs 100" in cells["ResNet", "DRLoc 0.1"] and "with depth" not in "".join(cells.values())
    assert "epochs" not in cells["ResNet", "DRLoc 0.2"] and "epochs" not in "\n".join(table.notes)


def test_as_printed_there_is_no_reason_of_ours(empty_study: Any) -> None:
    fill(empty_study)
    rows = rows_of(empty_study)
    assert (rows.n > 0).sum() == 21 and rows["not comparable"].map(len).sum() == 0


def test_csv_and_page(empty_study: Any, tmp_path: Path) -> None:
    fill(empty_study)
    flat = csv(rows_of(empty_study))
    one = flat[(flat.table == "thesis/4.1") & (flat.setting == "DRLoc 0.1") & (flat.model == "ResNet") & (flat.n > 0)]
    assert one["change"].item() == pytest.approx(0.04) and one["holm"].item() == pytest.approx(2 * one["p"].item())
    path = write(empty_study.root, empty_study.about, empty_study.runs, tmp_path / "page", {})
    text = path.read_text()
    assert "Table 4.6" in text and "theirs 82.90" in text
    assert len(pd.read_csv(tmp_path / "page" / "beside.csv")) == len(flat)
