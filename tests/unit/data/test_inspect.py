"""What is said of a folder before it is used: counted by hand, and held to what packing then does."""

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sandglass.config import load
from sandglass.data import catalog
from sandglass.data.inspect import inspect, show
from sandglass.data.pack import pack
from sandglass.errors import Exit, Problem
from sandglass.study import plan

RANDOM = np.random.default_rng(0)


def picture(path: Path, width: int = 12, height: int = 10, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode).save(path)
    return path


def birds(root: Path, splits: tuple[str, ...] = ("train", "test"), images: int = 4) -> Path:
    for split in splits:
        for name in ("heron", "owl"):
            for i in range(images):
                picture(root / split / name / f"{i}.png")
    return root


def test_the_facts_of_a_folder_counted_by_hand(tmp_path: Path) -> None:
    root = birds(tmp_path / "birds")
    picture(root / "train/owl/large.png", 100, 50)
    picture(root / "train/owl/small.png", 9, 8)
    picture(root / "train/owl/grey.png", mode="L")
    picture(root / "train/heron/ink.jpg", mode="CMYK")
    (root / "train/heron/again.png").write_bytes((root / "train/heron/0.png").read_bytes())
    (root / "train/owl/heron.png").write_bytes((root / "train/heron/1.png").read_bytes())
    (root / "test/owl/leak.png").write_bytes((root / "train/owl/0.png").read_bytes())
    (root / "train/notes.txt").write_text("beside the classes")
    (root / "train/owl/notes.txt").write_text("among the images")
    (root / "train/heron/0.png").touch()
    cut = picture(root / "train/owl/cut.png")
    cut.write_bytes(cut.read_bytes()[:-60])
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    facts = inspect(root)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")), "nothing is written"
    assert facts["layout"] == "folder" and facts["images"] == {"train": 15, "test": 9} and facts["unlabelled"] == 0
    assert facts["classes"] == {"train": {"heron": 6, "owl": 9}, "test": {"heron": 4, "owl": 5}}
    assert facts["sizes"] == {"least": (9, 8), "median": (12, 10), "largest": (100, 50)}
    assert facts["modes"] == {"RGB": 21, "CMYK converted to RGB": 1, "grey converted to RGB": 1}
    assert facts["notes"] == {"other files ignored": 1}
    assert [(row["split"], row["image"]) for row in facts["broken"]] == [("train", "train/owl/cut.png")]
    same = facts["duplicates"]
    assert same["within"] == {"train": 2} and same["across"] == {"train and test": 1} and same["of_two_classes"] == 1
    assert ["train/owl/0.png", "test/owl/leak.png"] in same["groups"] and len(same["groups"]) == 3
    assert facts["packing"]["refused"]["id"] == "D-104"
    page = show(json.loads(json.dumps(facts)))
    for text in ("24 images of 2 classes", "heron 6, owl 9", "100 x 50", "train/owl/cut.png", "error D-104 (exit 65)"):
        assert text in page, page


def truncated(root: Path) -> None:
    file = root / "train/owl/0.png"
    file.write_bytes(file.read_bytes()[:-60])


def flat(root: Path) -> None:
    for file in root.rglob("*.png"):
        Image.new("RGB", (12, 10), "grey").save(file)


def leaking(root: Path) -> None:
    (root / "test/owl/0.png").write_bytes((root / "train/owl/0.png").read_bytes())


def of_one_class(root: Path) -> None:
    for split in ("train", "test"):
        (root / split / "owl").rename(root / f"owl of {split}")


def of_other_classes(root: Path) -> None:
    (root / "test/owl").rename(root / "test/emu")


def of_single_images(root: Path) -> None:
    for i in (1, 2, 3):
        (root / f"train/owl/{i}.png").unlink()


def linked_out(root: Path) -> None:
    (root / "train/owl/link.png").symlink_to(picture(root.parent / "secret.png"))


