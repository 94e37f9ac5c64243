"""What a study found, in sentences made from its numbers: each says its n and what so few seeds can decide."""

from __future__ import annotations

from collections.abc import Iterator

from sandglass.report import words
from sandglass.report.experiments import Experiment, against, compared, strength
from sandglass.report.robustness import ATTACKS
from sandglass.report.statistics import ALPHA, holm

Told = tuple[str, str]  # about what, and what

PROBES = {
    "linear": "Linear probe",
    "linear_augmented": "Linear probe on augmented views",
    "knn": "Nearest neighbours",
}


def finding(stages: dict[str, list[Experiment]]) -> list[Told]:
    """The finding of a study from its experiments by stage."""
    probes, finetuned = (_having(stages.get(stage, []), "top1") for stage in ("probe", "finetune"))
    attacked = _having(stages.get("attack", []), "robust_top1")
    told = [*_probes(probes), *_inits(finetuned), *_auxiliaries(finetuned), *_attacks(attacked)]
    if not told and (judged := [*probes, *finetuned]):
        what = words.times(len(judged), "setting")
        told = [("No comparison", f"{what} judged, and no random weights or training from scratch to set beside.")]
    return [(about, words.bound(text)) for about, text in told] or [("Nothing yet", "no finished run has an accuracy.")]


def _probes(some: list[Experiment]) -> Iterator[Told]:
    for probe, name in PROBES.items():
        pairs = against([one for one in some if one.ids["probe"] == probe], "init", "random")
        yield from _advantage(name, "random weights", pairs, paired=False)


def _inits(some: list[Experiment]) -> Iterator[Told]:
    plain = [one for one in some if one.ids["auxiliary"] == "none"]
    for fraction in dict.fromkeys(one.ids["label fraction"] for one in plain):
        pairs = against([one for one in plain if one.ids["label fraction"] == fraction], "init", "scratch")
        yield from _advantage(f"Finetuned with {100 * fraction:g} % of the labels", "scratch", pairs, paired=True)


def _auxiliaries(some: list[Experiment]) -> Iterator[Told]:
    pairs = against(some, "auxiliary", "none")
    tests = [test for one, base in pairs.items() if (test := compared(one, base, "top1", paired=True))]
    if not tests:
        return
    low, high = (words.signed(end(test.difference for test in tests)) for end in (min, max))
    change = f"{low} points" if low == high else f"between {low} and {high} points"
    family = f" after Holm's correction for {len(tests)} comparisons" if len(tests) > 1 else ""
    if min(holm([test.smallest for test in tests])) <= ALPHA:
        decided = sum(p <= ALPHA for p in holm([test.p for test in tests])) or "none"
        verdict = f"p ≤ {ALPHA} in {decided}{family} ({words.counts([test.n[0] for test in tests])}, exact)"
    else:
        verdict = f"such a difference {words.too_few(max(tests, key=lambda test: test.n))}{family}"
    yield "Auxiliary tasks", f"{change} against training without them; {verdict}."


def _attacks(some: list[Experiment]) -> Iterator[Told]:
    for attack in dict.fromkeys(one.ids["attack"] for one in some):
        tried = [one for one in some if one.ids["attack"] == attack]
        epsilon = strength(tried)
        these = [one for one in tried if epsilon and len(one.values("robust_top1", epsilon))]
        if these:
            clean, robust = ([one.values(m, epsilon).mean() for one in these] for m in ("clean_top1", "robust_top1"))
            n = words.counts([len(one.values("robust_top1", epsilon)) for one in these])
            kinds = f"{len(these)} kinds of model, {n} each" if len(these) > 1 else n
            fall = f"accuracy falls from {words.span(clean)} % to {words.span(robust)} % ({kinds})"
            yield f"{ATTACKS.get(attack, attack)} at ε = {epsilon:g}/255", f"{fall}."


def _advantage(what: str, over: str, pairs: dict[Experiment, Experiment], paired: bool) -> Iterator[Told]:
    """One comparison told in full, or how several came out."""
    tests = {one: test for one, base in pairs.items() if (test := compared(one, base, "top1", paired=paired))}
    if len(tests) == 1:
        one, test = next(iter(tests.items()))
        ours, theirs = (words.percent_n(list(some.values("top1"))) for some in (one, pairs[one]))
        difference = f"difference {words.signed(test.difference)} points, {words.verdict(test)}"
        yield what, f"{one.ids['init']} {ours} against {over} {theirs}; {difference}."
    elif tests:
        better = sum(test.difference > 0 for test in tests.values())
        low, high = (words.signed(end(test.difference for test in tests.values())) for end in (min, max))
        n = words.counts([min(test.n) for test in tests.values()])
        yield what, f"better than {over} in {better} of {len(tests)} settings ({n} each), by {low} to {high} points."


def _having(some: list[Experiment], metric: str) -> list[Experiment]:
    return [one for one in some if len(one.values(metric))]
