"""One image file -> uint8 RGB, decoded to its last byte, by a written rule for every odd kind.

`verify()` of Pillow passes a JPEG cut at 90 %, its RGB conversion clips 16-bit greys to white, and its bomb guard only
warns at 144 megapixels; so files are loaded fully, refused by kind, and capped here. Only regular files are opened.
"""

from __future__ import annotations

import stat
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from sandglass.data.download import looks_like_html

MAX_PIXELS = 40_000_000
MIN_SIDE = 8  # px
MAX_ASPECT = 20  # long side to short side
DECODERS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}  # 8 bits or less
ORIENTATION = 0x0112  # EXIF


class BadImage(Exception):
    """One image cannot be used; the text says why."""


def decode(path: Path, notes: Counter[str]) -> np.ndarray:
    """The image in a file: uint8 (H,W,3). Conversions are counted in `notes`.

    Raises BadImage for what is not one whole, ordinary image; OSError if the disk fails.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadImage("not a regular file")  # opening a pipe would wait for ever
        with path.open("rb") as file:
            head = file.read(512)
            if not head:
                raise BadImage("the file is empty")
            if looks_like_html(head):
                raise BadImage("a web page, not an image")
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of size and odd metadata: both are judged below
                with Image.open(file, formats=DECODERS) as image:
                    return np.asarray(as_rgb(image, notes))
    except BadImage:
        raise
    except FileNotFoundError:
        raise BadImage("the file is missing") from None
    except PermissionError:
        raise BadImage("no permission to read it") from None
    except Image.UnidentifiedImageError:
        raise BadImage("not an image, or of an unknown kind") from None
    except Exception as error:  # decoders meet hostile bytes: whatever they raise is this image's fault
        if isinstance(error, OSError) and error.errno:
            raise
        raise BadImage(str(error) or type(error).__name__) from None


def as_rgb(image: Image.Image, notes: Counter[str]) -> Image.Image:
    """An opened image as RGB, turned upright.

    Rule: grey and 1-bit are repeated over the channels; palettes are looked up; transparency is laid on white; CMYK,
    YCbCr and HSV are converted; EXIF orientation is applied; of a camera's multi-picture file the first is taken.
    Colour profiles are ignored. Refused (BadImage): 16-bit and floating-point greys, animations, more than 40
    megapixels, sides below 8 px, aspects above 20.
    """
    short, long = sorted(image.size)
    if short * long > MAX_PIXELS:
        raise BadImage(f"{image.width} x {image.height} px: more than {MAX_PIXELS // 1_000_000} megapixels")
    if short < MIN_SIDE or long > MAX_ASPECT * short:
        raise BadImage(
            f"{image.width} x {image.height} px: needs sides of {MIN_SIDE} px, an aspect of at most {MAX_ASPECT}"
        )
    if image.format == "MPO":
        notes["first of several pictures taken"] += 1
    elif getattr(image, "is_animated", False):
        raise BadImage(f"{getattr(image, 'n_frames', 2)} frames or pages where one is expected")
    if image.mode not in MODES:
        raise BadImage(f"pixels of kind {image.mode}: convert them to 8-bit grey or RGB first")
    if image.getexif().get(ORIENTATION, 1) not in (0, 1):
        notes["turned upright by EXIF"] += 1
        image = ImageOps.exif_transpose(image)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        notes["transparency laid on white"] += 1
        image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode != "RGB":
        kind = {"1": "1-bit", "L": "grey", "P": "palette"}.get(image.mode, image.mode)
        notes[f"{kind} converted to RGB"] += 1
        image = image.convert("RGB")
    return image
