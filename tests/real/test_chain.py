"""The whole chain on real images of CIFAR-10, from its own archive format to the report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def chain(tmp_path_factory, repo, shared_data):
    folder = tmp_path_factory.mktemp("cifar10")
    for name in ("Snakefile", "workflow", "profiles", "envs"):
        (folder / name).symlink_to(repo / name)
    (folder / "archives").symlink_to(shared_data / "cifar10")
    (folder / "params.yaml").write_text((repo / "tests" / "real" / "cifar10.yaml").read_text())
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["snakemake", "--cores", "all"], cwd=folder, env=env, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_numbers_are_above_chance_and_told(chain):
    table = pd.read_csv(chain / "results" / "report" / "cifar10" / "results.csv")
    test = table[(table["split"] == "test") & (table["metric"].isin(["top1", "robust_top1"]))]
    print(test[["stage", "init", "probe", "attack", "epsilon", "metric", "value", "n"]].to_string())
    finetuned = table[(table["stage"] == "finetune") & (table["metric"] == "top1") & (table["split"] == "test")]
    assert len(finetuned) == 1
    from scipy.stats import binomtest

    right, n = round(float(finetuned["value"].iloc[0]) * 1000), 1000
    assert binomtest(right, n).proportion_ci(0.99, "wilson").low > 0.10
    linear = table[(table["probe"] == "linear") & (table["metric"] == "top1") & (table["split"] == "test")]
    assert (linear["value"] > 0.15).all() and set(linear["init"]) == {"pretrained", "random"}


def test_adversarial_accuracy_falls_with_epsilon(chain):
    table = pd.read_csv(chain / "results" / "report" / "cifar10" / "results.csv")
    for attack in ("fgsm", "pgd"):
        robust = table[(table["attack"] == attack) & (table["metric"] == "robust_top1")].sort_values("epsilon")["value"]
        assert len(robust) > 2 and robust.iloc[0] > robust.iloc[-1]


def test_packed_as_the_archive_says(chain):
    (info,) = (chain / "results" / "data").glob("*/info.json")
    facts = json.loads(info.read_text())
    assert facts["counts"] == {"train": 4500, "val": 500, "test": 1000}
    assert len(facts["classes"]) == 10
