"""Neighbours against scikit-learn's, and their pictures pixel by pixel."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from sandglass.backbones.grid import build
from sandglass.data import catalog, pack
from sandglass.data.loader import open_split
from sandglass.evaluate.features import Subject
from sandglass.evaluate.neighbours import NEAREST, QUERIES, nearest, pictured


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("digits")
    entry = catalog.resolve("digits", {})
    pack.pack(entry, None, folder, store_size=None, val_fraction=0.2, seed=0, on_bad_image="error")
    torch.manual_seed(0)
    encoder = build("toy", 16, 0, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    return Subject(encoder, folder, 16, torch.device("cpu"), labels=0.3, seed=0, pretrained=None)


def test_they_are_those_of_scikit_learn_among_the_labelled(subject: Subject) -> None:
    found, features = nearest(subject), subject.features
    rows = [k * 359 // QUERIES for k in range(QUERIES)]
    assert found["test"].tolist() == rows
    search = NearestNeighbors(n_neighbors=NEAREST, metric="cosine").fit(features.train.double().numpy())
    distance, which = search.kneighbors(features.test[rows].double().numpy())
    np.testing.assert_allclose(1 - found["cosine"], distance, atol=1e-5)
    assert found["train"].tolist() == subject.labelled[which].tolist()
    assert not np.array_equal(subject.labelled[which], which), "rows of the split, not of the labelled part"


def test_pictures_are_the_packed_pixels(subject: Subject) -> None:
    found = nearest(subject)
    images, labels, near, theirs = pictured(subject.packed, found, 8)  # digits are of 8 px: as they are
    train, test = open_split(subject.packed, "train"), open_split(subject.packed, "test", evaluating=True)
    assert np.array_equal(images, test.take(found["test"])[0].numpy()) and images.dtype == np.uint8
    assert np.array_equal(near[2, 1], train.take(found["train"][2, 1:2])[0].numpy()[0])
    assert near.shape == (QUERIES, NEAREST, 3, 8, 8) and labels.tolist() == test.labels[found["test"]].tolist()
    assert np.array_equal(theirs, train.labels[found["train"]])
