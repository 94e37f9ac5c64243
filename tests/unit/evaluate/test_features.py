"""Features image by image, accuracies by hand, and the picture of them: packed digits, a small real encoder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from torch import Tensor

from sandglass.backbones.grid import Encoder, build
from sandglass.data import catalog, pack
from sandglass.data.loader import open_split
from sandglass.data.splits import label_fraction
from sandglass.errors import Problem
from sandglass.evaluate import features
from sandglass.evaluate.attacks._base import under_attack
from sandglass.views.recipes import evaluation_view

CPU = torch.device("cpu")
SIZE = 16  # px


class Canvas:
    """Images of different sizes on one canvas, as a packed split hands them out."""

    images_uniform = False

    def __init__(self, n: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, (n, 3, 24, 28), generator=generator, dtype=torch.uint8)
        self.sizes = torch.stack([torch.arange(n) % 5 + 20, torch.arange(n) % 7 + 22], dim=1)
        for image, (height, width) in zip(self.images, self.sizes.tolist()):
            image[:, height:], image[:, :, width:] = 0, 0
        self.labels = (torch.arange(n) % 4).numpy()
        self.info: dict[str, Any] = {"classes": ["a", "b", "c", "d"]}

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: Any) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(index)
        return self.images[rows], self.sizes[rows]


def encoder(classes: int = 4) -> Encoder:
    torch.manual_seed(0)
    return build("toy", SIZE, classes, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def packed(folder: Path, val_fraction: float) -> Path:
    entry = catalog.resolve("digits", {})
    pack.pack(entry, None, folder, store_size=None, val_fraction=val_fraction, seed=0, on_bad_image="error")
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("digits"), val_fraction=0.1)


def test_features_are_those_of_each_image_alone() -> None:
    split, net = Canvas(11), encoder()
    found = features.extract(net, split, SIZE, CPU, batch_size=4)
    net.eval()
    for row in range(11):
        view = evaluation_view(*split.take([row]), SIZE)
        torch.testing.assert_close(found[row], net(view).grid.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(features.extract(net, split, SIZE, CPU, batch_size=11), found, rtol=1e-4, atol=1e-5)


def test_the_encoder_is_left_as_it_was() -> None:
    """Also one that trains behind a frozen, evaluating part; and its running statistics have seen nothing."""
    net = encoder().train()
    net.model.stages[0].eval()
    modes = [module.training for module in net.modules()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    features.extract(net, Canvas(5), SIZE, CPU)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_precision_is_float32_inside_and_as_before_outside() -> None:
    split, net = Canvas(5), encoder()
    expected = features.extract(net, split, SIZE, CPU)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(features.extract(net, split, SIZE, CPU), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_what_is_not_finite_is_refused_with_a_count() -> None:
    split, net = Canvas(6), encoder()
    with torch.no_grad():
        net.model.head.fc.weight[0] = torch.inf
    assert features.extract(net, split, SIZE, CPU).isfinite().all()
    with pytest.raises(Problem, match="6 of 6 images"):
        features.predict_logits(net, split, SIZE, CPU)


def test_places_equal_a_stable_sort() -> None:
    """Of equal scores the lowest class comes first: small whole numbers have many."""
    scores = torch.randint(4, (500, 9), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.arange(500) % 9
    order = np.argsort(-scores.numpy(), axis=1, kind="stable")
    expected = (order == labels.numpy()[:, None]).argmax(axis=1)
    assert features.places(scores, labels).tolist() == expected.tolist()
    assert features.places(torch.zeros(3, 5), torch.tensor([0, 2, 4])).tolist() == [0, 2, 4]


def test_accuracies_by_hand() -> None:
    """Class 0: three of four right; class 1: none of one; class 2 does not occur."""
    scores = torch.tensor([[3.0, 1, 0], [2, 1, 0], [1, 1, 0], [0, 1, 2], [5, 4, 3]])
    rows = {row["metric"]: row for row in features.accuracy_rows(scores, torch.tensor([0, 0, 0, 0, 1]), "val")}
    assert rows["top1"]["value"] == pytest.approx(3 / 5)
    assert rows["top5"]["value"] == 1
    assert rows["macro_top1"]["value"] == pytest.approx((3 / 4 + 0) / 2)
    losses = [-np.log(np.exp(row[label]) / np.exp(row).sum()) for row, label in zip(scores.numpy(), [0, 0, 0, 0, 1])]
    assert rows["cross_entropy"]["value"] == pytest.approx(np.mean(losses))
    z, p, n = 1.959964, 3 / 5, 5
    centre, reach = p + z**2 / 2 / n, z * np.sqrt(p * (1 - p) / n + z**2 / 4 / n**2)
    assert rows["top1"]["ci_lo"] == pytest.approx((centre - reach) / (1 + z**2 / n))
    assert rows["top1"]["ci_hi"] == pytest.approx((centre + reach) / (1 + z**2 / n))
    assert {(row["n"], row["split"]) for row in rows.values()} == {(5, "val")}


def test_embedding_equals_scikit_learn_and_does_not_flip() -> None:
    torch.manual_seed(0)
    rows, labels = torch.randn(200, 6) * torch.tensor([5, 3, 1, 1, 0.5, 0.1]) + 7, torch.arange(200)
    xy, kept = features.embed(rows, labels)
    theirs = PCA(2, svd_solver="full").fit_transform(rows.double().numpy())
    np.testing.assert_allclose(np.abs(xy), np.abs(theirs), atol=1e-4)
    assert xy.dtype == np.float32 and kept.tolist() == labels.tolist()
    turned, _ = features.embed(torch.cat([rows, rows.new_zeros(200, 1)], dim=1), labels)
    np.testing.assert_allclose(turned, xy, atol=1e-4)
    mirrored, _ = features.embed(-rows, labels)
    np.testing.assert_allclose(mirrored, -xy, atol=1e-4)


def test_embedding_takes_evenly_spaced_rows_and_needs_no_second_dimension() -> None:
    xy, kept = features.embed(torch.arange(2500.0)[:, None], torch.arange(2500), limit=1000)
    assert xy.shape == (1000, 2)
    assert kept[:4].tolist() == [0, 2, 5, 7] and kept[-1] == 2497
    assert (xy[:, 1] == 0).all()


def test_feature_set_of_a_packed_data_set(digits: Path) -> None:
    net = encoder(10)
    found = features.feature_set(net, digits, SIZE, CPU)
    assert found.classes == 10
    sizes = {name: len(getattr(found, name)) for name in ("train", "val", "test")}
    assert sum(sizes.values()) == 1797 and sizes["test"] == 359
    assert min(sizes.values()) > 0
    for name, n in sizes.items():
        assert getattr(found, name).shape == (n, 32)
        assert getattr(found, f"{name}_labels").dtype == torch.int64
        assert set(getattr(found, f"{name}_labels").tolist()) == set(range(10))


def test_whole_splits_are_seen_once_by_all_probes_of_the_same_weights(digits: Path, tmp_path: Path) -> None:
    def net(seed: int) -> Encoder:
        torch.manual_seed(seed)
        return build("toy", SIZE, 0, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))

    def found(seed: int, labels: float = 1.0, size: int = SIZE) -> features.FeatureSet:
        return features.Subject(net(seed), digits, size, CPU, labels, seed=3, pretrained=None, kept=tmp_path).features

    first = found(1)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(files) == 3
    again, part = found(1), found(1, labels=0.1)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == files, "nothing is computed again"
    for name in ("train", "val", "test"):
        assert torch.equal(getattr(again, name), getattr(first, name))
    assert torch.equal(part.test, first.test) and 0 < len(part.train) < len(first.train)
    alone = features.Subject(net(1), digits, SIZE, CPU, 0.1, seed=3, pretrained=None).features
    assert torch.equal(part.train, alone.train), "no bit depends on what was kept"
    assert not torch.equal(found(2).test, first.test) and not torch.equal(found(1, size=SIZE + 8).test, first.test)
    assert len(list(tmp_path.iterdir())) == 9


def test_without_a_validation_split_its_part_is_empty(tmp_path: Path) -> None:
    found = features.feature_set(encoder(10), packed(tmp_path, val_fraction=0), SIZE, CPU)
    assert (len(found.train), found.val.shape, len(found.val_labels), len(found.test)) == (1438, (0, 32), 0, 359)


def test_a_subject_is_seen_once_and_with_the_labels_it_may_use(digits: Path) -> None:
    whole = features.Subject(encoder(10), digits, SIZE, CPU, labels=1.0, seed=3, pretrained=None)
    few = features.Subject(encoder(10), digits, SIZE, CPU, labels=0.05, seed=3, pretrained=None)
    assert few.features is few.features
    every = open_split(digits, "train")
    assert few.labelled.tolist() == label_fraction(every.labels, 0.05, seed=3).tolist()
    assert len(whole.labelled) == len(every) > 10 * len(few.labelled)
    assert few.features.train_labels.tolist() == every.labels[few.labelled].tolist()
    torch.testing.assert_close(few.features.train, whole.features.train[few.labelled], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(few.features.test, whole.features.test)


def test_another_head_is_judged_in_place_of_the_encoders_own(digits: Path) -> None:
    net = encoder(10)
    rows = features.classify(net, digits, "val", SIZE, CPU, lambda found: F.one_hot(found.pooled.argmax(1) * 0, 10))
    zeros = int((open_split(digits, "val").labels == 0).sum())
    assert rows[0]["metric"] == "top1" and rows[0]["value"] == zeros / rows[0]["n"]


def test_classify_is_the_accuracy_of_the_pooled_split(digits: Path) -> None:
    net = encoder(10)
    rows = {row["metric"]: row for row in features.classify(net, digits, "test", SIZE, CPU)}
    model, images, labels = under_attack(net, digits, SIZE, None, CPU)
    logits = model(images)
    assert rows["top1"]["value"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    assert rows["cross_entropy"]["value"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert all(row["split"] == "test" and row["n"] == 359 for row in rows.values())
    assert rows["top1"]["ci_lo"] < rows["top1"]["value"] < rows["top1"]["ci_hi"]


def test_images_under_attack_are_spread_over_the_test_split(digits: Path) -> None:
    net = encoder(10)
    _, every, labels = under_attack(net, digits, SIZE, None, CPU)
    model, some, chosen = under_attack(net, digits, SIZE, 100, CPU)
    rows = np.arange(100) * 359 // 100
    assert torch.equal(some, every[rows]) and torch.equal(chosen, labels[rows])
    assert len(under_attack(net, digits, SIZE, 10_000, CPU)[1]) == 359
    assert every.min() >= 0 and every.max() <= 1
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.std.flatten().tolist() == pytest.approx([0.2, 0.25, 0.3])
