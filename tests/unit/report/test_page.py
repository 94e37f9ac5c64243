"""The page says what the table says, is complete in itself, and stays a page whatever the names in it are."""

import csv
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from sandglass.errors import Problem
from sandglass.evaluate.attacks.signs import SIGNS
from sandglass.report.collect import collect
from sandglass.report.page import write

PROVENANCE: dict[str, Any] = {
    "git": {"commit": "0123456789abcdef", "changed": True},
    "versions": {"python": "3.11.2", "torch": "2.15.0"},
    "made": "2025-11-21 03:00 +0000",
    "params": "study: demo\nseeds: [0, 1, 2]\n",
}


class Parsed(HTMLParser):
    """A page as a browser sees it: tags with attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def addresses(self) -> Iterator[str]:
        for _, attributes in self.tags:
            for name in ("href", "src", "action", "srcset", "data", "xlink:href"):
                if attributes.get(name):
                    yield str(attributes[name])

    def titles(self) -> list[str]:
        return [str(attributes["id"]) for tag, attributes in self.tags if tag == "section"]


def made(study: Any, provenance: dict[str, Any] = PROVENANCE) -> tuple[Path, Parsed]:
    folder = study.root / "results" / "report" / "demo"
    path = write(study.root, study.about, study.runs, folder, provenance)
    return path, Parsed(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(study: Any) -> tuple[Path, Parsed]:
    return made(study)


def accuracies(study: Any, **columns: Any) -> np.ndarray:
    """Straight from the folders, without the code under test: top-1 on test by seed."""
    found = {}
    for run in study.runs:
        facts = run["columns"] | {"stage": run["stage"]}
        if all(facts.get(key) == value for key, value in columns.items()):
            rows = json.loads((study.root / "results" / run["stage"] / run["name"] / "result.json").read_text())["rows"]
            found[run["seed"]] = next(row["value"] for row in rows if row["metric"] == "top1")
    return np.array([found[seed] for seed in sorted(found)])


def told(values: np.ndarray) -> str:
    return f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1):.1f}"


def test_the_finding_is_in_the_numbers(page: tuple[Path, Parsed], study: Any) -> None:
    text = page[1].text.replace("\u00a0", " ")
    ours, theirs = (accuracies(study, stage="probe", probe="linear", init=init) for init in ("pretrained", "random"))
    difference = 100 * (ours.mean() - theirs.mean())
    assert (
        f"Linear probe: pretrained {told(ours)} % (n = 3) against random weights {told(theirs)} % (n = 3); "
        f"difference {difference:+.1f} points, exact p = 0.10: cannot be significant with n = 3, "
        "where no p is below 0.10."
    ) in text
    assert (
        "Finetuned with 10 % of the labels: pretrained" in text
        and "p = 0.25: cannot be significant with n = 3 pairs, where no p is below 0.25" in text
    )
    assert "such a difference cannot be significant with n = 3 pairs after Holm's correction for 6 comparisons" in text
    assert "FGSM at ε = 1/255: accuracy falls from" in text
    assert "Cost: 32.8 minutes in 64 runs, without a GPU." in text


def test_gpu_hours_are_those_of_the_runs_that_had_one(empty_study: Any) -> None:
    probed(empty_study)
    for key in empty_study.keys("pretrain"):
        file = empty_study.folder(key) / "run.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"derived": {"device": "NVIDIA H100"}}))
        rows = [{"metric": "minutes", "value": 90.0}]
        (empty_study.folder(key) / "result.json").write_text(json.dumps({"rows": rows}))
    text = made(empty_study)[1].text.replace("\u00a0", " ")
    assert "Cost: 3.0 hours in 7 runs, of these 3.0 GPU hours (NVIDIA H100)." in text


def test_tables_hold_every_experiment_with_its_n(page: tuple[Path, Parsed], study: Any) -> None:
    cells = page[1].text
    for init in ("scratch", "pretrained"):
        for task in ("none", "drloc", "masked_embedding", "drloc+masked_embedding"):
            values = accuracies(study, stage="finetune", init=init, auxiliary=task)
            assert re.search(rf"{init} {re.escape(task.replace('+', ' + '))} 3 {re.escape(told(values))} ", cells)
    none = accuracies(study, stage="finetune", init="scratch", auxiliary="none")
    drloc = accuracies(study, stage="finetune", init="scratch", auxiliary="drloc")
    assert f"{100 * (drloc - none).mean():+.1f}, p = ".replace("-", "−") in cells


def test_each_table_says_how_it_was_tested(page: tuple[Path, Parsed]) -> None:
    text = page[1].text
    assert (
        text.count("permutation test between groups of seeds. After Holm's correction for 2 comparisons") == 1
    )  # probes
    assert (
        text.count("permutation test within pairs of one seed. After Holm's correction for 10 comparisons") == 1
    )  # finetuned
    assert (
        text.count("permutation test within pairs of one seed. After Holm's correction for 6 comparisons") == 1
    )  # attacked


def test_everything_of_the_study_has_a_place(page: tuple[Path, Parsed]) -> None:
    parsed = page[1]
    assert parsed.titles() == [
        "finding", "probes", "finetuned", "robustness", "pretrain-curves", "finetune-curves", "views", "maps",
        "attacked", "data", "citing", "cost", "everything", "provenance", "reading",
    ]  # fmt: skip
    for words in ("CC BY 4.0", "Alpaydin", "0123456789abcdef", "with changes that were not committed", "torch 2.15.0"):
        assert words in parsed.text
    for words in ("images per second", "peak memory, GiB", "In all 3", "cpu (64 runs)", "study: demo"):
        assert words in parsed.text
    linked = {address for address in parsed.addresses() if address.startswith("#")}
    assert {address[1:] for address in linked} >= set(parsed.titles()) - {"finding"}


def test_it_opens_offline_and_runs_nothing(page: tuple[Path, Parsed], study: Any) -> None:
    path, parsed = page
    assert not {tag for tag, _ in parsed.tags} & {"script", "iframe", "object", "embed", "link", "base", "form"}
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    policy = next(a["content"] for tag, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and "default-src 'none'" in policy and "script-src" not in policy and "http" not in policy
    for address in parsed.addresses():
        if not address.startswith(("#", "data:image/png;base64,", "data:text/")):
            assert (path.parent / unquote(address)).exists(), address
    runs = [address for address in parsed.addresses() if address.startswith("../../")]
    assert len(runs) == len(study.runs)
    assert not re.search(r"url\((?!#)|@import|https?:", path.read_text())


def test_the_table_beside_it_is_the_collected_one(page: tuple[Path, Parsed], study: Any) -> None:
    table = pd.read_csv(page[0].parent / "results.csv")
    frame = collect(study.root, [f"{run['stage']}/{run['name']}" for run in study.runs])
    assert list(table.columns) == list(frame.columns)
    np.testing.assert_array_equal(table.value, frame.value)
    names = ["accuracy.csv", "curves", "index.html", "metrics.json", "results.csv"]
    assert sorted(file.name for file in page[0].parent.iterdir()) == names


def probed(study: Any, data: str = "digits", **columns: Any) -> None:
    """A study small enough to be made often: one probe of two networks, two seeds of three."""
    packed = study.pack()
    for seed in (0, 1):
        pretrained = study.pretrain(packed, seed)
        study.probe(packed, seed, "linear", "pretrained", pretrained)
        study.probe(packed, seed, "linear", "random", None)


def test_missing_runs_are_named_and_counted(empty_study: Any) -> None:
    probed(empty_study)
    gone = empty_study.keys("probe")[0]
    (empty_study.folder(gone) / "result.json").unlink()  # though it still claims to be done
    _, parsed = made(empty_study)
    assert "1 of 7 runs have no result." in parsed.text
    assert parsed.text.count(gone) == 2  # among the missing, and among all
    assert "pretrained 1 of 3" in parsed.text and "random 2 of 3" in parsed.text
    assert "* One seed: the interval is Wilson's" in parsed.text and not re.search(r"\bnan\b", parsed.text)


def test_a_study_without_results_still_has_a_page(empty_study: Any) -> None:
    waiting = {"stage": "probe", "name": "p", "seed": 0, "settings": {}, "needs": [], "columns": {}, "done": False}
    empty_study.runs.append(waiting)
    path, parsed = made(empty_study, {})
    assert parsed.titles() == ["finding", "provenance", "reading"] and "Nothing yet" in parsed.text
    assert "probe/p" in parsed.text and (path.parent / "results.csv").read_text().startswith("stage,data set,")


def test_a_damaged_result_leaves_the_old_page(empty_study: Any) -> None:
    probed(empty_study)
    path, _ = made(empty_study)
    before = path.read_bytes()
    (empty_study.folder(empty_study.keys("probe")[0]) / "result.json").write_text('{"rows": 1}')
    with pytest.raises(Problem) as problem:
        made(empty_study)
    assert problem.value.id == "R-111" and path.read_bytes() == before


def test_the_same_study_makes_the_same_page(empty_study: Any) -> None:
    probed(empty_study)
    first = made(empty_study)[0].read_bytes()
    assert made(empty_study)[0].read_bytes() == first


def test_published_numbers_stand_apart_with_protocol_and_status(empty_study: Any) -> None:
    empty_study.about["published"] = "blog/ImageWoof"
    _, parsed = made(empty_study)
    assert "published" in parsed.titles()
    for words in ("0.507", "epochs: 200", "disputed", "device: not stated", "50 numbers"):
        assert words in parsed.text


def test_an_attack_that_gets_weaker_is_doubted(empty_study: Any) -> None:
    columns = {"data set": "d", "backbone": "b", "init": "scratch", "labels": 1.0, "auxiliary": "none", "attack": "pgd"}
    cases = {"drloc": (0.3, 0.6, 0.0), "none": (0.6, 0.3, 0.9), "jigsaw": (0.6, 0.3, 0.0)}
    for name, (weak, strong, zeros) in cases.items():
        shared = {"split": "test", "n": 100}
        rows = [{"metric": "zero_gradient_share", "value": zeros} | shared]
        for epsilon, value in ((1.0, weak), (2.0, strong)):
            rows += [{"metric": m, "value": value, "epsilon": epsilon} | shared for m in ("clean_top1", "robust_top1")]
        empty_study.add("attack", "a", 0, columns | {"auxiliary": name}, rows)
    text = made(empty_study)[1].text
    assert "Check drloc: accuracy rises with ε" in text and "Check none: 90 % of its input gradients" in text
    assert text.count("Check ") == 2


def test_norms_corruptions_and_masking_have_tables_of_their_own(empty_study: Any) -> None:
    columns = {"data set": "d", "backbone": "b", "init": "scratch", "labels": 1.0, "auxiliary": "none"}
    shared = {"split": "test", "n": 100}

    def swept(*epsilons: float) -> list[dict[str, Any]]:
        at = {"clean_top1": 0.9, "robust_top1": 0.4, "drop": -0.5, "retention": 4 / 9}
        return [{"metric": m, "value": v, "epsilon": e} | shared for e in epsilons for m, v in at.items()]

    corrupted = {"clean_top1": 0.9, "robust_top1": 0.63, "drop": -0.27, "retention": 0.7, "nineteen_top1": 0.64}
    corrupted |= {"top1_fog": 0.5, "top1_fog_1": 0.58, "top1_fog_5": 0.42}
    signs = {f"{flag}{sign}": 0.0 for sign in SIGNS for flag in ("", "flag_")}
    signs |= {"survives_far": 0.31, "flag_survives_far": 1.0, "flags": 1.0}
    results = {"fgsm": swept(1.0, 8.0), "pgd_l2": swept(63.75), "corruptions": [], "masking": []}
    results["corruptions"] = [{"metric": metric, "value": value} | shared for metric, value in corrupted.items()]
    results["masking"] = [{"metric": metric, "value": value} | shared for metric, value in signs.items()]
    for seed in (0, 1):
        for attack, rows in results.items():
            empty_study.add("attack", attack, seed, columns | {"attack": attack}, rows)
    text = made(empty_study)[1].text
    assert "Accuracy at ε = 1/255." in text and "Accuracy at ε = 63.75/255 in l-2." in text
    assert "FGSM at ε = 1/255: accuracy falls from" in text and "PGD in l-2 at ε = 63.75/255" in text
    assert "Threat model: the attacker knows the weights" in text and "Common corruptions have no adversary" in text
    assert "Each of 1 corruptions, at each level" in text and "42.0 ± 0.0" in text and "63.0 ± 0.0" in text
    assert text.count("0.310 ⚑") == text.count("⚑") == text.count(SIGNS["survives_far"]) == 1


CORPUS = [
    "<script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title><img src=x onerror=alert(1)>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'><iframe src=javascript:alert(1)>",
    '" onmouseover="alert(1)',
    "' autofocus onfocus='alert(1)",
    "javascript:alert(1)",
    "<a href='javascript:alert(1)'>x</a>",
    "<base href=//evil.example/>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<form action=//evil.example><input>",
    "<object data=x>",
    "<embed src=x>",
    "<!-- unclosed comment",
    "--><script>alert(1)</script>",
    "]]><script>alert(1)</script>",
    "<![CDATA[<script>alert(1)</script>]]>",
    "{{ 7 * 7 }}",
    "{% include 'x' %}",
    "{{ self.__init__.__globals__ }}",
    "${7*7}",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;",
    "\\u003cscript\\u003e",
    "%3Cscript%3E",
    "=cmd|' /C calc'!A0",
    '=HYPERLINK("http://evil.example","x")',
    "+1+1",
    "-2+3",
    "@SUM(1+1)",
    "\t=1+1",
    "$\\mathrm{",
    "$\\frac{$",
    "a\u202egnp.exe",
    "<\x00script>",
    "ＳＣＲＩＰＴ ＜script＞",
    "name with 'single' and \"double\" quotes & more",
]


ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "header", "p", "h1", "h2", "strong", "main", "section", "b",
    "nav", "a", "div", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "figure", "figcaption", "svg", "g",
    "path", "defs", "use", "clippath", "rect", "text", "details", "summary", "dl", "dt", "dd", "code", "pre", "footer",
}  # fmt: skip


def test_forty_hostile_names_stay_names(empty_study: Any) -> None:
    """Each name in turn is a backbone, and all of them stand in every free text of the page."""
    everything = " ".join(CORPUS)
    for k, name in enumerate(CORPUS):
        columns = {
            "data set": CORPUS[-1 - k],
            "backbone": name,
            "objective": "none",
            "init": "random",
            "probe": "linear",
        }
        rows = [{"metric": "top1", "value": 0.5 + k / 100, "split": "test", "n": 100}]
        key = empty_study.add("probe", "p", 0, columns, rows)
        if k == 0:
            labels = np.arange(3)
            np.savez(empty_study.folder(key) / "embedding.npz", xy=np.eye(3, 2), labels=labels)
    packed = empty_study.add("data", "d", None, {"data set": CORPUS[-1]}, [])
    info = {"name": everything, "classes": CORPUS[:3], "licence": everything, "counts": {everything: 1}}
    (empty_study.folder(packed) / "info.json").write_text(json.dumps(info))
    empty_study.about |= {"name": everything, "title": everything, "about": everything}
    hostile = {"made": everything, "params": everything + "\n", "versions": {everything: everything}}
    path, parsed = made(empty_study, hostile)

    assert {tag for tag, _ in parsed.tags} <= ALLOWED
    names = {name for _, attributes in parsed.tags for name in attributes}
    assert not [name for name in names if name.startswith("on") or name == "autofocus"]
    # Addresses lead into the page, to a run, or to results.csv, or are a copy of a table.
    copy = r"data:text/(csv|x-tex);charset=utf-8;base64,[A-Za-z0-9+/=]+$"
    assert {re.match(rf"#|\.\./|results\.csv$|{copy}", address) is not None for address in parsed.addresses()} == {True}
    for name in CORPUS:
        assert re.sub(r"\s+", " ", name).strip() in parsed.text, name

    with (path.parent / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 81 and {float(row["value"]) for row in rows} >= {0.5, 0.89}
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t"))]
