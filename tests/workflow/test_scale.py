"""Ten thousand runs are planned while one waits. `make bench` measures more, and growth."""

import json
import resource

import pytest

from .test_dag import executed

RUNS = 1 + 360 + 756 + 4536 + 4536 + 1


@pytest.fixture
def grid(workplace, repo):
    (workplace / "params.yaml").write_text((repo / "tests" / "workflow" / "ten_thousand_runs.yaml").read_text())
    return workplace


def spent() -> float:
    """CPU seconds of commands so far: the turns of a neighbour do not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_ten_thousand_runs_are_planned_in_five_seconds(grid, command):
    began = spent()
    done = command(grid, "sandglass", "plan", "--json")
    assert spent() - began < 5 and len(json.loads(done.stdout)) == RUNS


def test_a_dry_run_of_ten_thousand_takes_less_than_ninety_seconds(grid, command):
    began = spent()
    done = command(grid, "snakemake", "-n", "--quiet", "rules")
    assert spent() - began < 90 and executed(done) == RUNS
