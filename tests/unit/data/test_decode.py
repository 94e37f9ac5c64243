"""The written rule for odd images, each kind made here; and what is refused before it does harm."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sandglass.data.decode import ORIENTATION, BadImage, decode

RANDOM = np.random.default_rng(0)


def picture(path: Path, size: tuple[int, int] = (12, 10), **options: Any) -> Path:
    Image.fromarray(RANDOM.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path, **options)
    return path


def decoded(image: Image.Image, path: Path, **options: Any) -> tuple[np.ndarray, Counter[str]]:
    image.save(path, **options)
    notes: Counter[str] = Counter()
    return decode(path, notes), notes


def test_rgb_is_taken_as_it_is(tmp_path: Path) -> None:
    pixels = RANDOM.integers(0, 256, (9, 14, 3), dtype=np.uint8)
    found, notes = decoded(Image.fromarray(pixels), tmp_path / "a.PNG", format="PNG")
    assert np.array_equal(found, pixels) and not notes


def test_grey_one_bit_and_palette_are_repeated_or_looked_up(tmp_path: Path) -> None:
    grey = RANDOM.integers(0, 256, (9, 14), dtype=np.uint8)
    found, notes = decoded(Image.fromarray(grey), tmp_path / "a.png")
    assert np.array_equal(found, np.repeat(grey[..., None], 3, axis=2)) and notes == {"grey converted to RGB": 1}
    found, notes = decoded(Image.fromarray(grey > 127), tmp_path / "b.png")
    assert np.array_equal(found[..., 1], (grey > 127) * 255) and notes == {"1-bit converted to RGB": 1}
    palette = Image.fromarray(grey % 2, mode="P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    found, notes = decoded(palette, tmp_path / "c.png")
    assert np.array_equal(found, np.array([[10, 20, 30], [200, 100, 50]], dtype=np.uint8)[grey % 2])
    assert notes == {"palette converted to RGB": 1}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    alpha = np.zeros((8, 8), dtype=np.uint8)
    alpha[:4] = 255
    image = Image.fromarray(np.zeros((8, 8, 4), dtype=np.uint8))
    image.putalpha(Image.fromarray(alpha))
    if mode == "P":
        image = Image.fromarray((alpha == 0).astype(np.uint8), mode="P")
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.info["transparency"] = 1
    found, notes = decoded(image if mode == "P" else image.convert(mode), tmp_path / "a.png")
    assert np.array_equal(found[..., 0], 255 - alpha)
    assert notes == {"transparency laid on white": 1}


def test_half_transparent_black_is_mid_grey(tmp_path: Path) -> None:
    found, _ = decoded(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), tmp_path / "a.png")
    assert np.unique(found).tolist() == [127]


def test_cmyk_is_converted(tmp_path: Path) -> None:
    found, notes = decoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=100)
    assert found[0, 0, 0] > 250 and found[0, 0, 1:].max() < 5  # red
    assert notes == {"CMYK converted to RGB": 1}


@pytest.mark.parametrize(("orientation", "turned"), [(3, 2), (6, 3), (8, 1)])
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, turned: int) -> None:
    pixels = RANDOM.integers(0, 256, (9, 14, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    found, notes = decoded(Image.fromarray(pixels), tmp_path / "a.png", exif=exif)
    assert np.array_equal(found, np.rot90(pixels, turned)) and notes == {"turned upright by EXIF": 1}


def test_the_first_of_a_cameras_pictures_is_taken(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    notes: Counter[str] = Counter()
    assert decode(tmp_path / "a.jpg", notes)[0, 0].argmax() == 0
    assert notes == {"first of several pictures taken": 1}


def test_what_is_refused_and_why(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((16, 16), 40_000, dtype=np.uint16))
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    jpeg = picture(tmp_path / "whole.jpg", (64, 64)).read_bytes()
    made: dict[str, tuple[str, Any]] = {
        "16-bit.png": ("pixels of kind I;16", deep),
        "float.tiff": ("pixels of kind F", Image.new("F", (16, 16))),
        "large.png": ("megapixels", Image.new("1", (8_000, 6_000))),
        "small.png": ("sides of 8 px", Image.new("RGB", (1, 1))),
        "thin.png": ("aspect", Image.new("RGB", (8, 400))),
        "empty.jpg": ("empty", b""),
        "page.jpg": ("web page", b"\n<!DOCTYPE HTML><html></html>"),
        "junk.jpg": ("not an image", b"junk" * 100),
        "cut.jpg": ("truncated", jpeg[: int(len(jpeg) * 0.9)]),
        "cut.png": ("truncated", picture(tmp_path / "whole.png", (64, 64)).read_bytes()[:-3000]),
        "header.jpg": ("Truncated", jpeg[:10]),
        "vector.jpg": ("not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"),
    }
    for name, (_, content) in made.items():
        (tmp_path / name).write_bytes(content) if isinstance(content, bytes) else content.save(tmp_path / name)
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "pages.tiff", save_all=True, append_images=frames[1:])
    made |= {"moves.gif": ("frames", None), "pages.tiff": ("pages", None), "absent.jpg": ("missing", None)}
    for name, (said, _) in made.items():
        with pytest.raises(BadImage, match=said):
            decode(tmp_path / name, Counter())


def test_verify_would_have_passed_the_cut_jpeg(tmp_path: Path) -> None:
    """Why images are decoded fully."""
    data = picture(tmp_path / "a.jpg", (64, 64)).read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: int(len(data) * 0.9)])
    with Image.open(tmp_path / "a.jpg") as image:
        image.verify()
    with pytest.raises(BadImage):
        decode(tmp_path / "a.jpg", Counter())


@pytest.mark.timeout(10)
def test_a_pipe_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(BadImage, match="regular file"):
        decode(tmp_path / "a.jpg", Counter())
