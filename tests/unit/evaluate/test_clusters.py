"""The cluster probe against brute force, at its limits, and with what a real pretraining leaves."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from sandglass.backbones.grid import build
from sandglass.config import load, resolve
from sandglass.errors import Problem
from sandglass.evaluate import clusters
from sandglass.evaluate.features import FeatureSet, Subject
from sandglass.objectives import OBJECTIVES
from sandglass.runs import RunFolder, read_json, sha256, write_json
from sandglass.stages import execute
from sandglass.study import plan
from sandglass.weights import save_objective

CPU = torch.device("cpu")


class Known:
    """An objective that has its clusters from somewhere else: `assign` looks them up by the only feature."""

    def __init__(self, names: list[int], count: int) -> None:
        self.names, self.count = torch.tensor(names), count

    def assign(self, pooled: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(self.names[pooled[:, 0].long()], self.count).float()


def judge(monkeypatch, train, train_labels, test, test_labels, count, classes):
    """The probe's numbers for clusters that are given."""
    rows = torch.arange(len(train) + len(test))[:, None].float()
    whole = rows[: len(train)], torch.tensor(train_labels), rows[:0], torch.tensor([]), rows[len(train) :]
    subject = Subject(None, Path(), 32, CPU, 1.0, 0, None)
    subject.__dict__["features"] = FeatureSet(*whole, torch.tensor(test_labels), classes)
    monkeypatch.setattr(clusters, "left_by", lambda _: Known([*train, *test], count))
    return {row["metric"]: row["value"] for row in clusters.run(subject, {}, 0)}


def test_one_to_one_is_the_best_of_all_namings():
    generator = np.random.default_rng(0)
    for shape in ((4, 4), (5, 3), (3, 5)):
        counts = generator.integers(0, 20, shape)
        names = clusters.one_to_one(counts)
        named = [(k, c) for k, c in enumerate(names) if c >= 0]
        assert len(named) == min(shape) == len({c for _, c in named})
        k, c = sorted(shape)
        table = counts if shape[0] <= shape[1] else counts.T
        best = max(sum(table[i, p[i]] for i in range(k)) for p in itertools.permutations(range(c), k))
        assert sum(counts[pair] for pair in named) == best


def test_clusters_that_are_the_classes_under_other_names_are_perfect(monkeypatch):
    labels = [i % 3 for i in range(30)]
    other = [(2, 0, 1)[label] for label in labels]
    found = judge(monkeypatch, other, labels, other, labels, 3, 3)
    assert all(found[key] == pytest.approx(1) for key in found if key.endswith("top1") or key in ("nmi", "ami", "ari"))
    assert found["clusters_used"] == found["clusters"] == 3


def test_one_cluster_for_all_is_worth_the_commonest_class_and_agrees_with_nothing(monkeypatch):
    labels = [0] * 5 + [1] * 3 + [2] * 2
    found = judge(monkeypatch, [4] * 10, labels, [4] * 10, labels, 6, 3)
    assert found["hungarian_top1"] == found["majority_top1"] == 0.5
    assert found["nmi"] == pytest.approx(0) and found["ari"] == pytest.approx(0)
    assert (found["clusters_used"], found["clusters"]) == (1, 6)


def test_surplus_clusters_are_wrong_one_to_one_and_right_by_majority(monkeypatch):
    labels, split = [0] * 6 + [1] * 6, [0] * 4 + [1] * 2 + [2] * 3 + [3] * 3
    found = judge(monkeypatch, split, labels, split, labels, 4, 2)
    assert found["hungarian_top1"] == 7 / 12 and found["majority_top1"] == 1


def test_transferred_names_come_from_the_training_images_alone(monkeypatch):
    found = judge(monkeypatch, [0, 0, 1, 1, 2], [1, 1, 0, 0, 0], [0, 0, 1, 3], [0, 0, 0, 1], 4, 2)
    assert found["hungarian_top1"] == 0.75  # cluster 0 is class 0, cluster 3 class 1
    assert found["transferred_hungarian_top1"] == found["transferred_majority_top1"] == 0.25  # 3 has no name yet


