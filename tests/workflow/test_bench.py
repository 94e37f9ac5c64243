"""`sandglass bench` as a person types it: what it writes, says and returns. Small: what is not asserted is no claim."""

import csv

import pytest

from sandglass.bench import commands


def rows(folder, name):
    with (folder / "results" / "bench" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_quick_form_notices_a_lost_optimisation(tmp_path, command):
    """Four fifths of the target: far above what views made one by one would leave (a third), far below noise."""
    for _ in range(3):
        done = command(tmp_path, "sandglass", "bench", "speed", "--quick", "--clock", "cpu", check=False)
        if done.returncode != 75:  # rounds that disagree give no verdict
            break
    assert done.returncode in (0, 75), done.stdout + done.stderr
    found = {row["feed"]: row for row in rows(tmp_path, "speed")}
    times = {}
    for row in rows(tmp_path, "rounds"):
        times.setdefault(row["feed"], []).append(float(row["ms_per_image"]))
    ratios = sorted(a / b for a, b in zip(times["memory"], times["ours"], strict=True))
    assert len(ratios) == 3 and set(found) == set(times)
    if done.returncode == 0:
        assert "met: tiny32: fraction of the ceiling" in done.stdout
        assert float(found["ours"]["fraction_median"]) == pytest.approx(ratios[1]) and ratios[1] >= 0.68
    else:
        assert "not judged" in done.stdout and found["ours"]["fraction_median"] == ""


def test_start(tmp_path, command):
    command(tmp_path, "sandglass", "bench", "start", "--repeats", "1")
    found = {row["part"]: float(row["cpu_s"]) for row in rows(tmp_path, "start")}
    named = sum(seconds for part, seconds in found.items() if part != "whole")
    assert found["import torch"] > found["open the data"] > 0 and found["first views"] > 0
    assert "import torch._dynamo" not in found, "a compiler, which nothing here uses"
    assert 0.5 < named / found["whole"] < 1.5  # of another start of the same job


def test_growth(tmp_path):
    folder = tmp_path / "results" / "bench"
    assert commands.growth(folder, (1, 2), 0.1) == 0
    found = {(row["step"], row["times"]): row for row in rows(tmp_path, "growth")}
    for step, counts in {"pack": (100, 200), "train": (1, 2), "publish to MLflow": (1, 2)}.items():
        assert tuple(int(found[step, times]["count"]) for times in "12") == counts
    for step in ("pack", "plan", "train", "publish to MLflow"):
        one, two = found[step, "1"], found[step, "2"]
        assert float(two["bytes"]) >= float(one["bytes"]) > 0 and float(one["cpu_s"]) > 0.1
        assert 20 < float(one["peak_mib"]) < 4000
    memory = {step: float(found[step, "1"]["peak_mib"]) for step in ("pack", "plan", "train")}
    assert 4 * max(memory["pack"], memory["plan"]) < memory["train"], (
        "each of its own process: two of them need no torch"
    )
    page = (folder / "index.html").read_text()
    assert 'id="growth"' in page and page.count("<svg") == 3
