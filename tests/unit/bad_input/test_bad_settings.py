"""Wrong settings and wrong commands: one screen, exit code 78 (2 for a command), and nothing is begun."""

import pytest

from .conftest import contents

TOY = """\
study: toy
engine: {device: cpu}
studies:
  toy: {data: digits, size: 32, backbone: toy, seeds: [0], pretrain: {epochs: 1}, finetune: {epochs: 1}, attack: {}}
"""


def changed(old, new):
    assert old in TOY
    return TOY.replace(old, new)


def appended(text):
    return f"{TOY}{text}\n"


SETTINGS = {  # what is wrong -> the file, and words of the screen
    "a tab": (appended("\tx: 1"), ["C-103", "not valid YAML", "params.yaml:5: \tx: 1"]),
    "an open bracket": ("a: [1\nb: 2\n", ["C-103", "params.yaml:2"]),
    "brackets without end": ("a: " + "[" * 20_000 + "]" * 20_000, ["C-103", "brackets within brackets"]),
    "nothing": ("", ["C-103", "does not hold keys and values"]),
    "a list": ("- 1\n", ["C-103", "does not hold keys and values"]),
    "other bytes than UTF-8": (TOY.encode() + b"# caf\xe9\n", ["C-103", "not UTF-8 text", "params.yaml:5"]),
    "more than 1 MB": (appended("#" * 1_000_000), ["C-102", "larger than 1 MB"]),
    "an alias": (appended("report: &a {title: *a}"), ["C-103", "aliases (*name) are not allowed"]),
    "a Python object": (
        appended("report: {title: !!python/object/apply:os.system [touch canary]}"),
        ["C-103", "not allowed in settings", "params.yaml:5"],
    ),
    "an unknown key": (changed("engine:", "engin:"), ["C-110", "params.yaml:2", "did you mean engine?"]),
    "an unknown key of a stage": (
        changed("finetune: {", "finetune: {learing_rate: 1, "),
        ["C-110", "params.yaml:4", "studies.toy.finetune.learing_rate", "lr_per_256"],
    ),
    "epochs and steps": (changed("finetune: {", "finetune: {steps: 5, "), ["C-110", "unknown key", "epochs?"]),
    "a key twice": (appended("study: b"), ["C-103", "key 'study' twice", "params.yaml:5", "already on line 1"]),
    "NO": (changed("digits", "NO"), ["C-103", "'NO' would be read as true or false", 'write "NO"']),
    "010": (changed("[0]", "[010]"), ["C-103", "octal"]),
    "12:30:45": (changed("finetune: {epochs: 1", "finetune: {epochs: 12:30:45"), ["C-103", "base 60"]),
    "a rate of 0": (changed("pretrain: {", "pretrain: {lr_per_256: 0, "), ["C-110", "greater than 0"]),
    "a rate without end": (changed("pretrain: {", "pretrain: {lr_per_256: .inf, "), ["C-103", "infinity"]),
    "a rate that overflows": (changed("pretrain: {", "pretrain: {lr_per_256: 1e999, "), ["C-110", "finite"]),
    "a negative decay": (changed("pretrain: {", "pretrain: {weight_decay: -1, "), ["C-110", "-1 should be greater"]),
    "no seeds": (changed("[0]", "[]"), ["C-110", "studies.toy.seeds", "at least one"]),
    "a seed twice": (changed("[0]", "[0, 0]"), ["C-110", "repeated seeds"]),
    "a negative seed": (changed("[0]", "[-1]"), ["C-110", "studies.toy.seeds.0", "-1"]),
    "half a seed": (changed("[0]", "[0.5]"), ["C-110", "valid integer"]),
    "no labels": (changed("finetune: {", "finetune: {labels: 0, "), ["C-110", "labels: 0 should be greater than 0"]),
    "1.5 of the labels": (changed("finetune: {", "finetune: {labels: 1.5, "), ["C-110", "less than or equal to 1"]),
    "labels in per cent": (changed("finetune: {", "finetune: {labels: 10%, "), ["C-110", "'10%'", "valid number"]),
    "no epochs": (changed("finetune: {epochs: 1", "finetune: {epochs: 0"), ["C-110", "epochs: 0"]),
    "all masked": (
        changed("finetune: {", "finetune: {auxiliary: masked_embedding, ")
        + "auxiliary: {masked_embedding: {ratio: 1.0}}\n",
        ["C-110", "params.yaml:5", "masked_embedding.ratio: 1.0 is outside 0 .. 0.95"],
    ),
    "a negative weight": (
        changed("finetune: {", "finetune: {auxiliary: drloc, ") + "auxiliary: {drloc: {weight: -0.5}}\n",
        ["C-110", "params.yaml:5", "drloc.weight: -0.5 is outside 0 .. 10"],
    ),
    "an attack beyond white": (
        appended("attacks: {fgsm: {epsilons: [0.0, 300]}}"),
        ["C-110", "params.yaml:5", "holds 300, which is outside 0 .. 255"],
    ),
    "an attack of nothing": (appended("attacks: {fgsm: {epsilons: []}}"), ["C-110", "fgsm.epsilons: [] is empty"]),
    "an unknown objective": (changed("pretrain: {", "pretrain: {objective: byl, "), ["C-110", "did you mean byol?"]),
    "an unknown data set": (changed("digits", "digit"), ["C-110", "did you mean digits?"]),
    "a name that is a path": (
        TOY.replace("study: toy", "study: a/b").replace("  toy:", "  a/b:"),
        ["C-110", "studies.a/b", "letters, digits and _ . + -"],
    ),
    "a name that is an option": (changed("  toy:", "  -x:"), ["C-110", "the first a letter or digit"]),
    "a password in an address": (
        appended("data: {sets: {own: {format: folder, source: 'https://me:hunter2@example.org/x.tgz'}}}"),
        [
            "C-110",
            "1 mistake",
            "params.yaml:5",
            "data.sets.own.source looks like a password or a token",
            "fetched file",
        ],
    ),
    "a signed address": (
        appended("data: {mirror: 'https://example.org/?list=1&X-Amz-Signature=hunter2'}"),
        ["C-110", "data.mirror looks"],
    ),
    "a token in a remark, where a run would work and every report repeat it": (
        changed("{data: digits", "{about: by hf_hunter2hunter2hunter2hunter2, data: digits"),
        ["C-110", "1 mistake", "studies.toy.about looks like a password or a token"],
    ),
    "a token where another mistake would repeat it": (
        appended("ghp_x: 1\nreport: {title: [ghp_hunter2hunter2hunter2hunter2hunter]}"),
        ["C-110", "report.title"],
    ),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_wrong_settings(what, sandglass, tmp_path):
    settings, words = SETTINGS[what]
    code, told = sandglass("plan", settings=settings)
    assert code == 78 and len(told) < 1000 and all(word in told for word in words), told[:1000]
    assert "hunter2" not in told
    assert list(contents(tmp_path)) == [tmp_path / "place" / "params.yaml"], "nothing is begun"


def test_no_settings(sandglass):
    code, told = sandglass("plan")
    assert code == 66 and "C-101" in told and "no params.yaml" in told and "--params FILE" in told


def test_1e_4_is_a_number(sandglass):
    assert sandglass("plan", settings=changed("pretrain: {", "pretrain: {lr_per_256: 1e-4, "))[0] == 0


def test_epsilons_are_in_1_255_so_an_eps_of_8_is_8_255(sandglass):
    assert sandglass("plan", settings=appended("attacks: {fgsm: {epsilons: [0.0, 8]}}"))[0] == 0


COMMANDS = {
    "an unknown option": (["plan", "--sudy", "x"], 2, ["No such option: --sudy", "--study"]),
    "an unknown command": (["pan"], 2, ["No such command 'pan'"]),
    "an unknown study": (["plan", "--study", "tyo"], 78, ["C-120", "did you mean toy?"]),
    "an unknown run": (["finetune", "digit-toy"], 78, ["C-130", "one of: digits-toy-scratch"]),
    "an unknown backbone": (["check", "--backbone", "hourglas_tiny"], 78, ["B-301", "did you mean hourglass_tiny"]),
    "a window that does not fit": (
        ["check", "--backbone", "swin_tiny_patch4_window7_224", "--size", "50"],
        78,
        ["swin_tiny_patch4_window7_224", "50"],
    ),
    "a GPU that is not there": (["data"], 78, ["T-101", "no GPU is visible", "engine.device: auto"]),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_wrong_commands(what, sandglass, monkeypatch):
    words, exit, said = COMMANDS[what]
    settings = TOY
    if "GPU" in what:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        settings, words = changed("device: cpu", "device: cuda"), ["pretrain"]
        assert sandglass("data", settings=TOY)[0] == 0
    code, told = sandglass(*words, settings=settings)
    assert code == exit and all(word in told for word in said), told


def test_runs_are_named_by_their_settings_so_changed_ones_never_resume_and_no_name_is_taken_twice(sandglass):
    names = []
    for epochs in (1, 2):
        code, told = sandglass(
            "plan", "--json", settings=changed("pretrain: {epochs: 1", f"pretrain: {{epochs: {epochs}")
        )
        assert code == 0
        names.append({word for word in told.split('"') if word.startswith("digits-toy-byol")})
    assert names[0] and not names[0] & names[1]


def test_patches_that_are_left_out_need_a_backbone_without_windows_and_simmim_is_offered(sandglass):
    settings = changed("pretrain: {", "pretrain: {objective: masked_image, backbone: swin_own, ") + (
        "objectives: {masked_image: {form: mae}}\n"
        "backbones: {swin_own: {model: swin_tiny_patch4_window7_224, window_size: 4}}\n"
    )
    code, told = sandglass("check", settings=settings)
    assert code == 78 and "simmim" in told, told
