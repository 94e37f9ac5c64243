"""Charts take their colours from the page: each is declared for light paper as it is drawn, and can be read on both."""

import re
from importlib.resources import files

import pytest

from sandglass.report import figures

SHEETS = re.findall(r":root {(.*)}", files("sandglass.report").joinpath("templates/style.css").read_text())
LIGHT, DARK = (dict(re.findall(r"--(\w+): (#\w{6});", sheet)) for sheet in SHEETS)


def luminance(colour: str) -> float:
    """Relative, of WCAG 2."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted(map(luminance, (first, second)))
    return (high + 0.05) / (low + 0.05)


def test_what_is_drawn_is_what_the_light_page_declares() -> None:
    drawn = {name: colour for colour, theme in figures.THEMED.items() for name in re.findall(r"--(\w+)", theme)}
    known = {name: LIGHT[name] for name in drawn}
    assert known | {"faint": drawn["faint"]} == drawn  # ticks are a shade lighter than words
    assert set(LIGHT) == set(DARK)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_words_can_be_read(theme: dict[str, str]) -> None:
    for name in ("ink", "faint", "accent", "wrong"):
        assert min(contrast(theme[name], theme[ground]) for ground in ("paper", "wash")) >= 4.5, name  # WCAG 2, AA


def test_marks_can_be_seen_on_dark_paper() -> None:
    named = {colour: name for colour, text in figures.THEMED.items() for name in re.findall(r"--(\w+)", text)}
    for colour in (*figures.COLOURS, *figures.CLASSES):
        shown = DARK[named[colour.lower()]] if colour.lower() in named else colour
        assert contrast(shown, DARK["paper"]) >= 3, colour  # WCAG 2, graphical objects
