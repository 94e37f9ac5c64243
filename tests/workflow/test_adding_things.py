"""docs/adding-things.md is true: its diffs apply, and what they add is listed, planned and run."""

import os
import re
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

STUDY = """\
study: added
engine: {device: cpu}
studies:
  added:
    data: shapes
    size: 32
    backbone: convnext_small32
    seeds: [0]
    pretrain: {objective: alignment_uniformity, views: turns, epochs: 2, batch_size: 8, warmup_epochs: 0}
    probe: {probe: linear}
"""


@pytest.fixture
def patched(tmp_path, repo):
    """A copy of the package with every diff of the page applied."""
    shutil.copytree(repo / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    diffs = re.findall(r"```diff\n(.*?)```", (repo / "docs" / "adding-things.md").read_text(), re.S)
    assert len(diffs) == 4
    for diff in diffs:
        words = ["git", "apply", "-"]
        done = subprocess.run(words, cwd=tmp_path, input=diff, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return tmp_path


def shapes(folder):
    """An archive as the added entry describes it, with its checksum."""
    chance = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 10)):
        for name in ("disc", "square"):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                y, x = np.mgrid[:32, :32] - chance.integers(12, 20)
                inside = (y**2 + x**2 < 64) if name == "disc" else (abs(y) < 7) & (abs(x) < 7)
                pixels = np.where(inside[..., None], chance.integers(150, 255, 3), chance.integers(0, 100, (32, 32, 3)))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")
    with tarfile.open(folder / "shapes.tar.gz", "w:gz") as archive:
        for split in ("train", "test"):
            archive.add(folder / split, arcname=f"shapes/{split}")
    return folder / "shapes.tar.gz"


def test_the_page_is_true(patched):
    import hashlib

    archive = shapes(patched / "mirror")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    catalogue = patched / "src" / "sandglass" / "data" / "catalog.py"
    catalogue.write_text(catalogue.read_text().replace("0" * 64, digest))
    (patched / "params.yaml").write_text(STUDY + f"data: {{mirror: {patched / 'mirror'}, val_fraction: 0.2}}\n")
    env = {**os.environ, "PYTHONPATH": str(patched / "src"), "SANDGLASS_TRACKING": "off", "OMP_NUM_THREADS": "1"}

    def sandglass(*words):
        done = subprocess.run(
            [sys.executable, "-m", "sandglass", *words],
            cwd=patched,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for what, name in (
        ("objectives", "alignment_uniformity"),
        ("views", "turns"),
        ("backbones", "convnext_small32"),
        ("datasets", "shapes"),
    ):
        assert re.search(rf"^{name} +\w", sandglass("list", what), re.M)
    assert "64 x 4 x 4" in sandglass("check")
    for stage in ("data", "pretrain", "probe"):
        sandglass(stage)
    assert "3 done" in sandglass("plan")


def test_the_added_objective_passes_its_own_and_the_contract_tests(patched, repo):
    env = {**os.environ, "PYTHONPATH": str(patched / "src"), "OMP_NUM_THREADS": "1"}
    shutil.copy(repo / "pyproject.toml", patched)
    shutil.copytree(repo / "tests" / "contract", patched / "tests" / "contract")
    files = ["tests/unit/objectives/test_alignment_uniformity.py", "tests/contract/test_objectives.py"]
    words = [sys.executable, "-m", "pytest", *files, "-k", "alignment_uniformity"]
    done = subprocess.run(words, cwd=patched, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "7 passed" in done.stdout, done.stdout + done.stderr
