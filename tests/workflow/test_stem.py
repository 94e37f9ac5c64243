"""The seed experiment: early layers of a pretrained ResNet under an Hourglass, and its controls."""

import json

import pytest
import torch
from safetensors.torch import load_file

STUDY = """\
study: stem
engine: {device: cpu}
backbones:
  tiny_patches: {model: hourglass_tiny_r, stem: patch, patch_size: 4}
studies:
  stem:
    data: digits
    size: 32
    backbone: hourglass_tiny_r
    seeds: [0]
    pretrain: {objective: [byol, supervised], backbone: resnet_toy, epochs: 1, batch_size: 256, warmup_epochs: 0}
    finetune:
      backbone: [hourglass_tiny_r, tiny_patches]
      init: [scratch, stem-random, stem-frozen, stem-tuned]
      labels: 0.1
      views: plain
      epochs: 1
      batch_size: 64
      warmup_epochs: 0
    objectives: {byol: {hidden: 32, out: 16}}
    exclude:
      - {stage: finetune, backbone: tiny_patches, init: [stem-random, stem-frozen, stem-tuned]}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(init, objective, backbone) -> folder of a finished finetuning, and objective -> folder of its pretraining."""
    from sandglass.config import load
    from sandglass.stages import execute
    from sandglass.study import plan

    root = tmp_path_factory.mktemp("stem")
    (root / "params.yaml").write_text(STUDY)
    params = load(root / "params.yaml")
    planned = [run for run in plan(params) if run.stage != "report"]
    for run in planned:
        execute(run, params, "stem", root, say=lambda text: None)
    tuned = {
        (run.columns["init"], run.columns["objective"], run.columns["backbone"]): root / "results" / run.folder
        for run in planned
        if run.stage == "finetune"
    }
    return tuned, {r.columns["objective"]: root / "results" / r.folder for r in planned if r.stage == "pretrain"}


def stem(folder):
    weights = load_file(folder / "model.safetensors")
    return {name.removeprefix("stem."): value for name, value in weights.items() if name.startswith("stem.")}


def equal(mine, theirs):
    return all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_the_arms_of_the_experiment_are_all_there(runs):
    tuned, _ = runs
    assert sorted(tuned) == [
        ("scratch", "none", "hourglass_tiny_r"),
        ("scratch", "none", "tiny_patches"),
        ("stem-frozen", "byol", "hourglass_tiny_r"),
        ("stem-frozen", "supervised", "hourglass_tiny_r"),
        ("stem-random", "none", "hourglass_tiny_r"),
        ("stem-tuned", "byol", "hourglass_tiny_r"),
        ("stem-tuned", "supervised", "hourglass_tiny_r"),
    ]
    for folder in tuned.values():
        rows = json.loads((folder / "result.json").read_text())["rows"]
        assert any(row["metric"] == "top1" and row["split"] == "test" for row in rows)


@pytest.mark.parametrize("objective", ["byol", "supervised"])
def test_a_frozen_stem_is_the_pretrained_one_statistics_included(runs, objective):
    tuned, pretrained = runs
    theirs = load_file(pretrained[objective] / "model.safetensors")
    mine = stem(tuned["stem-frozen", objective, "hourglass_tiny_r"])
    assert mine and equal(mine, theirs)


def test_a_tuned_stem_starts_there_and_moves(runs):
    tuned, pretrained = runs
    theirs = load_file(pretrained["byol"] / "model.safetensors")
    mine = stem(tuned["stem-tuned", "byol", "hourglass_tiny_r"])
    random = stem(tuned["stem-random", "none", "hourglass_tiny_r"])
    name = "layer1.0.conv1.weight"
    assert not torch.equal(mine[name], theirs[name])
    assert (mine[name] - theirs[name]).norm() < 0.2 * (random[name] - theirs[name]).norm()


def test_a_stem_from_a_patch_backbone_is_refused(runs, tmp_path):
    from sandglass.config import load
    from sandglass.errors import Exit, Problem
    from sandglass.stages import execute
    from sandglass.study import plan

    text = STUDY[: STUDY.index("    exclude:")]
    (tmp_path / "params.yaml").write_text(text)
    params = load(tmp_path / "params.yaml")
    planned = plan(params)
    bad = next(r for r in planned if r.columns.get("init") == "stem-random" and r.settings.get("arguments"))
    execute(planned[0], params, "stem", tmp_path, say=lambda text: None)
    with pytest.raises(Problem) as caught:
        execute(bad, params, "stem", tmp_path, say=lambda text: None)
    assert caught.value.exit == Exit.CONFIG and "ResNet stem" in caught.value.what
