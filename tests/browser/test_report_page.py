"""The report in a real Chromium: on a phone, in the dark, in print, and a copy of a table that is really saved.

Pictures: build/screenshots/.
"""

import runpy
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandglass.report.page import write

from .chromium import Chromium

pytestmark = pytest.mark.browser

INK = """getComputedStyle(document.querySelector("figure svg text")).fill"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, repo: Path) -> Path:
    made_up = runpy.run_path(str(repo / "tests" / "unit" / "report" / "conftest.py"))  # as the page's own tests have it
    study = made_up["finished"](tmp_path_factory.mktemp("study"))
    folder = study.root / "results" / "report" / "demo"
    return write(study.root, study.about, study.runs, folder, made_up["PROVENANCE"])


@pytest.fixture
def browser(page: Path, tmp_path: Path) -> Iterator[Chromium]:
    with Chromium(tmp_path / "profile") as browser:
        yield browser


def opened(browser: Chromium, page: Path, width: int, **media: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    scheme = {"name": "prefers-color-scheme", "value": media.get("scheme", "light")}
    browser.call("Emulation.setEmulatedMedia", media=media.get("media", ""), features=[scheme])
    browser.open(page.as_uri())
    browser.wait("needs no network")


def brightness(colour: object) -> float:
    """Of 'rgb(r, g, b)', in [0, 1]."""
    return sum(map(int, str(colour).partition("(")[2].rstrip(")").split(",")[:3])) / 765


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(browser: Chromium, page: Path, width: int, repo: Path) -> None:
    opened(browser, page, width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.picture(repo / "build" / "screenshots" / f"report-{width}.png")


def test_nothing_is_fetched_and_no_picture_is_broken(browser: Chromium, page: Path) -> None:
    opened(browser, page, 1280)
    assert browser.run("performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0
    assert browser.run("document.images.length") > 20
    assert browser.run("[...document.images].filter(image => !image.complete || !image.naturalWidth).length") == 0


def test_paper_is_dark_and_ink_light_for_those_who_ask_for_it(browser: Chromium, page: Path, repo: Path) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    seen = {}
    for scheme in ("light", "dark"):
        opened(browser, page, 1280, scheme=scheme)
        seen[scheme] = [brightness(browser.run(what)) for what in (ground, INK)]
    browser.picture(repo / "build" / "screenshots" / "report-dark.png")
    assert seen["light"][0] == 1 and seen["light"][1] < 0.25
    assert seen["dark"][0] < 0.15 and seen["dark"][1] > 0.85, "text within charts too"


def test_print_is_dark_on_light_and_leaves_out_what_cannot_be_clicked(browser: Chromium, page: Path) -> None:
    opened(browser, page, 800, media="print", scheme="dark")
    assert brightness(browser.run(INK)) < 0.25
    shown = "[...document.querySelectorAll('nav, .copies, details:not([open])')].filter(e => e.offsetHeight).length"
    assert browser.run(shown) == 0


def test_a_copy_of_a_table_is_saved_without_a_network(browser: Chromium, page: Path, tmp_path: Path) -> None:
    opened(browser, page, 1280)
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.run("document.querySelector('#finetuned .copies a[download$=\".csv\"]').click()")
    file = tmp_path / "finetuned-1.csv"
    for _ in range(100):
        if file.is_file() and file.stat().st_size:
            break
        time.sleep(0.1)
    lines = file.read_text().splitlines()
    assert lines[0].startswith("init,auxiliary,n,") and len(lines) == 9


def test_a_reader_of_the_screen_finds_landmarks_and_names(browser: Chromium, page: Path) -> None:
    opened(browser, page, 1280)
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = [node["role"]["value"] for node in tree if not node.get("ignored")]
    assert {"banner", "main", "navigation", "contentinfo"} <= set(roles)
    pictures = [node for node in tree if node.get("role", {}).get("value") in ("image", "img") and not node["ignored"]]
    assert len(pictures) > 20 and all(node.get("name", {}).get("value") for node in pictures)
