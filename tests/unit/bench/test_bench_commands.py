"""What the commands write and say that only look. Those that start jobs: tests/workflow/test_bench.py."""

import csv
from pathlib import Path

import pytest

from sandglass.bench import commands, floor, start
from sandglass.report import figures


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_floor_and_parity_share_a_page(tmp_path: Path) -> None:
    assert commands.floor(tmp_path, None, sizes=(32,), batches=1) == 0
    assert commands.parity(tmp_path, None, images=16) == 0
    parts = {row["part"]: float(row["us_per_image"]) for row in rows(tmp_path, "floor")}
    assert min(parts.values()) >= 0 and {"ops.hue_", "ops.only", "loader.Split.take"} <= set(parts) | {floor.REST}
    page = (tmp_path / "index.html").read_text()
    assert 'id="floor"' in page and 'id="parity"' in page and 'id="speed"' not in page
    assert "<svg" in page and "ops.hue_" in page and "src=" not in page and "<script" not in page


def test_shares_belong_to_the_function_that_called_torch() -> None:
    """A function that makes another of ours work spends nothing of it itself."""
    import torch

    from sandglass.views import ops

    images = torch.rand(64, 3, 96, 96)
    shares = floor.profiled(lambda: ops.only(images, torch.ones(64, dtype=torch.bool), ops.quarter_turn))
    assert sum(shares.values()) == pytest.approx(1)
    heavy = floor.profiled(lambda: ops.hue_(images, torch.rand(64)))
    assert max(heavy, key=lambda name: heavy[name]) == "ops.hue_"


def test_imports_are_summed_by_package_and_scaled_to_cpu_seconds() -> None:
    account = "import time: self [us] | cumulative | imported package\n"
    account += "import time: 300000 | 300000 |   torch.nn\nimport time: 100000 | 400000 | torch\n"
    account += "import time: 50000 | 50000 | torch._dynamo.config\nimport time: 200000 | 200000 | json\n"
    parts = start.parts({"whole": 1.0, "wall": 2.0, "first views": 0.25}, account)
    assert parts["import torch"] == pytest.approx(0.2) and parts["import torch._dynamo"] == pytest.approx(0.025)
    assert parts["import Python's own"] == pytest.approx(0.1) and parts["first views"] == 0.25
    assert sum(parts.values()) == pytest.approx(1.0)


def test_bars_name_every_row_with_its_number() -> None:
    svg = figures.bars([("one", "a", 1.5), ("many", "b", 1234.0)], "µs")
    assert all(text in svg for text in ("one", "1.5", "many", "1,234", "µs"))
