"""Ten thousand runs are planned while one waits. `make bench` measures more, and growth."""

import json
import time

import pytest

from .test_dag import executed

RUNS = 1 + 360 + 756 + 4536 + 4536 + 1


@pytest.fixture
def grid(workplace, repo):
    (workplace / "params.yaml").write_text((repo / "tests" / "workflow" / "ten_thousand_runs.yaml").read_text())
    return workplace


def test_ten_thousand_runs_are_planned_in_five_seconds(grid, command):
    began = time.monotonic()
    done = command(grid, "sandglass", "plan", "--json")
    assert time.monotonic() - began < 5 and len(json.loads(done.stdout)) == RUNS


def test_a_dry_run_of_ten_thousand_takes_less_than_ninety_seconds(grid, command):
    began = time.monotonic()
    done = command(grid, "snakemake", "-n", "--quiet", "rules")
    assert time.monotonic() - began < 90 and executed(done) == RUNS
