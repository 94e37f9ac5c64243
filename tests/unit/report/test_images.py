"""The worst case and the pairs, image by image, against loops over the images; and files that cannot be believed."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sandglass.errors import Problem
from sandglass.report.collect import collect
from sandglass.report.experiments import Experiment, experiments
from sandglass.report.images import Seen, disagreements, seen, worst_cases
from sandglass.report.page import write

Marks = dict[float, str]  # epsilon -> which images are right: "1101"


def attacked(study: Any, attack: str, seed: int, auxiliary: str, clean: str, right: Marks, **changed: Any) -> str:
    """A finished run of an attack whose model got these images right; returns its key."""
    size, images = changed.pop("size", 32), changed.pop("images", None)
    about = {"data set": "d", "backbone": "b", "init": changed.pop("init", "scratch"), "labels": 1.0}
    rows = []
    for epsilon, marks in right.items():
        shares = [marks.count("1") / len(marks), clean.count("1") / len(clean)]
        shared = {"split": "test", "n": len(marks), "epsilon": epsilon}
        rows += [{"metric": m, "value": v} | shared for m, v in zip(("robust_top1", "clean_top1"), shares)]
        rows += [{"metric": "drop", "value": shares[0] - shares[1]} | shared]
    settings = {"size": size, "images": images, "attack": {attack: changed}}
    model = f"finetune/{about['init']}-{auxiliary}-{size}-s{seed}"
    columns = about | {"auxiliary": auxiliary, "attack": attack}
    key: str = study.add("attack", attack, seed, columns, rows, ("data/d", model), settings)
    wrong_as_seven = [[0 if mark == "1" else 7 for mark in marks] for marks in (clean, *right.values())]
    predicted = {"clean": wrong_as_seven[0], "attacked": wrong_as_seven[1:], "labels": [0] * len(clean)}
    np.savez(study.folder(key) / "predictions.npz", epsilons=list(right), **predicted)
    return key


def read(study: Any) -> tuple[list[Experiment], dict[str, Seen]]:
    some = experiments(collect(study.root, study.keys("attack")), "attack")
    return some, seen(some, study.runs, study.root / "results")


def worst(study: Any) -> dict[tuple[str, str], Experiment]:
    some, found = read(study)
    return {(one.ids["attack"], one.ids["auxiliary"]): one for one in worst_cases(some, found)}


def marks(rng: np.random.Generator, share: float, n: int = 40) -> str:
    return "".join("1" if draw < share else "0" for draw in rng.random(n))


def test_the_worst_case_is_what_loops_over_images_find(empty_study: Any) -> None:
    rng = np.random.default_rng(0)
    clean, right = {}, {}
    for seed, task in itertools.product((0, 1, 2), ("none", "drloc")):
        clean[seed, task] = marks(rng, 0.9)
        for attack, epsilons in (("fgsm", (0.0, 1.0, 2.0)), ("pgd", (0.0, 1.0, 2.0)), ("autoattack", (1.0,))):
            right[attack, seed, task] = {e: marks(rng, 0.7) if e else clean[seed, task] for e in epsilons}
            attacked(empty_study, attack, seed, task, clean[seed, task], right[attack, seed, task])
    found = worst(empty_study)
    both, three = "worst of fgsm, pgd", "worst of fgsm, pgd, autoattack"
    assert sorted(found) == sorted(itertools.product((both, three), ("none", "drloc")))
    assert found[both, "none"].epsilons() == [0, 2] and found[three, "none"].epsilons() == [1]
    for (label, task), one in found.items():
        for epsilon, seed in itertools.product(one.epsilons(), (0, 1, 2)):
            names = label.removeprefix("worst of ").split(", ")
            survive = 0
            for k in range(40):
                survive += all(
                    each[k] == "1" for each in (clean[seed, task], *(right[a, seed, task][epsilon] for a in names))
                )
            share, before = survive / 40, clean[seed, task].count("1") / 40
            told = {metric: one.values(metric, epsilon)[seed] for metric in ("robust_top1", "clean_top1", "drop")}
            assert told == {"robust_top1": share, "clean_top1": before, "drop": pytest.approx(share - before)}
            assert one.values("retention", epsilon)[seed] == pytest.approx(share / before)
            assert one.images("robust_top1") == 40


def test_attacks_that_fool_on_different_images_leave_nothing(empty_study: Any) -> None:
    attacked(empty_study, "fgsm", 0, "none", "1111", {1.0: "1100"})
    attacked(empty_study, "pgd", 0, "none", "1111", {1.0: "0011"})
    (one,) = worst(empty_study).values()
    assert one.values("robust_top1", 1.0)[0] == 0 and one.values("retention", 1.0)[0] == 0


def test_what_was_wrong_before_is_not_robust_and_nothing_right_has_no_retention(empty_study: Any) -> None:
    attacked(empty_study, "fgsm", 0, "none", "0000", {1.0: "1110"})  # an attack may repair an error by chance
    attacked(empty_study, "pgd", 0, "none", "0000", {1.0: "1111"})
    (one,) = worst(empty_study).values()
    assert one.values("robust_top1", 1.0)[0] == 0 and not len(one.values("retention", 1.0))


def test_only_one_ball_one_model_and_the_same_images_are_joined(empty_study: Any) -> None:
    attacked(empty_study, "fgsm", 0, "none", "1111", {1.0: "1110"})
    attacked(empty_study, "fgsm", 0, "none", "1111", {1.0: "0111"}, clip=False)
    attacked(empty_study, "fgsm", 0, "none", "1111", {1.0: "0011"}, space="normalised")
    attacked(empty_study, "pgd", 0, "none", "11", {1.0: "00"}, images=2)
    attacked(empty_study, "pgd", 0, "drloc", "1111", {1.0: "0000"})
    attacked(empty_study, "pgd", 1, "none", "1111", {1.0: "0000"})
    attacked(empty_study, "pgd_l2", 0, "none", "1111", {1.0: "0000"})
    attacked(empty_study, "square", 0, "none", "1111", {2.0: "0000"})
    assert worst(empty_study) == {}
    attacked(empty_study, "pgd", 0, "none", "1111", {1.0: "0001"}, space="normalised")
    ((label, _), one), *more = worst(empty_study).items()
    assert not more and label == "worst of fgsm, pgd" and one.values("robust_top1", 1.0)[0] == 0.25
    assert "space normalised" in one.ids["setting"]


def test_a_seed_without_one_of_the_attacks_stands_apart(empty_study: Any) -> None:
    for seed in (0, 1, 2):
        for attack in ("fgsm", "pgd", *(["square"] if seed else [])):
            attacked(empty_study, attack, seed, "none", "1111", {1.0: "1110"})
    found = {label: list(one.values("robust_top1", 1.0).index) for (label, _), one in worst(empty_study).items()}
    assert found == {"worst of fgsm, pgd": [0], "worst of fgsm, pgd, square": [1, 2]}


def spoil(file: Path, **arrays: Any) -> None:
    with np.load(file) as held:
        kept = {name: held[name] for name in held.files}
    np.savez(file, **{name: value for name, value in (kept | arrays).items() if value is not None})


@pytest.mark.parametrize(
    "damage, id",
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-40]), "R-116"),
        (lambda file: file.write_bytes(b""), "R-116"),
        (lambda file: spoil(file, attacked=None), "R-114"),
        (lambda file: spoil(file, epsilons=[2.0]), "R-114"),
        (lambda file: spoil(file, attacked=[[0, 0, 0, 0]]), "R-114"),
        (lambda file: spoil(file, attacked=[[0, 7, 7]]), "R-114"),
    ],
)
def test_predictions_that_cannot_be_believed_stop_the_report(empty_study: Any, damage: Any, id: str) -> None:
    key = attacked(empty_study, "fgsm", 0, "none", "1111", {1.0: "1100"})
    damage(empty_study.folder(key) / "predictions.npz")
    with pytest.raises(Problem) as problem:
        page_of(empty_study)
    assert problem.value.id == id and key in problem.value.screen() and "run again" in problem.value.screen()


def test_the_predictions_of_an_unfinished_run_are_not_read(empty_study: Any) -> None:
    for seed in (0, 1):
        for attack in ("fgsm", "pgd"):
            key = attacked(empty_study, attack, seed, "none", "1111", {1.0: "1100"})
    (empty_study.folder(key) / "predictions.npz").write_bytes(b"half written")
    empty_study.remove_result(key)
    assert "worst of fgsm, pgd 1 of 3" in page_of(empty_study)


def page_of(study: Any) -> str:
    path = write(study.root, study.about, study.runs, study.root / "results/report/demo", {})
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", path.read_text()))


def test_pairs_are_counted_by_image_and_corrected_over_the_table(empty_study: Any) -> None:
    rng = np.random.default_rng(0)
    right = {
        (seed, task): marks(rng, share, 80) for seed in (0, 1, 2) for task, share in (("none", 0.5), ("drloc", 0.8))
    }
    for (seed, task), some in right.items():
        attacked(empty_study, "pgd", seed, task, "1" * 80, {1.0: some})
    some, found = read(empty_study)
    table = disagreements(some, found, 1.0, "")
    assert table
    counts, ps = [], []
    for seed in (0, 1, 2):
        pairs = list(zip(right[seed, "drloc"], right[seed, "none"]))
        here, there = pairs.count(("1", "0")), pairs.count(("0", "1"))
        counts.append(f"{here} : {there}")
        ps.append(float(stats.binomtest(here, here + there, 0.5).pvalue))
    ((task, against, n, told, _, corrected, over),) = table.rows
    assert (task, against, n, told.split("\n")) == ("drloc", "none", "3", counts)
    smallest = int(np.argmin(ps))
    assert float(corrected.split("\n")[smallest]) == pytest.approx(3 * ps[smallest], rel=0.06)  # printed with a digit
    assert "for 3 tests" in table.notes[0] and over.endswith("p = 0.25")
    assert any("cannot be significant with n = 3 pairs" in note for note in table.notes)


@pytest.mark.parametrize("other", [{"size": 64}, {"images": 4}, {"clip": False}, {"space": "normalised"}])
def test_other_images_or_another_ball_are_no_pair(empty_study: Any, other: dict[str, Any]) -> None:
    attacked(empty_study, "pgd", 0, "drloc", "1111", {1.0: "1110"})
    attacked(empty_study, "pgd", 0, "none", "1111", {1.0: "1100"}, **other)
    assert disagreements(*read(empty_study), 1.0, "") is None


def test_few_disagreements_are_said_to_be_too_few(empty_study: Any) -> None:
    attacked(empty_study, "pgd", 0, "drloc", "1111", {1.0: "1110"})
    attacked(empty_study, "pgd", 0, "none", "1111", {1.0: "1000"})
    table = disagreements(*read(empty_study), 1.0, "")
    assert table and table.rows[0][3] == "2 : 0" and "fewer than 6 images" in table.notes[1]


def test_the_page_tells_the_worst_case_with_n_deviation_and_interval(empty_study: Any) -> None:
    for seed, task in itertools.product((0, 1, 2), ("none", "drloc")):
        own = ["11111100", "11110000", "11111000"][seed]
        attacked(empty_study, "fgsm", seed, task, "1" * 8, {1.0: own})
        attacked(empty_study, "pgd", seed, task, "1" * 8, {1.0: "0" + own[1:]})
    text = page_of(empty_study)
    # right after both: 5, 3, 4 of 8: mean 0.5, deviation 0.125, 4.30265 * 0.125 / sqrt(3) = 0.3105
    assert "worst of fgsm, pgd none 3 100.0 ± 0.0 100.0 – 100.0 50.0 ± 12.5 18.9 – 81.1" in text
    assert "−50.0 ± 12.5 −81.1 – −18.9 50.0 ± 12.5" in text
    assert "Worst of several attacks: an image counts only if" in text
    assert "Two models on the same images at ε = 1/255" in text and "0 : 0" in text


def test_one_seed_has_an_interval_over_its_images(empty_study: Any) -> None:
    rng = np.random.default_rng(0)
    attacked(empty_study, "pgd", 0, "none", "1" * 400, {1.0: marks(rng, 0.5, 400)})
    _, found = read(empty_study)
    (one,) = found.values()
    share = one.right[1.0].mean()
    error = np.sqrt(share * (1 - share) / 400)
    low, high = one.interval("drop", 1.0)
    assert (low + 1, high + 1) == pytest.approx(one.interval("retention", 1.0))  # clean is 1
    assert (low, high) == pytest.approx((share - 1 - 1.96 * error, share - 1 + 1.96 * error), abs=0.004)
    assert re.search(r"−\d+\.\d – −\d+\.\d \*", page_of(empty_study))


def test_the_interval_is_of_the_seed_that_has_the_number(empty_study: Any) -> None:
    attacked(empty_study, "pgd", 0, "none", "1" * 8, {2.0: "10101010"})  # nothing at 1/255
    key = attacked(empty_study, "pgd", 1, "none", "1" * 8, {1.0: "10000000"})
    low, high = read(empty_study)[1][key.partition("/")[2]].interval("drop", 1.0)
    told = f"−87.5 {100 * low:.1f} – {100 * high:.1f} *".replace("-", "−")
    assert -1 <= low < -0.875 < high < 0 and told in page_of(empty_study)


def test_a_run_that_tells_no_clean_accuracy_still_has_its_row(empty_study: Any) -> None:
    rows = [{"metric": "robust_top1", "value": 0.25, "split": "test", "n": 8, "epsilon": 1.0}]
    empty_study.add("attack", "fgsm", 0, {"data set": "d", "backbone": "b", "attack": "fgsm"}, rows)
    assert re.search(r"1 of 3 – 25\.0 \d+\.\d – \d+\.\d \* – –", page_of(empty_study))
