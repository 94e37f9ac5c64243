"""Steps measured before a training, against what the training then says of itself."""

import json

import pytest

from sandglass.config import load
from sandglass.errors import Problem
from sandglass.measure import minutes_per_epoch
from sandglass.runs import RunFolder
from sandglass.stages import execute
from sandglass.study import plan

TOY = """\
study: toy
engine: {device: cpu}
studies:
  toy:
    data: digits
    size: 32
    backbone: toy
    seeds: [0]
    pretrain: {objective: byol, epochs: 4, batch_size: 64, warmup_epochs: 1}
    finetune: {init: [pretrained, scratch], views: plain, epochs: 6, batch_size: 64, warmup_epochs: 1}
    objectives: {byol: {hidden: 32, out: 16}}
"""


@pytest.fixture
def study(tmp_path):
    (tmp_path / "params.yaml").write_text(TOY)
    settings = load(tmp_path / "params.yaml")
    return settings, {run.stage: run for run in reversed(plan(settings))}


def test_the_preview_is_what_the_run_then_says_of_itself(study, tmp_path):
    settings, runs = study
    execute(runs["data"], settings, "toy", tmp_path, lambda text: None)
    for stage in ("pretrain", "finetune"):
        run = runs[stage]
        before, device = minutes_per_epoch(tmp_path, run, settings)
        assert device == "cpu" and not RunFolder(tmp_path, run).results.exists(), "nothing is kept"
        execute(run, settings, "toy", tmp_path, lambda text: None)
        told = json.loads(RunFolder(tmp_path, run).result.read_text())["minutes"] / run.settings["train"]["epochs"]
        assert told / 3 < before < told * 3, "neither an epoch for a step nor seconds for minutes, on a busy machine"


def test_the_data_has_to_be_packed(study, tmp_path):
    with pytest.raises(Problem) as caught:
        minutes_per_epoch(tmp_path, study[1]["pretrain"], study[0])
    assert caught.value.fix == "sandglass data"
