"""docs/your-own-images.md is true: its diffs apply, its commands run as they stand, and what it says they print, they
print. The pictures are real ones of Imagenette in plain folders, two of them broken as the page says."""

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from .conftest import BIN

CLASSES = {"church": "n03028079", "parachute": "n03888257", "tench": "n01440764"}
ACTIVATE = ". .venv/bin/activate"  # here the environment is that of the tests


def photos(folder: Path, archive: Path) -> None:
    """30 pictures of each class and 40 unsorted ones; one is cut off, one is a web page."""
    with tarfile.open(archive) as tar:
        members = sorted((member for member in tar if member.isfile()), key=lambda member: member.name)
        for name, number, count in [*((*row, 30) for row in CLASSES.items()), ("unlabelled", "n03445777", 40)]:
            (folder / name).mkdir(parents=True)
            some = [member for member in members if f"/train/{number}/" in member.name][:count]
            for i, member in enumerate(some):
                (folder / name / f"{i:04}.jpg").write_bytes(tar.extractfile(member).read())
    whole = (folder / "church" / "0003.jpg").read_bytes()
    (folder / "church" / "0003.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "unlabelled" / "0007.jpg").write_text("<!doctype html><html><body>Not found</body></html>")


@pytest.fixture(scope="module")
def walked(repo: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """The page from top to bottom: the folder it was walked in, and [command, what it printed] in order."""
    place = tmp_path_factory.mktemp("walk") / "place"
    place.mkdir()
    photos(place.parent / "photos", shared_data / "imagenette" / "imagenette2-224sq-subset.tgz")
    for name in ("Snakefile", "workflow", "profiles", "slurm", "envs"):
        (place / name).symlink_to(repo / name)
    shutil.copy(repo / "params.yaml", place)
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "SANDGLASS_TRACKING": "off"}
    text = (repo / "docs" / "your-own-images.md").read_text()
    ran: list[list[str]] = []
    for kind, fenced, commands in re.findall(r"```(\w+)\n(.*?)```|^((?:    [^\n]+\n)+)", text, re.S | re.M):
        if kind == "diff":
            subprocess.run(["git", "apply", "-"], cwd=place, input=fenced, text=True, check=True)
        for command in re.findall(r"^    (.*?)(?: +# .*)?$", commands, re.M):
            if command != ACTIVATE:
                done = subprocess.run(["bash", "-c", command], cwd=place, env=env, capture_output=True, text=True)
                fails = command.startswith("sandglass data inspect")
                assert done.returncode == (65 if fails else 0), f"{command}\n{done.stdout}{done.stderr}"
                ran.append([command, done.stdout + done.stderr])
    return place, ran


def test_what_is_in_the_folder_is_said_as_the_page_says_it(walked, repo):
    _, ran = walked
    (screen,) = re.findall(r"```text\n(\.\./photos: .*?)```", (repo / "docs" / "your-own-images.md").read_text(), re.S)
    seen = next(text for command, text in ran if command.startswith("sandglass data inspect"))
    assert seen.startswith(screen) and "data: {sets: {photos: {format: folder, source: ../photos}}}" in seen


def test_the_rest_is_packed_trained_on_and_reported(walked, repo):
    place, ran = walked
    packed = next(text for command, text in ran if command == "sandglass data")
    assert "photos: 65 train, 18 test, 39 unlabelled, 6 val; test is 20% of each class" in packed
    assert "65 train, 18 test, 39 unlabelled, 6 val" in (repo / "docs" / "your-own-images.md").read_text()
    assert next(text for command, text in ran if command == "sandglass status").count("done") == 4
    report = (place / "results" / "report" / "photos" / "index.html").read_text()
    assert "unlabelled 39" in report and "3 seeds" in report and "church" in report
    card = (place.parent / "photos-model" / "README.md").read_text()
    assert "65 train" in card and "Wilson" in card
    assert len(list((place.parent / "photos").rglob("*.jpg"))) == 128, "nothing but what was set aside has gone"


def test_pictures_without_labels_reach_a_report_too(walked):
    place, _ = walked
    report = (place / "results" / "report" / "heap" / "index.html").read_text()
    assert "unlabelled 128" in report and "train 65" not in report
    assert list(place.glob("results/pretrain/heap-*/model.safetensors"))
