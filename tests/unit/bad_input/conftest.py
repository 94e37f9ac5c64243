"""Bad input through the whole command, in this process: what it says, its exit code, and that nothing is lost."""

import sys

import numpy as np
import pytest
from PIL import Image

from sandglass import cli


@pytest.fixture
def sandglass(tmp_path, monkeypatch, capsys):
    """sandglass("data", settings=TEXT) -> exit code and everything it said; in tmp_path/place, where params.yaml is."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("SANDGLASS_TRACKING", "off")

    def call(*words, settings=None):
        if settings is not None:
            (place / "params.yaml").write_bytes(settings if isinstance(settings, bytes) else settings.encode())
        monkeypatch.setattr(sys, "argv", ["sandglass", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = "".join(capsys.readouterr())
        assert "Traceback" not in told and not (place / "sandglass-crash.txt").exists(), told
        return ended.value.code, told

    return call


def contents(root):
    """Every file below root with its bytes, every link with its target."""
    kept = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            kept[path] = path.readlink()
        elif path.is_file():
            kept[path] = path.read_bytes()
    return kept


def picture(path, width=12, height=12, mode="RGB", draw=None):
    """A picture of noise, always another one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = draw or picture.noise
    Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode).save(path)
    return path


picture.noise = np.random.default_rng(0)


def birds(root):
    """train/ and test/ of two classes with six pictures each."""
    for split in ("train", "test"):
        for name in ("heron", "owl"):
            for i in range(6):
                picture(root / split / name / f"{i}.png")
    return root


BIRDS = """\
study: birds
engine: {device: cpu}
data: {sets: {birds: {format: folder, source: ../birds}}}
studies:
  birds: {data: birds, size: 32, backbone: toy, seeds: [0], finetune: {epochs: 1, batch_size: 4}}
"""
