"""What a page is made of: sections, and the tables in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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


@dataclass
class Section:
    """One heading of the page. `charts` are (caption, svg), `sheets` are (caption, columns of pictures)."""

    id: str
    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: list[tuple[str, Markup]] = field(default_factory=list)
    sheets: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.tables or self.charts or self.sheets)
