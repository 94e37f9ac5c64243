"""docs/robustness.md is true: its study is planned, its attacks and settings exist, its table is what was printed."""

import re
import textwrap
from pathlib import Path

import pytest

from sandglass.config import load, registers
from sandglass.report import published
from sandglass.study import plan

PAGE = Path(__file__).parents[3] / "docs" / "robustness.md"


def test_its_study_is_planned(tmp_path: Path) -> None:
    (block,) = re.findall(r"^(    studies:\n(?:    .*\n)+)", PAGE.read_text(), re.M)
    (tmp_path / "params.yaml").write_text("study: attacked\n" + textwrap.dedent(block))
    runs = [run for run in plan(load(tmp_path / "params.yaml")) if run.stage == "attack"]
    attacks = [run.columns["attack"] for run in runs]
    assert {name: attacks.count(name) for name in attacks}["fgsm"] == 2 * 2 * 6  # spaces, tasks, seeds
    assert len(runs) == 9 * 2 * 6 and {run.settings["images"] for run in runs} == {1000}
    told = {name for name in re.findall(r"--study (\w+)|study=(\w+)", PAGE.read_text()) for name in name if name}
    assert told == {"attacked"}


def test_its_table_of_attacks_has_them_all() -> None:
    register = registers()["attacks"]
    (table,) = re.findall(r"\| attack \|.*?\n\n", PAGE.read_text(), re.S)
    named = {name for row in table.strip().splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(register.rows)
    assert {"sound", "long", "thesis"} <= set(register.presets("pgd")) and "thesis" in register.presets("fgsm")


@pytest.mark.parametrize("backbone", ["ResNet", "ViT", "T2T", "CvT"])
def test_its_winners_are_those_of_the_printed_table(backbone: str) -> None:
    rows = published.answers("thesis/4.6")
    rows = rows[rows["model"] == backbone]
    accuracy = {metric: some.set_index("setting")["value"] * 100 for metric, some in rows.groupby("metric")}
    clean, robust = accuracy["top1"], accuracy["robust_top1"]
    assert len(clean) == len(robust) == 4
    names = {"cross-entropy": "none", "DRLoc 0.1": "DRLoc"}
    told = []
    for found, digits in ((robust - clean, 2), (robust, 2), (100 * robust / clean, 1)):
        best = found.idxmax()
        name = names.get(best, "both" if "DRLoc" in best else "ME")
        told.append(f"{name}, {found[best]:.{digits}f}".replace("-", "−"))
    (line,) = re.findall(rf"^\| {backbone} \| (.*) \|$", PAGE.read_text(), re.M)
    assert line.split(" | ") == told
