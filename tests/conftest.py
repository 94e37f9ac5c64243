"""What every tier of the suite shares."""

import os
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores are for other tests

REPO = Path(__file__).resolve().parents[1]
LONGEST = ("cluster", "workflow", "real")  # folders of tests


class ByFile(LoadFileScheduling):
    """Where several processes share the tests, one has all of a file, or all that are about the cluster."""

    def _split_scope(self, nodeid: str) -> str:
        return "cluster" if nodeid.startswith("tests/cluster/") else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest come first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.parent.name) if item.path.parent.name in LONGEST else 9)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the repository."""
    return REPO


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images in their original archive formats; not part of the repository (see CONTRIBUTING.md)."""
    folder = Path(os.environ.get("SANDGLASS_SHARED", REPO / ".." / "shared")).resolve() / "data"
    if not folder.is_dir():
        message = f"the real archives are not at {folder}: set SANDGLASS_SHARED to the folder that holds data/"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder
