"""What a study owes: the paper of each method it ran and of each data set, from the registers and references.bib."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from sandglass.auxiliary import AUXILIARY
from sandglass.backbones import BACKBONES
from sandglass.evaluate import ATTACKS, PROBES
from sandglass.objectives import OBJECTIVES
from sandglass.report.parts import Section, Table

REGISTERS = {  # by the column of a run that names an idea
    "objective": OBJECTIVES,
    "auxiliary": AUXILIARY,
    "backbone": BACKBONES,
    "probe": PROBES,
    "attack": ATTACKS,
}
DATA = {  # of the catalogue -> entries of references.bib
    "digits": ["digits"],
    "cifar10": ["cifar"],
    "cifar100": ["cifar"],
    "stl10": ["stl10", "imagenet"],
    "imagenette": ["imagenette", "imagenet"],
    "imagenette_v1": ["imagenette", "imagenet"],
    "imagenette160": ["imagenette", "imagenet"],
    "imagewoof": ["imagenette", "imagenet"],
    "imagewoof160": ["imagenette", "imagenet"],
    "nabirds": ["nabirds"],
}


def citing(runs: list[dict[str, Any]]) -> Section:
    """A table of what each paper is cited for, and all entries as BibTeX."""
    section = Section("citing", "Citing")
    by_key: dict[str, list[str]] = {}
    for what, keys in owed(runs):
        for key in keys:
            by_key.setdefault(key, []).append(what)
    if by_key:
        entries = references()
        rows = [[", ".join(whats), _cited(entries[key])] for key, whats in by_key.items()]
        section.tables.append(Table(["used", "source"], 2, rows))
        text = "\n\n".join(entries[key] for key in ["sandglass", *by_key])
        section.copies.append((f"BibTeX of these {len(by_key)} and of Sandglass", text))
    return section


def owed(runs: list[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """(what, keys of references.bib), each once, in the order of REGISTERS, data first."""
    columns = [run["columns"] for run in runs]
    for name in dict.fromkeys(str(one.get("data set")) for one in columns):
        if name in DATA:
            yield name, DATA[name]
    by_paper = {number: key for key, entry in references().items() for number in numbers(_field(entry, "eprint"))}
    for column, register in REGISTERS.items():
        words = dict.fromkeys(word for one in columns for word in str(one.get(column, "")).split("+"))
        for name in words:
            if name in register:
                keys = [by_paper[number] for number in numbers(register.about(name)["paper"])]
                yield name, keys
            elif column == "backbone" and name:
                yield name, ["timm"]


def numbers(text: str) -> list[str]:
    """The arXiv numbers in a text, such as '1706.06083'."""
    return re.findall(r"\b\d{4}\.\d{4,5}\b", text)


@cache
def references() -> dict[str, str]:
    """references.bib, entry by entry."""
    text = files("sandglass.report").joinpath("references.bib").read_text(encoding="utf-8")
    return {entry.partition("{")[2].partition(",")[0]: entry for entry in text.strip().split("\n\n")}


def _field(entry: str, name: str) -> str:
    found = re.search(rf"^  {name} = {{(.*)}},$", entry, flags=re.MULTILINE)
    return found[1] if found else ""


def _cited(entry: str) -> str:
    """'Grill et al. (2020). Bootstrap Your Own Latent ... arXiv 2006.07733.'"""
    authors = _field(entry, "author").split(" and ")
    first = authors[0].rpartition(" ")[2]
    others = {1: "", 2: f" and {authors[-1].rpartition(' ')[2]}"}
    who = first + others.get(len(authors), " et al.")
    number = _field(entry, "eprint")
    title = re.sub(r"[{}\\']", "", _field(entry, "title"))
    return f"{who} ({_field(entry, 'year')}). {title}." + (f" arXiv {number}." if number else "")
