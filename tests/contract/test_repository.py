"""The files around the package agree with each other."""

import json
import re

import yaml

from sandglass.config import Params


def locked(repo):
    pins = {}
    for line in (repo / "requirements.lock").read_text().splitlines():
        if found := re.match(r"([A-Za-z0-9_.-]+)==([^ ;\\]+)(.*)", line):
            pins.setdefault(found[1].lower(), set()).add(found[2])
    return pins


def test_lock_is_exact_hashed_and_names_no_place(repo):
    text = (repo / "requirements.lock").read_text()
    assert "://" not in text and "--index" not in text and "--find-links" not in text
    assert len(re.findall(r"^[A-Za-z0-9]", text, re.M)) == len(re.findall(r"^[A-Za-z0-9_.-]+==", text, re.M))
    for block in re.split(r"\n(?=[A-Za-z0-9])", text.strip()):
        assert "--hash=sha256:" in block, block.splitlines()[0]


def test_environments_equal_the_lock(repo):
    pins = locked(repo)
    for file in (repo / "envs").glob("*.yaml"):
        rows = yaml.safe_load(file.read_text())["dependencies"][-1]["pip"]
        assert rows
        for row in rows:
            name, _, version = row.partition("==")
            assert version in pins[name.lower()], f"{file.name}: {row}"


def test_schema_is_what_the_settings_are(repo):
    shipped = json.loads((repo / "workflow" / "schemas" / "params.schema.json").read_text())
    assert shipped == json.loads(json.dumps(Params.model_json_schema())), "run `make schema`"


def test_dvc_stages_are_the_phases_and_see_every_setting_and_all_code(repo):
    from sandglass.study import STAGES

    stages = yaml.safe_load((repo / "dvc.yaml").read_text())["stages"]
    assert tuple(stages) == STAGES
    for name, stage in stages.items():
        assert stage["params"] == [{"params.yaml": None}] and "src/sandglass" in stage["deps"], name
        assert stage["cmd"] == f"sh workflow/phase.sh {name}"
        (out,) = stage["outs"]
        assert out == {f"results/{name}": {"persist": True}}


def test_every_command_the_readme_names_exists(repo):
    text = (repo / "README.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", (repo / "Makefile").read_text(), re.M))
    named = set(re.findall(r"^    make ([a-z]+)", text, re.M))
    assert named and named <= targets
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (repo / link).exists(), link
