"""The published table: laid out as printed, ours beside theirs, and every reason not to compare in words."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sandglass.report import published
from sandglass.report.blog import METHODS, POLICIES, answers, beside, csv, tables
from sandglass.report.collect import collect
from sandglass.report.page import write

ASKED = 3


def value(objective: str, views: str, optimisation: str, seed: int) -> float:
    """A number that is another one for every run."""
    return 0.5 + 0.01 * len(objective) + 0.001 * len(views) + 0.05 * (optimisation == "cnn") + 0.004 * seed


def fill(study: Any, table: str, data: str, fallen: tuple[Any, ...] = (), size: int = 224) -> None:
    """Runs of two methods under two policies, both optimisations, three seeds; `fallen` (objective, seed) collapsed."""
    study.about |= {"published": table, "seeds": list(range(ASKED))}
    for objective, views, optimisation, seed in itertools.product(
        ("swav", "vicregl"), ("lorot", "dcl"), ("blog", "cnn"), range(ASKED)
    ):
        settings = {"data": data, "size": size, "backbone": "resnet18", "train": {"epochs": 200, "batch_size": 256}}
        settings |= {"objective": {objective: {"alpha": 0.95} if objective == "vicregl" else {}}}
        columns = {"data set": data, "backbone": "resnet18", "objective": objective, "views": views}
        columns |= {"optimisation": optimisation}
        top1 = value(objective, views, optimisation, seed)
        rows = [
            {"metric": "collapsed", "value": int((objective, seed) in fallen), "split": "train"},
            {"metric": "minutes", "value": 40 + seed, "split": "train"},
            {"metric": "peak_memory_gib", "value": 9.5, "split": "train"},
            {"metric": "online_top1", "value": 0.9, "split": "val", "n": 90},
            {"metric": "online_top1", "value": top1 - 0.1, "split": "test", "n": 500},
            {"metric": "online_top5", "value": 0.95, "split": "test", "n": 500},
        ]
        parent = study.add("pretrain", f"{objective}-{views}-{optimisation}", seed, columns, rows, settings=settings)
        for probe, gain in (("knn", 0.3), ("linear_augmented", 0.0)):
            judged = [
                {"metric": "top1", "value": 0.99, "split": "val", "n": 90},
                {"metric": "top1", "value": top1 + gain, "split": "test", "n": 500},
                {"metric": "top5", "value": 0.97, "split": "test", "n": 500},
            ]
            own = columns | {"probe": probe, "init": "pretrained"}
            study.add("probe", f"{probe}-{objective}-{views}-{optimisation}", seed, own, judged, (parent,))


def rows_of(study: Any) -> pd.DataFrame:
    frame = collect(study.root, [f"{run['stage']}/{run['name']}" for run in study.runs])
    return beside(study.about["published"], study.runs, frame)


def student(values: list[float]) -> str:
    """'71.0 (69.2 – 72.8)', by scipy's own interval."""
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return f"{100 * np.mean(values):.1f} ({100 * low:.1f} – {100 * high:.1f})"


def test_layout_is_that_of_the_print(empty_study: Any) -> None:
    fill(empty_study, "blog/ImageWoof", "imagewoof")
    found = list(tables(rows_of(empty_study), ASKED))
    assert len(found) == 2 and ["blog." in t.caption for t in found] == [True, False]
    for t in found:
        assert t.head == ["method", "Baseline", "SimCLR", "Orthogonality", "LoRot-I", "DCL"]
        assert [row[0] for row in t.rows] == list(dict.fromkeys(published.answers("blog/ImageWoof").model))
        assert set(row[0] for row in t.rows) == set(METHODS) and set(t.head[1:]) == set(POLICIES)


def test_a_cell_has_theirs_and_ours_with_interval_and_n(empty_study: Any) -> None:
    fill(empty_study, "blog/ImageWoof", "imagewoof")
    (_, table) = tables(rows_of(empty_study), ASKED)
    cells = {row[0]: dict(zip(table.head, row)) for row in table.rows}
    ours = [value("swav", "lorot", "cnn", seed) for seed in range(ASKED)]
    printed = published.answers("blog/ImageWoof").query("model == 'SwaV' and setting == 'LoRot-I'").value.iloc[0]
    assert cells["SwaV"]["LoRot-I"].split("\n") == [
        f"theirs {100 * printed:.1f}",
        f"probe {student(ours)}",
        f"online {student([x - 0.1 for x in ours])}",
    ]
    assert cells["VICRegL-a0.75"]["DCL"].endswith("ours n = 0")  # the runs are those of another alpha
    assert cells["SwaV"]["Baseline"].split("\n")[1:] == ["ours n = 0", "below chance: collapsed"]
    assert cells["SwaV"]["Baseline"].startswith("theirs 5.1, disputed\n")


def test_reasons_of_all_cells_are_said_once(empty_study: Any) -> None:
    fill(empty_study, "blog/ImageNette v2-160", "imagenette160", size=128)
    table = next(iter(tables(rows_of(empty_study), ASKED)))
    text = "\n".join(table.notes)
    for words in ("protocol unknown", "no seeds", "both enlarge images of 160 px", "500 test images"):
        assert words in text
    cell = next(row for row in table.rows if row[0] == "SwaV")[table.head.index("DCL")]
    assert "size 128, theirs 224" in cell and "protocol" not in cell


