"""An exported model loads with timm alone, and its card says what the run folders say."""

import json
import re

import pytest
import timm
import yaml
from safetensors.torch import load_file
from scipy.stats import binomtest

from sandglass.config import load
from sandglass.errors import Exit, Problem
from sandglass.export import export
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
    pretrain: {objective: byol, epochs: 1, batch_size: 128, warmup_epochs: 0}
    probe: {probe: knn, init: [pretrained, random]}
    finetune: {labels: 0.1, auxiliary: drloc, views: plain, epochs: 1, batch_size: 32, warmup_epochs: 0}
    attack: {attack: fgsm, images: 64}
    objectives: {byol: {hidden: 32, out: 16}}
    attacks: {fgsm: {epsilons: [0.0, 8.0]}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny study that was run, and its plan."""
    root = tmp_path_factory.mktemp("study")
    (root / "params.yaml").write_text(TOY)
    settings = load(root / "params.yaml")
    runs = plan(settings)
    for run in runs[:-1]:
        execute(run, settings, "toy", root, lambda text: None)
    return root, {run.stage if run.stage != "probe" else run.columns["init"]: run for run in runs}


def test_the_card_holds_the_numbers_of_this_model_with_n_and_interval(finished, tmp_path):
    root, runs = finished
    for stage, judge, metric in (("pretrain", "pretrained", "top1"), ("finetune", "attack", "robust_top1")):
        export(root, runs.values(), runs[stage].name, tmp_path / stage)
        card = (tmp_path / stage / "README.md").read_text()
        rows = json.loads((root / "results" / runs[judge].result).read_text())["rows"]
        shares = [row for row in rows if row["metric"] == metric]
        assert shares
        for row in shares:
            number = rf"{100 * row['value']:.2f} % \| ([\d.]+) \.\. ([\d.]+) \| {row['n']} "
            found = re.search(rf"{metric}[^|]*\| {row['split']} \| {number}", card).groups()
            ends = binomtest(round(row["value"] * row["n"]), row["n"]).proportion_ci(method="wilson")
            assert [float(end) for end in found] == pytest.approx([100 * ends.low, 100 * ends.high], abs=0.0051)
        table = [line for line in card.splitlines() if line.startswith("| ") and "judged by" not in line]
        assert table and not [line for line in table if "|  |" in line], "no number without n and interval"
    random = json.loads((root / "results" / runs["random"].result).read_text())["rows"][0]
    assert f"{100 * random['value']:.2f} %" not in (tmp_path / "pretrain/README.md").read_text(), "of another model"


def test_the_card_says_data_protocol_provenance_and_citation(finished, tmp_path):
    root, runs = finished
    run = runs["pretrain"]
    export(root, runs.values(), run.name, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    info = json.loads((root / "results" / runs["data"].folder / "info.json").read_text())
    for text in (info["licence"], info["citation"], info["fingerprint"], "arXiv 2006.07733", run.key, "seed 0"):
        assert text in card, text
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0]) == run.settings
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "timm"
    result = json.loads((root / "results" / run.result).read_text())
    assert result["files"]["model.safetensors"]["sha256"] in card


def test_the_folder_is_all_that_timm_needs(finished, tmp_path):
    root, runs = finished
    export(root, runs.values(), runs["finetune"].name, tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert model.num_classes == 10
    for name, value in load_file(root / "results" / runs["finetune"].folder / "model.safetensors").items():
        assert model.state_dict()[name].equal(value)


def test_an_onnx_file_comes_with_its_measured_difference(finished, tmp_path):
    root, runs = finished
    export(root, runs.values(), runs["finetune"].name, tmp_path / "out", onnx=True)
    assert (tmp_path / "out/model.onnx").is_file()
    assert float(re.search(r"at most ([\d.e-]+) of the largest", (tmp_path / "out/README.md").read_text())[1]) <= 1e-4


def test_what_is_there_is_kept_and_half_a_model_is_not_exported(finished, tmp_path):
    root, runs = finished
    run = runs["pretrain"]
    (tmp_path / "out").mkdir()

    def refused(name, to):
        with pytest.raises(Problem) as caught:
            export(root, runs.values(), name, to)
        return caught.value.exit

    assert refused(run.name, tmp_path / "out") == Exit.CANNOT_WRITE and not list((tmp_path / "out").iterdir())
    assert refused(runs["pretrained"].name, tmp_path / "new") == Exit.CONFIG, "a probe has no model"
    weights = root / "results" / run.folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert refused(run.name, tmp_path / "new") == Exit.MISSING
    finally:
        weights.write_bytes(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing is left of what was refused"
