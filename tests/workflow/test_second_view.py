"""`snakemake --report` shows every run in the table of its stage, with captions, and needs no network.

The page of the study is in it, though no run of the workflow has it as an output: all settings of a study share it.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from sandglass import stages
from sandglass.config import load
from sandglass.study import Run, plan

from .conftest import BIN

STUDY = """\
study: seen
engine: {device: cpu}
report: {title: As it was}
studies:
  seen:
    about: Is a *second* view of any use?
    data: digits
    size: 32
    backbone: toy
    seeds: [0]
    pretrain: {objective: byol, epochs: 1, batch_size: 512, warmup_epochs: 0}
    probe: {probe: knn, init: [pretrained, random]}
    finetune: {labels: 0.1, views: plain, epochs: 1, batch_size: 32, warmup_epochs: 0}
    attack: {attack: fgsm, images: 16}
    objectives: {byol: {hidden: 32, out: 16}}
    attacks: {fgsm: {epsilons: [0.0, 1.0]}}
"""
CATEGORIES = {
    "data": "Data",
    "pretrain": "Pretraining",
    "probe": "Probes",
    "finetune": "Finetuning",
    "attack": "Attacks",
    "report": "Report",
}


def snakemake(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "SANDGLASS_TRACKING": "off"}
    env |= {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}  # where nobody answers
    return subprocess.run(["snakemake", *words], cwd=place, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, repo: Path) -> Path:
    """The study, built without Snakemake."""
    folder = tmp_path_factory.mktemp("seen")
    for name in ("Snakefile", "workflow", "profiles", "slurm", "envs"):
        (folder / name).symlink_to(repo / name)
    (folder / "params.yaml").write_text(STUDY)
    torch.set_num_threads(1)  # small steps, and the machine may be busy
    params = load(folder / "params.yaml")
    for run in plan(params):
        stages.execute(run, params, params.study, folder, say=lambda text: None)
    return folder


def runs(place: Path) -> list[Run]:
    return plan(load(place / "params.yaml"))


@pytest.fixture(scope="module")
def view(place: Path) -> str:
    done = snakemake(place, "--report", "view.html")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "downloading" not in done.stderr
    return (place / "view.html").read_text()


def table(view: str, name: str) -> dict:
    """One of the tables that the view's script is given."""
    return json.JSONDecoder().raw_decode(view, re.search(rf"var {name} = (?=\{{)", view).end())[0]


def test_every_run_and_the_page_are_in_the_category_of_their_stage(view: str, place: Path) -> None:
    given = table(view, "categories").items()
    found = {category: [path for some in rows.values() for path in some] for category, rows in given}
    wanted: dict[str, list[str]] = {}
    for run in runs(place):
        file = run.folder / "index.html" if run.stage == "report" else run.result
        wanted.setdefault(CATEGORIES[run.stage], []).append(f"results/{file}")
    assert {name: sorted(paths) for name, paths in found.items()} == {name: sorted(p) for name, p in wanted.items()}


def test_columns_tell_runs_apart_and_say_what_was_measured(view: str, place: Path) -> None:
    results = table(view, "results")
    for run in runs(place):
        if run.stage in ("probe", "finetune"):
            labels = results[f"results/{run.result}"]["labels"]
            assert labels["backbone"] == "toy" and labels["seed"] == "0" and labels["init"] == run.columns["init"]
            rows = json.loads((place / "results" / run.result).read_text())["rows"]
            (top1,) = [row["value"] for row in rows if (row["metric"], row["split"]) == ("top1", "test")]
            assert labels["test accuracy, %"] == f"{100 * top1:.1f}"


def test_captions_say_what_a_file_is_and_the_first_page_where_to_begin(view: str, place: Path) -> None:
    results = table(view, "results")
    captions = {path: re.sub("<.*?>", "", row["caption"]) for path, row in results.items()}
    assert all(len(text.split()) > 10 for text in captions.values())
    assert "Is a second view of any use?" in captions["results/report/seen/index.html"]
    (attack,) = [text for path, text in captions.items() if "/attack/" in path]
    assert "1/255" in attack
    assert "app.showCategory('Report')" in view and "is where to begin" in view


def test_nothing_in_it_is_fetched(view: str) -> None:
    """Its script and style are inside; results open from data addresses."""
    markup = re.sub(r"<(script|style)\b.*?</\1>", "", view, flags=re.S)
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"']?(?:https?:)?//", view)
    assert "http" not in markup
    assert all(row["data_uri"].startswith("data:") for row in table(view, "results").values())


def test_a_report_that_fails_leaves_the_page_that_was_there(place: Path, view: str) -> None:
    page = place / "results" / "report" / "seen" / "index.html"
    before = page.read_bytes()
    assert "Nothing to be done" in snakemake(place, "-n").stdout
    (examples,) = place.glob("results/attack/*/examples.npz")
    whole = examples.read_bytes()
    try:
        examples.write_bytes(bytes(len(whole)))
        (place / "params.yaml").write_text(STUDY.replace("As it was", "Never seen"))
        done = snakemake(place, "--cores", "1")
        assert done.returncode != 0 and "examples.npz cannot be read" in done.stdout + done.stderr
        assert page.read_bytes() == before
    finally:
        examples.write_bytes(whole)
        (place / "params.yaml").write_text(STUDY)
    assert "Nothing to be done" in snakemake(place, "-n").stdout
