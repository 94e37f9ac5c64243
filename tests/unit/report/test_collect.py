"""What lies in run folders arrives in the table, unpooled and unchanged; what is damaged is named."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sandglass.errors import Problem
from sandglass.report.collect import FIRST, IDENTITY, LAST, arrays, collect, history, missing, write_csv

COLUMNS = {"data set": "digits", "backbone": "b", "init": "scratch", "labels": 0.1, "auxiliary": "none"}


def keys(study: Any) -> list[str]:
    return [f"{run['stage']}/{run['name']}" for run in study.runs]


def test_columns_and_every_number(study: Any) -> None:
    frame = collect(study.root, keys(study))
    assert list(frame.columns) == [*FIRST, *LAST]
    written = [json.loads((study.folder(key) / "result.json").read_text()) for key in keys(study)]
    rows = [row for result in written for row in result["rows"]]
    told = sum(
        all(row["metric"] != "minutes" for row in result["rows"]) for result in written
    )  # minutes beside the rows
    assert len(frame) == len(rows) + told
    assert frame.value.sum() == pytest.approx(sum(row["value"] for row in rows) + 0.2 * told)
    drops = frame[(frame.stage == "attack") & (frame.metric == "drop") & (frame.epsilon == 8)]
    assert len(drops) == 24 and set(drops["label fraction"]) == {0.1} and set(drops.seed) == {0, 1, 2}


def test_seeds_of_one_experiment_and_nothing_else_are_grouped(study: Any) -> None:
    frame = collect(study.root, keys(study))
    groups = frame.groupby([*IDENTITY, "epsilon", "metric", "split"], dropna=False)
    sizes = groups.size()[lambda n: n.index.get_level_values("stage") != "data"]
    assert set(sizes) == {3}
    assert (groups.seed.nunique() <= 3).all()


def test_a_sweep_without_a_column_is_spelled_out(empty_study: Any) -> None:
    for weight in (0.1, 0.5):
        for seed in (0, 1):
            rows = [{"metric": "top1", "value": weight}]
            settings = {"size": 32, "auxiliary": {"drloc": {"weight": weight, "pairs": 32}}}
            model = empty_study.add("finetune", "m", seed, COLUMNS | {"auxiliary": "drloc"}, rows, settings=settings)
            attack = {"attack": {"fgsm": {"epsilons": [1.0]}}, "size": 32}
            empty_study.add(
                "attack", "a", seed, COLUMNS | {"auxiliary": "drloc", "attack": "fgsm"}, rows, (model,), attack
            )
    empty_study.add("finetune", "m", 0, COLUMNS, [{"metric": "top1", "value": 0.0}])
    frame = collect(empty_study.root, keys(empty_study)).query("metric == 'top1'")
    assert set(zip(frame.stage, frame.value, frame.setting)) == {
        ("finetune", 0.1, "drloc weight 0.1"),
        ("finetune", 0.5, "drloc weight 0.5"),
        ("attack", 0.1, "finetune drloc weight 0.1"),
        ("attack", 0.5, "finetune drloc weight 0.5"),
        ("finetune", 0.0, ""),
    }


def test_other_words_of_a_row_keep_rows_apart(empty_study: Any) -> None:
    rows = [
        {"metric": "separation", "value": v, "layer": v, "seconds": 0.1 * v, "seed": 7, "stage": "x"} for v in (1, 2)
    ]
    key = empty_study.add("probe", "p", 0, COLUMNS | {"probe": "separation"}, rows)
    frame = collect(empty_study.root, [key]).query("metric == 'separation'")
    assert list(frame.stage) == ["probe"] * 2 and list(frame.seed) == [0, 0]
    assert ["layer 1" in text for text in frame.setting] == [True, False]


def test_a_missing_result_is_listed(empty_study: Any) -> None:
    here = empty_study.add("probe", "p", 0, COLUMNS, [{"metric": "top1", "value": None}])
    gone = empty_study.add("probe", "p", 1, COLUMNS, [{"metric": "top1", "value": 0.5}])
    empty_study.remove_result(gone)
    frame = collect(empty_study.root, [here, gone, "probe/never"])
    assert missing(empty_study.root, [here, gone, "probe/never"]) == [gone, "probe/never"]
    assert len(frame.query("metric == 'top1'")) == 1 and frame.value.isna().any()
    assert list(collect(empty_study.root, ["probe/never"]).columns) == [*FIRST, *LAST]


@pytest.mark.parametrize(
    "text, id",
    [
        ("{", "R-101"),
        ("[]", "R-111"),
        ("{}", "R-111"),
        ('{"rows": 3}', "R-111"),
        ('{"rows": [3]}', "R-111"),
        ('{"rows": [{"value": 1}]}', "R-111"),
        ('{"rows": [{"metric": "top1"}]}', "R-111"),
        ('{"rows": [{"metric": "top1", "value": "0.9"}]}', "R-111"),
        ('{"rows": [{"metric": "top1", "value": true}]}', "R-111"),
        ('{"rows": [{"metric": "top1", "value": Infinity}]}', "R-111"),
        ('{"rows": [{"metric": "top1", "value": 0.9, "epsilon": "1/255"}]}', "R-111"),
    ],
)
def test_a_malformed_result_is_a_problem(empty_study: Any, text: str, id: str) -> None:
    key = empty_study.add("probe", "p", 0, COLUMNS, [])
    (empty_study.folder(key) / "result.json").write_text(text)
    with pytest.raises(Problem) as problem:
        collect(empty_study.root, [key])
    assert problem.value.id == id and key.partition("/")[2] in problem.value.screen()


def test_csv_is_safe_in_a_spreadsheet_and_keeps_its_numbers(tmp_path: Path, study: Any) -> None:
    frame = collect(study.root, keys(study))
    write_csv(frame, tmp_path / "plain.csv")
    again = pd.read_csv(tmp_path / "plain.csv")
    np.testing.assert_array_equal(again.value, frame.value)  # to the last bit

    hostile = ["=cmd()", "+1", "-2", "@SUM(A1)", "\t=1", '"=1"', "a,b", 'say "x"', "line\nbreak"]
    odd = frame.head(len(hostile)).copy()
    odd["data set"], odd["value"] = hostile, -1.5
    write_csv(odd, tmp_path / "odd.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "odd.csv").read_text())))
    assert [row["data set"] for row in rows] == ["'=cmd()", "'+1", "'-2", "'@SUM(A1)", "'\t=1", *hostile[5:]]
    assert {row["value"] for row in rows} == {"-1.5"}


def test_history_and_arrays(study: Any, tmp_path: Path) -> None:
    folder = study.folder(study.keys("pretrain")[0])
    table = history(folder)
    assert list(table.step) == list(range(0, 301, 10)) and {"loss", "knn_top1"} < set(table.columns)
    assert arrays(folder / "views.npz")["original"].shape == (8, 3, 32, 32)
    assert history(tmp_path).empty and arrays(tmp_path / "none.npz") == {}
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step"\n')
    (tmp_path / "torn.npz").write_bytes((folder / "views.npz").read_bytes()[:100])
    np.savez(tmp_path / "pickle.npz", a=np.array([object()]))
    for id, read in (
        ("R-112", lambda: history(tmp_path)),
        ("R-116", lambda: arrays(tmp_path / "torn.npz")),
        ("R-116", lambda: arrays(tmp_path / "pickle.npz")),
    ):
        with pytest.raises(Problem) as problem:
            read()
        assert problem.value.id == id
