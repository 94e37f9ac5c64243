"""Whatever can be run can be cited: every paper in the registers, every data set of the catalogue."""

import re
from collections import Counter

import pytest

from sandglass.data.catalog import CATALOG
from sandglass.report.citations import DATA, REGISTERS, citing, numbers, owed, references


def test_every_paper_of_the_registers_has_an_entry() -> None:
    known = {number for entry in references().values() for number in numbers(entry)}
    wanted = {
        f"{kind} {name}: {number}": number
        for kind, register in REGISTERS.items()
        for name in register
        for number in numbers(register.about(name)["paper"])
    }
    assert len(wanted) > 40 and not {what for what, number in wanted.items() if number not in known}


def test_every_data_set_of_the_catalogue_has_entries() -> None:
    assert set(DATA) == set(CATALOG)
    assert {key for keys in DATA.values() for key in keys} <= set(references())


def test_entries_are_whole() -> None:
    entries = references()
    eprints = Counter(number for entry in entries.values() for number in numbers(entry))
    assert set(eprints.values()) == {1}
    for key, entry in entries.items():
        assert re.fullmatch(r"@[a-z]+{" + key + r",\n(  [a-z]+ = {.+},\n)+}", entry), entry
        assert entry.count("{") == entry.count("}") and "title = {" in entry and "author = {" in entry
        if number := numbers(entry):
            assert f"year = {{20{number[0][:2]}}}" in entry  # arXiv's numbers begin with the year


def test_a_study_owes_what_it_ran_and_each_paper_once() -> None:
    def ran(**columns: str) -> dict[str, dict[str, str]]:
        return {"columns": {"data set": "digits", "backbone": "hourglass_c8"} | columns}

    runs = [
        ran(objective="byol"),
        ran(objective="none", auxiliary="drloc+masked_embedding"),
        ran(backbone="hourglass_tiny", attack="pgd"),
        ran(backbone="swin_tiny", attack="pgd_l2"),
        ran(**{"data set": "my birds"}, auxiliary="none"),
    ]
    assert list(owed(runs)) == [
        ("digits", ["digits"]),
        ("byol", ["grill2020"]),
        ("drloc", ["liu2021"]),
        ("masked_embedding", ["he2021"]),
        ("hourglass_c8", ["nawrot2021"]),
        ("hourglass_tiny", ["nawrot2021"]),
        ("swin_tiny", ["timm"]),
        ("pgd", ["madry2017"]),
        ("pgd_l2", ["madry2017"]),
    ]
    section = citing(runs)
    cited = {what: source for what, source in section.tables[0].rows}
    assert cited["hourglass_c8, hourglass_tiny"].startswith("Nawrot et al. (2021). Hierarchical Transformers")
    assert cited["digits"] == "Alpaydin and Kaynak (1998). Optical Recognition of Handwritten Digits."
    ((_, text),) = section.copies
    assert Counter(re.findall(r"@[a-z]+{(\w+),", text)) == Counter(
        ["sandglass", "digits", "grill2020", "liu2021", "he2021", "nawrot2021", "timm", "madry2017"]
    )


@pytest.mark.parametrize("columns", [{}, {"objective": "none", "backbone": ""}])
def test_a_study_of_nothing_owes_nothing(columns: dict[str, str]) -> None:
    assert not citing([{"columns": columns}])