@pytest.mark.parametrize(
    "change, words",
    [
        ({"backbone": "resnet_toy"}, "backbone resnet_toy, theirs resnet18"),
        ({"train": {"epochs": 1, "batch_size": 256}}, "epochs 1, theirs 200"),
        ({"train": {"epochs": 200, "batch_size": 8}}, "batch size 8, theirs 256"),
    ],
)
def test_what_a_run_did_otherwise_is_a_reason(empty_study: Any, change: dict[str, Any], words: str) -> None:
    fill(empty_study, "blog/ImageWoof", "imagewoof")
    for run in empty_study.runs:
        run["settings"] |= change
    rows = rows_of(empty_study)
    assert rows[rows.n > 0]["not comparable"].map(lambda some: words in some).all()


def test_another_data_set_is_a_reason_and_not_silence(empty_study: Any) -> None:
    fill(empty_study, "blog/ImageWoof", "mine")
    rows = rows_of(empty_study)
    assert (rows.n > 0).sum() == 16
    assert rows[rows.n > 0]["not comparable"].map(lambda some: "data set mine, theirs imagewoof" in some).all()


def test_collapsed_seeds_are_told_and_not_averaged_in(empty_study: Any, tmp_path: Path) -> None:
    fill(empty_study, "blog/ImageWoof", "imagewoof", fallen=(("swav", 1), *(("vicregl", s) for s in range(ASKED))))
    table = next(iter(tables(rows_of(empty_study), ASKED)))
    cells = {row[0]: row[table.head.index("DCL")].split("\n") for row in table.rows}
    kept = [value("swav", "dcl", "blog", seed) for seed in (0, 2)]
    assert cells["SwaV"][1:] == [
        f"probe {student(kept)}",
        f"online {student([x - 0.1 for x in kept])}",
        "ours n = 2, 1 collapsed",
    ]
    assert cells["VICRegL-a0.95"][1:] == ["ours n = 0, 3 collapsed"]
    # ... and so in the rest of the page: what stands on a collapsed run is an experiment of its own
    frame = collect(empty_study.root, [f"{run['stage']}/{run['name']}" for run in empty_study.runs])
    judged = frame.query("stage == 'probe' and objective == 'swav'")
    assert set(zip(judged.seed, judged.outcome)) == {(0, ""), (1, "collapsed"), (2, "")}


def test_birds_have_two_columns_for_each_policy(empty_study: Any) -> None:
    fill(empty_study, "blog/NABirds", "nabirds")
    table = next(iter(tables(rows_of(empty_study), ASKED)))
    assert table.head == ["method", "LoRot-I, top1", "LoRot-I, top5", "DCL, top1", "DCL, top5"]
    assert "9,907" in " ".join(table.notes)
    cell = next(row for row in table.rows if row[0] == "SwaV")[2]
    assert "probe 97.0" in cell and "online 95.0" in cell and "disputed" in cell


def test_minutes_and_memory_where_they_were_printed(empty_study: Any) -> None:
    fill(empty_study, "blog/ImageNette", "imagenette_v1")
    found = list(tables(rows_of(empty_study), ASKED))
    assert ["minutes and peak memory" in t.caption for t in found] == [False, True, False, True]
    cost = found[1]
    cell = next(row for row in cost.rows if row[0] == "SwaV")[cost.head.index("DCL")]
    assert cell.split("\n") == ["theirs 61.2 min, 12.7 GB", "ours 41.0 min, 9.5 GiB"]
    assert "no comparison of methods" in " ".join(cost.notes)
    assert len(published.costs("blog/ImageNette")) == 100 and published.costs("blog/ImageWoof").empty
    assert published.costs("blog/ImageNette").query("metric == 'peak_gb'").printed.astype(float).between(6, 15).all()


def test_csv_has_every_cell_and_the_page_has_the_table(empty_study: Any) -> None:
    fill(empty_study, "blog/ImageNette", "imagenette_v1", fallen=(("swav", 0),))
    flat = csv(rows_of(empty_study))
    assert len(flat) == 2 * (50 * 2 + 100)  # optimisations, numbers by two ways to judge them, minutes and memory
    row = flat.query("model == 'SwaV' and setting == 'DCL' and optimisation == 'blog' and evaluation == 'online'").iloc[
        0
    ]
    ours = [value("swav", "dcl", "blog", seed) - 0.1 for seed in (1, 2)]
    assert (row["theirs"], row["n"], row["collapsed"], row["mean"]) == ("0.637", 2, 1, pytest.approx(np.mean(ours)))
    folder = empty_study.root / "report"
    page = write(empty_study.root, empty_study.about, empty_study.runs, folder, {}).read_text()
    assert f"probe {student([x + 0.1 for x in ours])}\n" in page.replace("\u00a0", " ")
    again = pd.read_csv(folder / "beside.csv")
    assert list(again.columns) == list(flat.columns) and len(again) == len(flat)
    assert json.loads((folder / "metrics.json").read_text())


def test_answers_by_the_settings_that_tell_methods_apart() -> None:
    row = {"model": "VICRegL-a0.25", "setting": "DCL"}
    columns = {"objective": "vicregl", "views": "dcl"}
    assert answers(columns, {"objective": {"vicregl": {"alpha": 0.25, "out": 8}}}, row)
    assert not answers(columns, {"objective": {"vicregl": {"alpha": 0.5}}}, row)
    assert not answers(columns | {"views": "lorot"}, {"objective": {"vicregl": {"alpha": 0.25}}}, row)
    assert not answers(columns | {"objective": "vicreg"}, {"objective": {"vicreg": {}}}, row)
