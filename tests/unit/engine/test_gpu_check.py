"""What can be said of `make gpu-check` without a GPU: it says that there is none, and its parts work."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch


@pytest.fixture(scope="module")
def script(repo):
    spec = importlib.util.spec_from_file_location("gpu_check", repo / "benchmarks" / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_one_line_says_so(repo):
    command = [sys.executable, str(repo / "benchmarks" / "gpu_check.py")]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=hidden, capture_output=True, text=True)
    assert done.returncode == 66 and done.stdout == ""
    assert done.stderr.splitlines() == ["no GPU is visible: nothing was checked"]


@pytest.mark.parametrize("kind", ["supervised", "supervised+tasks", "byol"])
def test_the_same_step_passes(script, kind):
    text, right = script.row("toy", kind, 4, torch.device("cpu"), lambda run: run, 0.0)
    assert right and kind in text and "ANOTHER" not in text


def test_another_step_does_not(script):
    def stale(run):
        seen = run()
        return lambda: seen  # played again it does nothing

    text, right = script.row("toy", "supervised", 4, torch.device("cpu"), stale, 0.0)
    assert not right and "ANOTHER STEP" in text
