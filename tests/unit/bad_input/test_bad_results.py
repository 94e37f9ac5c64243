"""Results and checkpoints that are not what their runs wrote: refused by name, nothing read from them, nothing lost."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sandglass.engine.checkpoint import save
from sandglass.runs import sha256

from .conftest import contents

TOY = """\
study: toy
engine: {device: cpu}
studies:
  toy:
    {data: digits, size: 32, backbone: toy, seeds: [0, 1], finetune: {epochs: 1, warmup_epochs: 0, views: plain,
     labels: 0.1, batch_size: 32}, attack: {attack: fgsm, images: 20}}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The study up to its finetuned models."""
    from sandglass import stages
    from sandglass.config import load
    from sandglass.study import plan

    root = tmp_path_factory.mktemp("trained")
    (root / "params.yaml").write_text(TOY)
    params = load(root / "params.yaml")
    for run in plan(params):
        if run.stage in ("data", "finetune"):
            stages.execute(run, params, "toy", root, say=lambda text: None)
    return root


@pytest.fixture
def place(trained, tmp_path, sandglass):
    """A copy of it, in which `sandglass` works."""
    shutil.copytree(trained, tmp_path / "place", dirs_exist_ok=True)
    return tmp_path / "place"


def model(place):
    return sorted(place.glob("results/finetune/*-s0-*/model.safetensors"))[0]


def rewritten(change):
    def spoil(file):
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return spoil


def not_a_number(tensors):
    next(value for name, value in sorted(tensors.items()) if name.endswith("weight"))[...] = np.nan


class Hostile:
    def __reduce__(self):
        return exec, ("open('canary', 'w')",)


WEIGHTS = {
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "junk of the same size": lambda file: file.write_bytes(os.urandom(file.stat().st_size)),
    "a web page": lambda file: file.write_text("<!doctype html>"),
    "a pickle that would run": lambda file: file.write_bytes(pickle.dumps(Hostile())),
    "not-a-numbers": rewritten(not_a_number),
}


@pytest.mark.parametrize("what", WEIGHTS)
def test_weights_that_the_run_did_not_write(what, place, sandglass):
    WEIGHTS[what](model(place))
    before = contents(place / "results")
    code, told = sandglass("attack")
    assert code == 65 and "B-351" in told and str(model(place).parent.name) in told and "sha256" in told, told
    assert "dvc checkout" in told and not (place / "canary").exists()
    assert contents(place / "results") == before


def test_weights_of_other_shapes_or_classes_even_if_the_record_agrees(place, sandglass):
    def other_head(tensors):
        tensors["head.fc.weight"] = tensors["head.fc.weight"][:3].copy()

    rewritten(other_head)(model(place))
    result = model(place).parent / "result.json"
    record = json.loads(result.read_text())
    record["files"]["model.safetensors"]["sha256"] = sha256(model(place))
    result.write_text(json.dumps(record))
    code, told = sandglass("attack")
    assert code == 65 and "B-350" in told and "head.fc.weight: (3, 32), the model has (10, 32)" in told, told


def test_a_result_that_is_not_json(place, sandglass):
    result = model(place).parent / "result.json"
    result.write_text(result.read_text()[:40])
    code, told = sandglass("report")
    assert code == 65 and "R-101" in told and result.parent.name in told and result.exists(), told


def test_an_accuracy_written_by_hand(place, sandglass):
    result = model(place).parent / "result.json"
    record = json.loads(result.read_text())
    for row in record["rows"]:
        if row["metric"] == "top1" and row["split"] == "test":
            row["value"] = 0.999
    result.write_text(json.dumps(record))
    code, told = sandglass("report")
    assert code == 65 and "R-115" in told and "no report was written" in told, told
    assert not list(place.glob("results/report/*/index.html"))


def test_a_report_with_one_of_two_seeds_says_so_and_a_workflow_that_waits_for_all_needs_no_strict_form(
    place, sandglass
):
    name = model(place).parent.name
    shutil.rmtree(place / "results" / "finetune" / name)
    shutil.rmtree(place / "state" / "finetune" / name)
    code, told = sandglass("report")
    page = next(place.glob("results/report/*/index.html")).read_text()
    assert code == 0 and "n = 1" in page and "1 of 2" in page, told


def stopped(place, seed):
    """The state folder of a training that was stopped at its first step."""
    (folder,) = place.glob(f"state/finetune/*-s{seed}-*")
    shutil.rmtree(place / "results" / "finetune" / folder.name)
    shutil.rmtree(folder)
    save(folder / "checkpoints", 1, {"step": 1}, metrics_bytes=0)
    return folder


def test_checkpoints_of_another_run(place, sandglass):
    ours, theirs = stopped(place, 0), stopped(place, 1)
    shutil.rmtree(ours)
    shutil.copytree(theirs, ours)
    before = contents(ours / "checkpoints")
    code, told = sandglass("finetune", ours.name)
    assert code == 77 and "T-121" in told and theirs.name in told and "remove" in told, told
    assert contents(ours / "checkpoints") == before


def test_a_checkpoint_that_is_a_program_is_not_run_whoever_put_it_there(place, sandglass):
    folder = stopped(place, 0) / "checkpoints"
    (file,) = folder.glob("*.pt")
    file.write_bytes(pickle.dumps(Hostile()))
    (entry,) = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps([entry | {"sha256": sha256(file)}]))
    code, told = sandglass("finetune", folder.parent.name)
    assert code == 77 and "T-122" in told and file.name in told, told
    assert not (place / "canary").exists()


def test_checkpoints_of_which_none_is_whole(place, sandglass):
    folder = stopped(place, 0) / "checkpoints"
    (file,) = folder.glob("*.pt")
    file.write_bytes(file.read_bytes()[:-20])
    code, told = sandglass("finetune", folder.parent.name)
    assert code == 65 and "T-120" in told and file.exists(), told


def test_runs_of_another_version_have_other_names_so_no_file_is_read_as_what_it_is_not(place, monkeypatch):
    from sandglass import study
    from sandglass.config import load

    params = load(place / "params.yaml")
    names = {run.name for run in study.plan(params) if run.stage == "finetune"}
    monkeypatch.setitem(study.PROTOCOL, "finetune", study.PROTOCOL["finetune"] + 1)
    assert not names & {run.name for run in study.plan(params) if run.stage == "finetune"}
