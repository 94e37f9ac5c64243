"""Tables leave the page whole: CSV read back, LaTeX against pandas."""

import base64
import csv
import io

import pandas as pd

from sandglass.report.copies import as_csv, as_latex, copies
from sandglass.report.parts import Table


def test_csv_is_read_back_as_it_is_shown() -> None:
    table = Table(["model, of", "n", "accuracy"], 1, [['a "b", c', "3", "93.1 ± 0.4\n92.0 – 94.2"], ["d", "3", "−1.2"]])
    rows = list(csv.reader(io.StringIO(as_csv(table))))
    assert rows == [
        ["model, of", "n", "accuracy"],
        ['a "b", c', "3", "93.1 ± 0.4; 92.0 – 94.2"],
        ["d", "3", "-1.2"],
    ]


def test_no_name_is_a_formula_and_numbers_stay_numbers() -> None:
    table = Table(["name", "difference"], 1, [["=HYPERLINK(1)", "+1.2, p = 0.25"], ["\t=1", "−1"], ["@x", "+3"]])
    cells = [row[0] for row in csv.reader(io.StringIO(as_csv(table)))][1:]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t"))]
    assert [row[1] for row in csv.reader(io.StringIO(as_csv(table)))][1:] == ["+1.2, p = 0.25", "-1", "+3"]


def test_latex_is_that_of_pandas_where_both_speak_ascii() -> None:
    rows = [["a_b & c", "50 %"], ["{x} $y^2$ #1", "~\\"], ["plain", "1.5"]]
    theirs = pd.DataFrame(rows, columns=["na_me", "value"]).to_latex(index=False, escape=True, column_format="lr")

    def spoken(text: str) -> list[str]:
        for name in ("asciicircum", "asciitilde", "backslash"):
            text = text.replace(f"\\text{name} ", f"\\text{name}{{}}")
        return text.split("\n")

    assert spoken(as_latex(Table(["na_me", "value"], 1, rows))) == spoken(theirs)


def test_latex_has_no_character_that_an_engine_of_eight_bits_does_not_know() -> None:
    text = as_latex(Table(["ε → x", "n"], 1, [["−1 ± 2\n3 – 4", "p ≤ 0.05 × 2"]], caption="Line\nbreak"))
    assert text.isascii() and r"$-$1 $\pm$ 2; 3 -- 4" in text and text.startswith("% Line; break\n")


def test_an_address_carries_the_file() -> None:
    table = Table(["a", "b"], 1, [["x", "1"]])
    found = {name: base64.b64decode(address.partition(",")[2]).decode() for _, name, address in copies(table, "t-1")}
    assert found == {"t-1.csv": as_csv(table), "t-1.tex": as_latex(table)}
