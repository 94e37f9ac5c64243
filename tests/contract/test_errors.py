"""Every error code has its place in docs/errors.md, and the screen leads there."""

import ast
import re

from sandglass.errors import Exit, Problem

CODE = r"[A-Z]-\d{3}"


def codes(repo):
    """Every literal of a code's form in the package, wherever it stands: some are passed on as an argument."""
    found = set()
    for file in (repo / "src" / "sandglass").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(CODE, node.value):
                found.add(node.value)
    return found


def test_the_page_has_every_code_once_and_no_other(repo):
    headings = re.findall(rf"^### ({CODE})$", (repo / "docs" / "errors.md").read_text(), re.M)
    assert len(headings) == len(set(headings))
    assert {"D-104", "N-101", "R-120", "T-199"} <= codes(repo), "codes of every way to raise them are seen"
    assert set(headings) == codes(repo)


def test_every_code_says_what_it_means_and_how_to_mend_it(repo):
    text = (repo / "docs" / "errors.md").read_text()
    for section in re.split(r"^### ", text, flags=re.M)[1:]:
        code, means, mend = (part.strip() for part in section.partition("\n## ")[0].strip().split("\n\n"))
        assert re.fullmatch(CODE, code) and len(means) > 15, code
        assert mend.startswith("*Mend it:* ") and len(mend) > 20, code


def test_the_screen_names_the_place():
    screen = Problem("D-104", Exit.CONTENT, "3 images cannot be used").screen()
    assert screen.splitlines()[-1].split() == ["page", "docs/errors.md#d-104"]