def whole(root: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "id"),
    [
        (whole, ""),
        (truncated, "D-104"),
        (of_one_class, "D-107"),
        (of_other_classes, "D-107"),
        (flat, "D-109"),
        (leaking, "D-110"),
        (linked_out, "D-111"),
        (of_single_images, "D-117"),
    ],
)
def test_what_is_foretold_is_what_packing_does(tmp_path: Path, spoil: Callable[[Path], None], id: str) -> None:
    root = birds(tmp_path / "birds")
    spoil(root)
    facts = inspect(root)
    (tmp_path / "params.yaml").write_text("\n".join(facts["params"]))
    settings = load(tmp_path / "params.yaml")
    packed = plan(settings)[0].settings
    asked = {key: packed[key] for key in ("store_size", "val_fraction", "on_bad_image")}
    entry = catalog.resolve(packed["data"], settings.data.sets)
    try:
        info = pack(entry, Path(entry.source), tmp_path / "packed", seed=0, **asked)
    except Problem as problem:
        assert facts["packing"]["refused"]["id"] == problem.id == id
        assert facts["packing"]["refused"]["exit"] == problem.exit and problem.what in facts["packing"]["screen"]
        assert sum(facts["images"].values()) >= 13, "the images are looked at all the same"
    else:
        assert not id and facts["packing"]["counts"] == info["counts"] == {"train": 6, "val": 2, "test": 8}
        assert facts["packing"]["bytes"] == sum(
            (tmp_path / "packed" / f"{split}.npy").stat().st_size - 128 for split in info["counts"]
        )


def test_an_archive_is_unpacked_elsewhere_and_no_trace_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "birds.tar.gz", "w:gz") as tar:
        tar.add(birds(tmp_path / "birds", ("",)), "birds")
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    facts = inspect(tmp_path / "birds.tar.gz")
    assert facts["images"] == {"train": 6, "test": 2} and "cut with seed 0" in facts["split_rule"]
    assert not list(place.iterdir())


def test_layouts_of_arrays_are_known_by_their_files(shared_data: Path) -> None:
    facts = inspect(shared_data / "cifar100/cifar-100-python-subset.tar.gz")
    assert facts["layout"] == "cifar100" and facts["images"] == {"train": 1117, "test": 916}
    facts = inspect(shared_data / "stl10/stl10_binary-mini.tar.gz")
    assert facts["layout"] == "stl10" and facts["unlabelled"] == facts["images"]["unlabelled"] > 0
    assert facts["sizes"]["median"] == (96, 96) and "size: 64" in facts["params"][3]


def test_nothing_and_no_images(tmp_path: Path) -> None:
    with pytest.raises(Problem) as caught:
        inspect(tmp_path / "absent")
    assert caught.value.exit == Exit.MISSING
    (tmp_path / "empty").mkdir()
    facts = inspect(tmp_path / "empty")
    assert facts["packing"]["refused"]["id"] == "D-107" and "0 classes" in show(facts)
    os.mkfifo(tmp_path / "empty/pipe.png")  # opening it would wait for ever
    facts = inspect(tmp_path / "empty")
    assert facts["sizes"] == {} and facts["broken"][0]["reason"] == "not a regular file"
    assert facts["packing"]["refused"]["id"] == "D-104"


def test_pictures_without_class_folders_are_known_as_unlabelled(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"heap/{i}.png", 40, 40)
    facts = inspect(tmp_path / "heap")
    assert facts["layout"] == "images" and facts["images"] == {"unlabelled": 3} and facts["unlabelled"] == 3
    assert facts["packing"]["counts"] == {"unlabelled": 3} and facts["packing"]["rule"] == ""
    (tmp_path / "params.yaml").write_text("\n".join(facts["params"]))
    stages = [run.stage for run in plan(load(tmp_path / "params.yaml"), "heap")]
    assert set(stages) == {"data", "pretrain", "report"}, "nothing that needs labels is proposed"


def test_pictures_beside_class_folders_are_counted_and_not_guessed_about(tmp_path: Path) -> None:
    root = birds(tmp_path / "some", splits=("unlabelled",))
    for name in ("heron", "owl"):
        for i in range(20):
            picture(root / name / f"{i}.png")
    facts = inspect(root)
    assert facts["unlabelled"] == 8 and facts["layout"] == "folder" and "refused" not in facts["packing"]
    picture(root / "loose.png")
    refused = inspect(root)["packing"]["refused"]
    assert refused["id"] == "D-105" and "unlabelled" in refused["fix"]
