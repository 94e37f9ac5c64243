"""Registers: name -> the file that holds the idea. One line adds one; nothing is imported before it is used.

A register can be read without importing what it lists (and so without torch): the names are keys, the settings,
presets, paper and first sentence of a file are literals in its text. That is what planning and `sandglass list` use.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from sandglass.errors import Exit, Problem, did_you_mean

LITERALS = {"SETTINGS", "PRESETS", "PAPER", "ABOUT", "VIEWS", "KIND", "BACKBONES", "TRAIN", "FINETUNE", "CROPS"}

# A setting is declared beside the code it steers:  name: default | (default, low, high) | (default, {choices})
Declared = dict[str, Any]


class Register:
    """The ideas of one kind. `rows` maps a name to 'module:attribute'."""

    def __init__(self, kind: str, rows: dict[str, str]) -> None:
        self.kind = kind
        self.rows = rows

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def _row(self, name: str) -> tuple[str, str]:
        if name not in self.rows:
            raise Problem("C-210", Exit.CONFIG, f"unknown {self.kind} '{name}'", fix=did_you_mean(name, self.rows))
        module, _, attribute = self.rows[name].partition(":")
        return module, attribute

    def get(self, name: str) -> Any:
        """The class or function registered under `name`; imports its file."""
        module, attribute = self._row(name)
        return getattr(importlib.import_module(module), attribute)

    def declared(self, name: str) -> Declared:
        """The file's SETTINGS: each setting with its default and its range or choices.

        A file that holds several ideas (the view recipes) has one such table per name; one that is `like` another says
        only how it differs.
        """
        settings = literals(self._row(name)[0]).get("SETTINGS", {})
        if not isinstance(settings.get(name), dict):
            return dict(settings)
        table = dict(settings[name])
        return self.declared(table.pop("like")) | table if "like" in table else table

    def presets(self, name: str) -> dict[str, dict[str, Any]]:
        """The file's PRESETS: named sets of values, `preset: NAME` in params.yaml."""
        return dict(literals(self._row(name)[0]).get("PRESETS", {}))

    def about(self, name: str) -> dict[str, Any]:
        """What `sandglass list` shows: name, first sentence, paper, settings and presets."""
        texts = literals(self._row(name)[0])
        return {
            "name": name,
            "about": texts.get("ABOUT", {}).get(name, texts["__doc__"]),
            "paper": texts.get("PAPER", ""),
            "settings": {key: default(row) for key, row in self.declared(name).items()},
            "presets": sorted(self.presets(name)),
        } | {
            key.lower(): texts[key]
            for key in ("VIEWS", "KIND", "BACKBONES", "TRAIN", "FINETUNE", "CROPS")
            if key in texts
        }


def default(row: Any) -> Any:
    """The default of one declared setting."""
    return row[0] if isinstance(row, tuple) else row


@cache
def literals(module: str) -> dict[str, Any]:
    """Literal assignments at the top of a module's text, read without importing it."""
    package, _, leaf = module.rpartition(".")
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    text = next((p.read_text() for p in (Path(place) / f"{leaf}.py" for place in places) if p.exists()), None)
    if text is None:
        raise Problem("C-211", Exit.INTERNAL, f"registered module {module} has no file")
    tree = ast.parse(text)
    found: dict[str, Any] = {"__doc__": (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")}
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id in LITERALS:
                found[target.id] = ast.literal_eval(node.value)
    return found
