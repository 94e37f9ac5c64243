"""params.yaml is read by the rules a person expects, and every mistake has a line and a remedy."""

from pathlib import Path

import pytest

from sandglass.config import load, resolve
from sandglass.errors import Exit, Problem
from sandglass.registry import Register
from sandglass.strict_yaml import parse

SMALL = """\
study: tiny
studies:
  tiny:
    data: digits
    size: 32
    backbone: toy
    seeds: [0]
    pretrain: {objective: byol, epochs: 1}
"""


def read(tmp_path: Path, text: str):
    file = tmp_path / "params.yaml"
    file.write_text(text)
    return load(file)


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(Problem) as caught:
        read(tmp_path, text)
    assert caught.value.exit == Exit.CONFIG
    return caught.value.screen()


def test_shipped_params_are_valid(repo):
    params = load(repo / "params.yaml")
    assert params.study in params.studies


def test_scalars_are_what_they_look_like():
    values, _ = parse("a: 1e-4\nb: 5.\nc: -3\nd: true\ne: text\nf: null\ng: '1e-4'\nh: 1_000\ni: .5\nj: 2024.1.x", "f")
    assert values == dict(a=1e-4, b=5.0, c=-3, d=True, e="text", f=None, g="1e-4", h=1000, i=0.5, j="2024.1.x")
    assert isinstance(values["a"], float) and isinstance(values["c"], int)


@pytest.mark.parametrize(
    "word",
    ["NO", "yes", "on", "Off", "010", "12:30:45", "2024-01-01", "0x1F", ".inf", ".nan", "!!python/name:os.system x"],
)
def test_surprising_scalars_are_refused(word):
    with pytest.raises(Problem) as caught:
        parse(f"first: 1\nkey: {word}\n", "params.yaml")
    assert "params.yaml:2" in caught.value.screen()
    assert caught.value.exit == Exit.CONFIG


def test_quoted_surprises_are_text():
    assert parse('key: "NO"', "f")[0] == {"key": "NO"}


def test_duplicate_key_names_both_lines():
    with pytest.raises(Problem) as caught:
        parse("lr: 1\nother: 2\nlr: 3\n", "p.yaml")
    assert "p.yaml:3" in caught.value.screen() and "line 1" in caught.value.screen()


def test_alias_bomb_is_refused_without_expansion():
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi")
    )
    with pytest.raises(Problem, match="aliases"):
        parse(bomb, "f")


def test_syntax_error_has_its_line():
    with pytest.raises(Problem) as caught:
        parse("a: 1\nb: [1, 2\nc: 3\n", "p.yaml")
    assert "p.yaml:3" in caught.value.screen()


def test_unknown_key_has_line_and_suggestion(tmp_path):
    screen = refused(tmp_path, SMALL + "pretrain:\n  epochs: 3\n  learning_rate_per_256: 1e-3\n  epoch: 4\n")
    assert "params.yaml:12" in screen and "did you mean epochs" in screen
    assert "params.yaml:11" in screen, "every mistake is on the screen, not only the first"


@pytest.mark.parametrize(
    ("section", "hint"),
    [
        ("pretrain: {epochs: 0}", "greater than or equal to 1"),
        ("pretrain: {lr_per_256: -1.0}", "greater than 0"),
        ("pretrain: {lr_per_256: '1e-4'}", "valid number"),
        ("pretrain: {epochs: 2.5}", "valid integer"),
        ("pretrain: {optimizer: adm}", "adamw"),
        ("data: {val_fraction: 1.0}", "less than 1"),
        ("finetune: {labels: 1.5}", "less than or equal to 1"),
        ("objectives: {byol: {momentum: 1.5}}", "outside 0 .. 1"),
        ("objectives: {byol: {momentun: 0.9}}", "did you mean momentum or momentum_end?"),
        ("objectives: {boyl: {momentum: 0.9}}", "did you mean byol?"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path, section, hint):
    screen = refused(tmp_path, SMALL + section + "\n")
    assert hint in screen and "params.yaml:9" in screen


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        ("data: digits", "data: digit", "did you mean digits?"),
        ("objective: byol", "objective: boyl", "did you mean byol?"),
        ("epochs: 1", "epochs: [1, 0]", "greater than or equal to 1"),
        ("epochs: 1", "epoch: 1", "did you mean epochs"),
        ("seeds: [0]", "seeds: []", "at least one"),
        ("seeds: [0]", "seeds: [1, 1]", "repeated seeds"),
        ("seeds: [0]", "seeds: [-1]", "greater than or equal to 0"),
        ("study: tiny", "study: tinny", "did you mean tiny?"),
    ],
)
def test_study_mistakes_are_found(tmp_path, old, new, hint):
    assert hint in refused(tmp_path, SMALL.replace(old, new))


def test_missing_file(tmp_path):
    with pytest.raises(Problem) as caught:
        load(tmp_path / "params.yaml")
    assert caught.value.exit == Exit.MISSING


def test_settings_are_frozen(tmp_path):
    params = read(tmp_path, SMALL)
    with pytest.raises(Exception, match="frozen"):
        params.pretrain.epochs = 3


def test_resolve_orders_default_preset_override():
    from sandglass.auxiliary import AUXILIARY

    plain = resolve(AUXILIARY, "drloc", {"preset": "thesis"})
    assert plain["reduction"] == "sum"
    changed = resolve(AUXILIARY, "drloc", {"preset": "thesis", "reduction": "mean"})
    assert changed == plain | {"reduction": "mean"}


def test_register_reads_settings_without_importing_the_file():
    broken = Register("objective", {"x": "sandglass.objectives.missing:X"})
    with pytest.raises(Problem):
        broken.declared("x")
    with pytest.raises(Problem, match="unknown objective"):
        broken.get("y")
