"""The commands as they are parsed, in this process: what `main` calls, and what it makes the exit code of."""

import json
import sys

import pytest

from sandglass import cli
from sandglass.errors import Exit

TOY = """\
study: toy
engine: {device: cpu}
studies:
  toy: {data: digits, size: 32, backbone: toy, seeds: [0], probe: {probe: knn, init: random}}
"""


@pytest.fixture
def sandglass(tmp_path, monkeypatch, capsys):
    """sandglass("plan", ...) -> exit code, standard output, standard error; in a folder with a small study."""
    (tmp_path / "params.yaml").write_text(TOY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SANDGLASS_TRACKING", "off")

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["sandglass", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (ended.value.code, *capsys.readouterr())

    return call


def test_data_packs_by_its_bare_name_and_inspects_by_another(sandglass, tmp_path):
    code, out, _ = sandglass("plan", "--json")
    name = json.loads(out)[0]["run"]
    assert code == 0
    code, out, _ = sandglass("data", name, "--params", "params.yaml")
    assert code == 0 and out.splitlines()[-1] == f"data/{name}: done"
    for words in (("data",), ("data", "--study", "toy"), ("data", "pack", name)):
        code, out, _ = sandglass(*words)
        assert (code, out) == (0, f"data/{name}: done already\n"), words
    code, _, err = sandglass("data", "inspct")
    assert code == Exit.CONFIG and "C-130" in err, "a word that is neither is taken for a run, and named"


def test_inspecting_ends_with_the_code_with_which_packing_would(sandglass, tmp_path):
    (tmp_path / "empty").mkdir()
    code, out, _ = sandglass("data", "inspect", "empty")
    assert code == Exit.CONTENT and "error D-107 (exit 65)" in out
    code, out, _ = sandglass("data", "inspect", "empty", "--json")
    assert code == Exit.CONTENT and json.loads(out)["packing"]["refused"]["id"] == "D-107"
    assert sandglass("data", "inspect", "absent")[0] == Exit.MISSING
    assert sandglass("data", "inspect")[0] == Exit.USAGE


def test_the_plan_guesses_nothing_then_says_what_is_left(sandglass):
    assert "left: unknown: no run like these is finished" in sandglass("plan")[1]
    assert sandglass("data")[0] == sandglass("probe")[0] == 0
    rows = {row["stage"]: row for row in json.loads(sandglass("plan", "--json")[1])}
    assert rows["probe"]["done"] and rows["probe"]["cost"] is None
    code, out, _ = sandglass("plan")
    assert code == 0 and "left" not in out, "the report alone is to be made, which costs next to nothing"


def test_status_and_watch_tell_the_same(sandglass):
    sandglass("data")
    lines = sandglass("status")[1]
    assert [line.split(maxsplit=1) for line in lines.splitlines()] == [
        ["data", "1 done"],
        ["probe", "1 waiting"],
        ["report", "1 waiting"],
    ]
    assert json.loads(sandglass("status", "--json")[1])[0]["status"] == "done"


def test_plan_measures_trainings_when_asked(sandglass, tmp_path):
    byol = "pretrain: {objective: byol, epochs: 2, batch_size: 64, warmup_epochs: 0}"
    study = f"{{data: digits, size: 32, backbone: toy, seeds: [0], {byol}}}"
    (tmp_path / "params.yaml").write_text(f"study: toy\nengine: {{device: cpu}}\nstudies: {{toy: {study}}}\n")
    code, _, err = sandglass("plan", "--measure")
    assert code == Exit.MISSING and "sandglass data" in err
    assert sandglass("data")[0] == 0
    code, out, err = sandglass("plan", "--measure", "--json")
    cost = next(row["cost"] for row in json.loads(out) if row["stage"] == "pretrain")
    assert code == 0 and cost["minutes"] > 0 and cost["runs"] == 0 and "measuring pretrain/" in err
    assert not (tmp_path / "results/pretrain").exists() and not (tmp_path / "state/pretrain").exists()
