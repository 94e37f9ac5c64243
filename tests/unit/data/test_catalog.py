"""The catalogue: complete, well-formed, and readable without torch."""

import re
import subprocess
import sys

import pytest

from sandglass.config import OwnSet
from sandglass.data.catalog import CATALOG, about, resolve
from sandglass.data.formats import READERS
from sandglass.errors import Exit, Problem


@pytest.mark.parametrize("name", CATALOG)
def test_every_entry_says_where_from_on_what_terms_and_whose(name: str) -> None:
    entry = CATALOG[name]
    assert entry.name == name
    assert entry.format in READERS
    assert entry.classes and entry.splits["train"] and entry.splits["test"]
    assert entry.licence != "not stated"
    assert re.search(r"(19|20)\d\d", entry.citation)
    assert entry.homepage.startswith("https://")
    if entry.source or entry.by_hand:
        kind, _, hexadecimal = entry.checksum.partition(":")
        assert re.fullmatch({"md5": "[0-9a-f]{32}", "sha256": "[0-9a-f]{64}"}[kind], hexadecimal)


def test_sums_are_those_that_torchvision_verifies() -> None:
    from torchvision.datasets import CIFAR10, CIFAR100, STL10, Imagenette

    full, small = Imagenette._ARCHIVES["full"], Imagenette._ARCHIVES["160px"]
    assert CATALOG["imagenette"].source == full[0] and CATALOG["imagenette"].checksum == f"md5:{full[1]}"
    assert CATALOG["imagenette160"].source == small[0] and CATALOG["imagenette160"].checksum == f"md5:{small[1]}"
    assert CATALOG["cifar10"].checksum == f"md5:{CIFAR10.tgz_md5}"
    assert CATALOG["cifar100"].checksum == f"md5:{CIFAR100.tgz_md5}"
    assert CATALOG["stl10"].checksum == f"md5:{STL10.tgz_md5}"


def test_own_set_becomes_an_entry_and_hides_the_catalogue() -> None:
    own = OwnSet(format="cifar10", source="some/where.tar.gz", sha256="a" * 64, licence="mine")
    entry = resolve("cifar10", {"cifar10": own})
    assert (entry.format, entry.source, entry.licence) == ("cifar10", "some/where.tar.gz", "mine")
    assert entry.checksum == f"sha256:{'a' * 64}"
    assert not entry.splits  # a cut-down set does not have the published counts


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(Problem, match="cifr10") as caught:
        resolve("cifr10", {})
    assert caught.value.exit == Exit.CONFIG
    assert "cifar10" in caught.value.fix


def test_listing_shows_every_set() -> None:
    assert [row["name"] for row in about()] == list(CATALOG)


def test_the_catalogue_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, sandglass.data.catalog; print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
