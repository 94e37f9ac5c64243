"""A table of the page as CSV and as LaTeX, each in a link that carries it: nothing is fetched, and no script runs."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Iterator

from sandglass.report.collect import FORMULA
from sandglass.report.parts import Table

LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "−": "$-$",
        "–": "--",
        "×": r"$\times$",
        "ε": r"$\varepsilon$",
        "→": r"$\to$",
        "≤": r"$\le$",
        "\N{NO-BREAK SPACE}": "~",
    }
)
PLAIN = str.maketrans({"−": "-", "\N{NO-BREAK SPACE}": " "})


def copies(table: Table, name: str) -> Iterator[tuple[str, str, str]]:
    """(form, name of the file, address) of each copy."""
    for form, kind, text in (("CSV", "csv", as_csv(table)), ("LaTeX", "tex", as_latex(table))):
        data = base64.b64encode(text.encode()).decode()
        yield form, f"{name}.{kind}", f"data:text/{'csv' if kind == 'csv' else 'x-tex'};charset=utf-8;base64,{data}"


def as_csv(table: Table) -> str:
    """A line for each row, as it is shown; lines within a cell are joined. A name that a spreadsheet would run gets a
    quotation mark in front."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_line(cell) for cell in table.head)
    for row in table.rows:
        names = [f"'{cell}" if cell.startswith(FORMULA) else cell for cell in row[: table.names]]
        writer.writerow([_line(cell).translate(PLAIN) for cell in (*names, *row[table.names :])])
    return file.getvalue()


def as_latex(table: Table) -> str:
    """For the package booktabs."""
    columns = "l" * table.names + "r" * (len(table.head) - table.names)
    lines = [" & ".join(_line(cell).translate(LATEX) for cell in row) + r" \\" for row in (table.head, *table.rows)]
    caption = [f"% {_line(text)}" for text in (table.folded, table.caption) if text]
    rule = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([*caption, *rule, r"\end{tabular}", ""])


def _line(cell: str) -> str:
    return re.sub(r"\s*[\r\n]+\s*", "; ", cell.strip())
