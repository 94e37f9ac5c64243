"""What every registered idea has, whatever its shelf: a file, an explanation, settings that are legal as declared."""

import json
import subprocess
import sys

import pytest

from sandglass.config import registers, resolve
from sandglass.errors import Problem

ROWS = [(section, name) for section, register in registers().items() for name in register]


@pytest.mark.parametrize(("section", "name"), ROWS)
def test_file_explains_itself_and_its_defaults_are_legal(section, name):
    register = registers()[section]
    about = register.about(name)
    assert len(about["about"]) > 20 and "\n" not in about["about"] and about["about"][-1] in ".;:"
    defaults = resolve(register, name, {})
    assert resolve(register, name, defaults) == defaults
    for preset in register.presets(name):
        assert resolve(register, name, {"preset": preset}).keys() == defaults.keys()
    with pytest.raises(Problem, match="unknown setting"):
        resolve(register, name, {"no_such_setting": 1})
    assert register.get(name) is not None


@pytest.mark.parametrize("what", ["objectives", "backbones", "views", "datasets", "auxiliary", "probes", "attacks"])
def test_list_shows_every_name(what):
    words = [sys.executable, "-m", "sandglass", "list", what]
    rows = json.loads(subprocess.run([*words, "--json"], check=True, capture_output=True, text=True).stdout)
    text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert rows and all(row["name"] in text and row["about"] for row in rows)
    if what in registers():
        assert [row["name"] for row in rows] == list(registers()[what])


def test_list_of_nothing_known_is_a_usage_error():
    done = subprocess.run([sys.executable, "-m", "sandglass", "list", "probe"], capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean probes" in done.stderr
