"""Pretrained beside random, the same test images in each row; another class is framed, and no data is no section."""

import shutil
from typing import Any

import numpy as np

from sandglass.data import catalog, pack
from sandglass.data.loader import open_split
from sandglass.report import figures
from sandglass.report.closest import neighbours
from sandglass.report.collect import collect
from sandglass.report.experiments import experiments
from sandglass.report.parts import Section


def made(study: Any) -> Section:
    frame = collect(study.root, [f"{run['stage']}/{run['name']}" for run in study.runs])
    names = [f"digit {k}" for k in range(10)]
    return neighbours(experiments(frame, "probe"), study.runs, study.root / "results", lambda data: names)


def test_rows_are_images_and_columns_networks(empty_study: Any) -> None:
    packed = empty_study.pack()
    folder = empty_study.folder(packed)
    shutil.rmtree(folder)
    pack.pack(
        catalog.resolve("digits", {}), None, folder, store_size=None, val_fraction=0.1, seed=0, on_bad_image="error"
    )
    (folder / "result.json").write_text('{"rows": []}')
    (folder / "run.json").write_text('{"columns": {"data set": "digits"}, "settings": {}}')
    near = {"pretrained": np.array([[3, 4], [5, 6]]), "random": np.array([[7, 8], [9, 10]])}
    keys = [empty_study.probe(packed, 0, "linear", init, None) for init in near]
    assert not made(empty_study), "runs of before had no neighbours"
    for key, train in zip(keys, near.values()):
        np.savez(empty_study.folder(key) / "neighbours.npz", test=np.array([0, 9]), train=train)
    for run in empty_study.runs:
        run["settings"]["size"] = 8

    (gallery,) = made(empty_study).galleries
    train, test = open_split(folder, "train"), open_split(folder, "test", evaluating=True)
    assert gallery.head == ["image", "pretrained", "random"] and len(gallery.rows) == 2
    right = {name: int((train.labels[rows] == test.labels[[0, 9]][:, None]).sum()) for name, rows in near.items()}
    said = ", ".join(f"{name} {count} of 4" for name, count in right.items())
    assert gallery.caption == f"digits, one seed each; of the same class {said}"
    query, _, second = gallery.rows[1]
    assert query[0].address == figures.picture(test.take([9])[0][0].numpy()) and not query[0].wrong
    for picture, row in zip(second, near["random"][1]):
        assert picture.name == f"digit {train.labels[row]}" and picture.wrong == (train.labels[row] != test.labels[9])
        assert picture.address == figures.picture(train.take([row])[0][0].numpy())

    (folder / "test.npy").unlink()
    assert not made(empty_study), "a clone may have the results without the data"
