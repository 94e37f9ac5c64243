"""YAML by the rules a person expects.

`1e-4` is a number, only `true` and `false` are booleans, and what YAML 1.1 would turn into something else unasked
(`NO`, `010`, `12:30:45`, a date, a repeated key, an alias) is an error. Nothing in a file is ever run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from sandglass.errors import Exit, Problem

Path_ = tuple[str | int, ...]
Lines = dict[Path_, int]

_NUMBER = re.compile(r"[-+]?(\d[\d_]*)?(\.\d*)?([eE][-+]?\d+)?")
_SURPRISES = {  # pattern of an unquoted word -> what YAML 1.1 would make of it
    re.compile(r"(y|Y|yes|Yes|YES|n|N|no|No|NO|on|On|ON|off|Off|OFF)"): "true or false",
    re.compile(r"[-+]?0\d+"): "an octal number",
    re.compile(r"[-+]?\d+(:[0-5]?\d)+(\.\d*)?"): "a number in base 60",
    re.compile(r"\d{4}-\d\d?-\d\d?.*"): "a date",
    re.compile(r"[-+]?0[xXbBoO][0-9a-fA-F_]+"): "a number in another base",
    re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"): "infinity or not-a-number",
}


def read(path: Path) -> tuple[Any, Lines]:
    """`parse` of a file of at most 1 MB. Raises Problem C-101 (66), C-102 (78), C-103 (78)."""
    if not path.is_file():
        raise Problem("C-101", Exit.MISSING, f"no {path}", fix="run from the repository's root, or give --params FILE")
    if path.stat().st_size > 1_000_000:
        raise Problem("C-102", Exit.CONFIG, f"{path} is larger than 1 MB", why="a settings file this long is a mistake")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        where = f"{path}:{path.read_bytes()[: error.start].count(10) + 1}"
        raise Problem("C-103", Exit.CONFIG, "not UTF-8 text", where=where, fix="save it as UTF-8") from None
    return parse(text, str(path))


def parse(text: str, file: str) -> tuple[Any, Lines]:
    """YAML text -> plain Python values and the line of every value. Raises Problem C-103 (78)."""

    def wrong(node: Any, what: str, fix: str = "") -> Problem:
        mark = getattr(node, "start_mark", None) or node
        return Problem("C-103", Exit.CONFIG, what, where=f"{file}:{mark.line + 1}:{mark.column + 1}", fix=fix)

    lines: Lines = {}

    def build(node: yaml.Node, at: Path_) -> Any:
        lines[at] = node.start_mark.line + 1
        if node.tag.startswith("tag:yaml.org,2002:python") or node.tag.startswith("!"):
            raise wrong(node, f"tag {node.tag} is not allowed in settings")
        if isinstance(node, yaml.MappingNode):
            table: dict[str, Any] = {}
            first: dict[str, int] = {}
            for key_node, value_node in node.value:
                key = build(key_node, (*at, "?"))
                if not isinstance(key, str):
                    raise wrong(key_node, f"key {key_node.value!r} is not text", fix=f'write "{key_node.value}"')
                if key in table:
                    raise wrong(
                        key_node, f"key '{key}' twice", fix=f"it is already on line {first[key]}; keep one of them"
                    )
                first[key] = key_node.start_mark.line + 1
                table[key] = build(value_node, (*at, key))
                lines[(*at, key)] = first[key]
            return table
        if isinstance(node, yaml.SequenceNode):
            return [build(item, (*at, i)) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        word = node.value
        if node.style in ("'", '"', "|", ">"):
            return word
        if word in ("", "null", "~"):
            return None
        if word in ("true", "false"):
            return word == "true"
        for pattern, reading in _SURPRISES.items():
            if pattern.fullmatch(word):
                raise wrong(node, f"{word!r} would be read as {reading}", fix=f'write "{word}" if text is meant')
        if re.search(r"\d", word) and _NUMBER.fullmatch(word):
            return int(word) if re.fullmatch(r"[-+]?\d[\d_]*", word) else float(word)
        return word

    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise wrong(event, "aliases (*name) are not allowed in settings", fix="write the value out")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        shown = text.splitlines()[line - 1].rstrip()[:100] if mark and mark.line < len(text.splitlines()) else ""
        raise Problem(
            "C-103", Exit.CONFIG, f"not valid YAML: {error.problem}", where=f"{file}:{line}: {shown}"
        ) from None
    except RecursionError:
        raise Problem("C-103", Exit.CONFIG, "brackets within brackets without end", where=file) from None
    if not isinstance(node, yaml.MappingNode):
        raise Problem("C-103", Exit.CONFIG, f"{file} does not hold keys and values", where=f"{file}:1")
    return build(node, ()), lines