def test_kmeans_on_digits_is_judged_as_its_authors_would(monkeypatch):
    """Independent of this package: k-means of the real pixels, its best naming found by scikit-learn's contingency."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics.cluster import contingency_matrix

    x, y = load_digits(return_X_y=True)
    made = KMeans(10, n_init=1, random_state=0).fit_predict(x).astype(np.int64)
    found = judge(monkeypatch, made[:900], y[:900], made[900:], y[900:], 10, 10)
    table = contingency_matrix(y[900:], made[900:])
    rows, columns = linear_sum_assignment(-table)
    assert found["hungarian_top1"] == table[rows, columns].sum() / table.sum()
    assert found["majority_top1"] == table.max(0).sum() / table.sum() >= found["hungarian_top1"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """(objective) -> root and the runs of a real study: digits, one epoch, two views, and its cluster probe."""

    def made(objective):
        root = tmp_path_factory.mktemp(objective)
        values = {"hidden": 16, "out": 8}
        study = {
            "data": "digits",
            "size": 32,
            "backbone": "toy",
            "seeds": [0],
            "pretrain": {"objective": objective, "views": "baseline", "epochs": 1, "batch_size": 256},
            "probe": {"probe": "clusters"},
            "objectives": {objective: values},
        }
        (root / "params.yaml").write_text(yaml.safe_dump({"study": "s", "studies": {"s": study}}))
        params = load(root / "params.yaml")
        runs = {run.stage: run for run in plan(params) if run.stage in ("data", "pretrain", "probe")}
        for stage in ("data", "pretrain"):
            execute(runs[stage], params, "s", root, lambda text: None)
        return root, runs, lambda: execute(runs["probe"], params, "s", root, lambda text: None)

    return made


def subject_of(root, runs):
    encoder = build("toy", 32, 0, [0.5] * 3, [0.25] * 3)
    folder = RunFolder(root, runs["pretrain"]).results
    encoder.model.load_state_dict(load_file(folder / "model.safetensors"))
    return Subject(encoder, RunFolder(root, runs["data"]).results, 32, CPU, 1.0, 0, folder)


@pytest.mark.parametrize("name", ["dino", "self_classifier", "swav"])
def test_a_pretraining_leaves_what_the_probe_needs_and_no_more(pretrained, name, monkeypatch):
    kind, last = OBJECTIVES.get(name), {}
    monkeypatch.setattr(
        kind, "judged", lambda self, encoder, own=kind.judged: last.setdefault("at", self) and own(self, encoder)
    )
    root, runs, probe = pretrained(name)
    subject = subject_of(root, runs)
    weights = load_file(subject.pretrained / "objective.safetensors")
    assert weights and not any("model." in key for key in weights)
    rebuilt, rows = clusters.left_by(subject), torch.randn(50, 32)
    assert torch.equal(rebuilt.assign(rows), last["at"].eval().assign(rows))
    if name == "dino":  # the teacher, not the student, is what is exported
        for own, exported in zip(
            last["at"].teacher.model.parameters(), subject.encoder.model.parameters(), strict=True
        ):
            assert torch.equal(own, exported)
    probe()
    rows = read_json(RunFolder(root, runs["probe"]).result)["rows"]
    numbers = {row["metric"]: row for row in rows}
    assert numbers["hungarian_top1"]["ci_lo"] <= numbers["hungarian_top1"]["value"] <= numbers["majority_top1"]["value"]
    assert 1 <= numbers["clusters_used"]["value"] <= numbers["clusters"]["value"]


def test_what_has_no_clusters_is_refused(tmp_path):
    for folder in (None, tmp_path):
        with pytest.raises(Problem, match="no clusters") as problem:
            clusters.left_by(Subject(None, tmp_path, 32, CPU, 1.0, 0, folder))
        assert "dino or self_classifier or swav" in problem.value.fix


def test_weights_of_another_objective_are_refused(tmp_path):
    encoder = build("toy", 32, 0, [0.5] * 3, [0.25] * 3)
    settings = resolve(OBJECTIVES, "swav", {"hidden": 16, "out": 8})
    write_json(tmp_path / "run.json", {"settings": {"objective": {"swav": settings}}})
    objective = OBJECTIVES.get("swav")(encoder, settings | {"prototypes": 7}, 10)
    save_objective(tmp_path, objective)
    record = {"sha256": sha256(tmp_path / "objective.safetensors")}
    write_json(tmp_path / "result.json", {"files": {"objective.safetensors": record}})
    subject = Subject(encoder, tmp_path, 32, CPU, 1.0, 0, tmp_path)
    subject.__dict__["features"] = FeatureSet(*[torch.zeros(1, 32)] * 6, 10)
    with pytest.raises(Problem, match="not those of swav"):
        clusters.left_by(subject)
