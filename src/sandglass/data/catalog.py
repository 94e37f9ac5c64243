"""The data sets Sandglass knows by name, and the user's own in the same form.

An entry says where the archive lies, what its bytes must hash to, who made it, on what terms, and what is inside.
The sums are those that torchvision (CIFAR, STL-10, Imagenette) and public loaders of the same archives (Imagewoof,
NABirds; TensorFlow Datasets for version 1 of Imagenette) verify.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sandglass.errors import Exit, Problem, did_you_mean

if TYPE_CHECKING:
    from sandglass.config import OwnSet


@dataclass(frozen=True)
class Entry:
    """One data set. An empty `source` means that there is nothing to download: embedded, or fetched by hand."""

    name: str
    format: str  # the reader in formats.py
    about: str
    source: str = ""  # URL; for a user's own set also a path
    checksum: str = ""  # "sha256:<hex>" or "md5:<hex>"; "" for none
    bytes: int | None = None  # of the archive
    by_hand: str = ""  # the archive's name, where the terms forbid a direct download
    homepage: str = ""
    licence: str = "not stated"
    citation: str = ""
    classes: int | None = None
    native_size: str = ""
    splits: Mapping[str, int] = field(default_factory=dict)  # images per split as published, before val is cut


_IMAGENET_TERMS = "photographs under ImageNet's terms: non-commercial research and education only"
_CIFAR_TERMS = "no licence published; the authors ask for a citation (images from the withdrawn Tiny Images)"
_CIFAR_CITATION = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
_FASTAI = "https://github.com/fastai/imagenette"
_FASTAI_ARCHIVES = "https://s3.amazonaws.com/fast-ai-imageclas"
_FASTAI_CITATION = "Howard, Imagenette and Imagewoof, 2019; Deng et al., ImageNet, CVPR 2009"

_ENTRIES = (
    Entry(
        name="digits",
        format="digits",
        about="Handwritten digits, 8 px, inside scikit-learn: no download.",
        homepage="https://archive.ics.uci.edu/dataset/80",
        licence="CC BY 4.0",
        citation="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998",
        classes=10,
        native_size="8 px",
        splits={"train": 1438, "test": 359},
    ),
    Entry(
        name="cifar10",
        format="cifar10",
        about="Ten kinds of things, 32 px, 60,000 images.",
        source="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        checksum="md5:c58f30108f718f92721af3b95e74349a",
        bytes=170_498_071,
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        licence=_CIFAR_TERMS,
        citation=_CIFAR_CITATION,
        classes=10,
        native_size="32 px",
        splits={"train": 50_000, "test": 10_000},
    ),
    Entry(
        name="cifar100",
        format="cifar100",
        about="A hundred kinds of things (fine labels), 32 px, 60,000 images.",
        source="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        checksum="md5:eb9058c3a382ffc7106e4002c42a8d85",
        bytes=169_001_437,
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        licence=_CIFAR_TERMS,
        citation=_CIFAR_CITATION,
        classes=100,
        native_size="32 px",
        splits={"train": 50_000, "test": 10_000},
    ),
    Entry(
        name="stl10",
        format="stl10",
        about="Ten kinds of things, 96 px, 13,000 labelled and 100,000 unlabelled images.",
        source="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        checksum="md5:91f7769df0f17e558f3565bffb0c7dfb",
        bytes=2_640_397_119,
        homepage="https://cs.stanford.edu/~acoates/stl10/",
        licence=f"no licence published; the authors ask for a citation; {_IMAGENET_TERMS}",
        citation="Coates, Lee and Ng, An Analysis of Single-Layer Networks in Unsupervised Learning, AISTATS 2011",
        classes=10,
        native_size="96 px",
        splits={"train": 5_000, "test": 8_000, "unlabelled": 100_000},
    ),
    Entry(
        name="imagenette",
        format="imagenette",
        about="Ten easy ImageNet classes (version 2), full size; the published validation images are the test split.",
        source=f"{_FASTAI_ARCHIVES}/imagenette2.tgz",
        checksum="md5:fe2fc210e6bb7c5664d602c3cd71e612",
        homepage=_FASTAI,
        licence=f"lists Apache-2.0; {_IMAGENET_TERMS}",
        citation=_FASTAI_CITATION,
        classes=10,
        native_size="varies, about 400 x 500 px",
        splits={"train": 9_469, "test": 3_925},
    ),
    Entry(
        name="imagenette_v1",
        format="imagenette",
        about="Imagenette version 1, full size: the images of version 2, but only 50 of each class for the test.",
        source=f"{_FASTAI_ARCHIVES}/imagenette.tgz",
        checksum="sha256:1bd650bc16884ca88e4f0f537ed8569b1f8d7ae865d37eba8ecdd87d9cd9dcfa",
        bytes=1_556_495_367,
        homepage=_FASTAI,
        licence=f"lists Apache-2.0; {_IMAGENET_TERMS}",
        citation=_FASTAI_CITATION,
        classes=10,
        native_size="varies, about 400 x 500 px",
        splits={"train": 12_894, "test": 500},
    ),
    Entry(
        name="imagenette160",
        format="imagenette",
        about="Imagenette version 2, shorter side 160 px; the published validation images are the test split.",
        source=f"{_FASTAI_ARCHIVES}/imagenette2-160.tgz",
        checksum="md5:e793b78cc4c9e9a4ccc0c1155377a412",
        homepage=_FASTAI,
        licence=f"lists Apache-2.0; {_IMAGENET_TERMS}",
        citation=_FASTAI_CITATION,
        classes=10,
        native_size="shorter side 160 px",
        splits={"train": 9_469, "test": 3_925},
    ),
    Entry(
        name="imagewoof",
        format="imagenette",
        about="Ten dog breeds of ImageNet (version 2), full size; the published validation images are the test split.",
        source=f"{_FASTAI_ARCHIVES}/imagewoof2.tgz",
        checksum="md5:9aafe18bcdb1632c4249a76c458465ba",
        homepage=_FASTAI,
        licence=f"lists Apache-2.0; {_IMAGENET_TERMS}",
        citation=_FASTAI_CITATION,
        classes=10,
        native_size="varies, about 400 x 500 px",
        splits={"train": 9_025, "test": 3_929},
    ),
    Entry(
        name="imagewoof160",
        format="imagenette",
        about="Imagewoof version 2, shorter side 160 px; the published validation images are the test split.",
        source=f"{_FASTAI_ARCHIVES}/imagewoof2-160.tgz",
        checksum="md5:3d200a7be99704a0d7509be2a9fbfe15",
        homepage=_FASTAI,
        licence=f"lists Apache-2.0; {_IMAGENET_TERMS}",
        citation=_FASTAI_CITATION,
        classes=10,
        native_size="shorter side 160 px",
        splits={"train": 9_025, "test": 3_929},
    ),
    Entry(
        name="nabirds",
        format="nabirds",
        about="North American birds, 555 classes, 48,562 photographs; fetched by hand after accepting the terms.",
        checksum="md5:df21a9e4db349a14e2b08adfd45873bd",
        by_hand="nabirds.tar.gz",
        homepage="https://dl.allaboutbirds.org/nabirds",
        licence="terms of the Cornell Lab of Ornithology: non-commercial research; no redistribution",
        citation="Van Horn et al., Building a Bird Recognition App and Large Scale Dataset, CVPR 2015",
        classes=555,
        native_size="varies, up to 1024 px",
        splits={"train": 23_929, "test": 24_633},
    ),
)

CATALOG: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}


def resolve(name: str, own: Mapping[str, OwnSet]) -> Entry:
    """The entry of a name: the user's own set if there is one, else the catalogue's.

    Raises Problem D-101 (78) for a name that is neither.
    """
    if name in own:
        given = own[name]
        return Entry(
            name=name,
            format=given.format,
            about="declared in params.yaml",
            source=given.source,
            checksum=f"sha256:{given.sha256}" if given.sha256 else "",
            licence=given.licence,
        )
    if name not in CATALOG:
        raise Problem("D-101", Exit.CONFIG, f"unknown data set '{name}'", fix=did_you_mean(name, [*CATALOG, *own]))
    return CATALOG[name]


def about() -> list[dict[str, Any]]:
    """What `sandglass list datasets` shows."""
    return [
        {
            "name": entry.name,
            "about": entry.about,
            "classes": entry.classes,
            "native_size": entry.native_size,
            "splits": dict(entry.splits),
            "licence": entry.licence,
            "citation": entry.citation,
            "homepage": entry.homepage,
        }
        for entry in CATALOG.values()
    ]
