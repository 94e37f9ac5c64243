"""What a page is made of: sections, and the tables in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from markupsafe import Markup


@dataclass
class Table:
    """The `names` leading columns are text, the others numbers. `folded`: the words that unfold it."""

    head: list[str]
    names: int
    rows: list[list[str]]
    caption: str = ""
    folded: str = ""
    notes: list[str] = field(default_factory=list)


class Picture(NamedTuple):
    """What it shows, its address, and whether it is framed as wrong."""

    name: str
    address: str
    wrong: bool = False


@dataclass
class Gallery:
    """A table of pictures: a heading for each column, and in each cell of a row some pictures."""

    caption: str
    head: list[str]
    rows: list[list[list[Picture]]]


@dataclass
class Section:
    """One heading of the page. `charts` are (caption, svg), `sheets` are (caption, columns of pictures),
    `copies` are (the words that unfold it, text to be copied)."""

    id: str
    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: list[tuple[str, Markup]] = field(default_factory=list)
    sheets: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list)
    copies: list[tuple[str, str]] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.tables or self.charts or self.sheets or self.galleries)
