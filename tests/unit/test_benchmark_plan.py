"""The studies of the benchmark are complete: each of the 190 published numbers is answered, by both ways to train."""

import re

import pytest

from sandglass.config import load
from sandglass.objectives import OBJECTIVES
from sandglass.report import published
from sandglass.report.blog import METHODS, POLICIES, SETS, answers
from sandglass.study import plan
from sandglass.views.recipes import sizes_of

STUDIES = ("blog_imagenette", "blog_imagenette_v2_160", "blog_imagewoof", "blog_nabirds")
OPTIMISATIONS = ("blog", "cnn")
PROBES = {"knn", "linear", "linear_augmented"}


@pytest.fixture(scope="module")
def params(repo):
    return load(repo / "params.yaml")


@pytest.fixture(scope="module")
def plans(params):
    return {name: plan(params, name) for name in STUDIES}


def test_every_published_number_has_its_runs(params, plans):
    answered = 0
    for name, runs in plans.items():
        study = params.studies[name]
        pretrained = [run for run in runs if run.stage == "pretrain"]
        judged = {(run.need("pretrain"), run.columns["probe"]) for run in runs if run.stage == "probe"}
        used = set()
        for row in published.answers(study.published).to_dict("records"):
            for optimisation in OPTIMISATIONS:
                some = [
                    run
                    for run in pretrained
                    if run.columns["optimisation"] == optimisation and answers(run.columns, run.settings, row)
                ]
                assert sorted(run.seed for run in some) == study.seeds, (name, row["model"], row["setting"])
                assert {run.columns["data set"] for run in some} == {SETS[row["data set"]]}
                for run in some:
                    assert run.settings["train"]["online_probe"] and all(
                        (run.name, probe) in judged for probe in PROBES
                    )
                used |= {run.key for run in some}
            answered += 1
        assert used == {run.key for run in pretrained}, "no run that answers nothing"
    assert answered == 190
    assert len(METHODS) == 10 and len(POLICIES) == 5


def test_protocol_is_the_printed_one(params, plans):
    for name, runs in plans.items():
        protocol = published.TABLES[params.studies[name].published].protocol
        for run in runs:
            if run.stage == "pretrain":
                train = run.settings["train"]
                ours = run.settings["backbone"], run.settings["size"], train["epochs"], train["batch_size"]
                assert ours == tuple(protocol[key] for key in ("backbone", "size", "epochs", "batch size"))
                assert train["on_collapse"] == "report"


def test_the_blogs_way_is_without_parameter_groups_and_with_its_settings(plans):
    known = {name: OBJECTIVES.presets(name).get("blog", {}) for name, _ in METHODS.values()}
    assert known["vicregl"]["form"] == "legacy" and known["swav"]["prototypes"] == 3000
    for run in plans["blog_imagenette"]:
        if run.stage == "pretrain":
            (objective, settings), *_ = run.settings["objective"].items()
            blog = run.columns["optimisation"] == "blog"
            assert (run.settings["train"]["decay"] == "everything") == blog, run.name
            assert known[objective].items() <= settings.items() or not blog
            if objective == "vicregl":
                assert settings["form"] == ("legacy" if blog else "correct")


def test_large_and_small_views_of_a_policy_are_the_objectives(plans):
    """The blog's VICRegL had one large and one small view and its SwAV two large ones; by default SwAV has 2 + 6."""
    seen = {}
    for run in plans["blog_imagenette"]:
        if run.stage == "pretrain":
            (settings,) = run.settings["views"].values()
            seen.setdefault((run.columns["objective"], run.columns["optimisation"]), set()).add(
                tuple(sizes_of(settings, 224))
            )
    odd = {("vicregl", "blog"): {(224, 96)}, ("swav", "cnn"): {(224, 224, *[96] * 6)}}
    assert seen == {key: {(224, 224)} for key in seen} | odd and len(seen) == 14


def test_the_data_sets_are_those_of_the_print(plans):
    from sandglass.data.catalog import CATALOG

    shares = {name: tuple(CATALOG[data].splits[part] for part in ("train", "test")) for name, data in SETS.items()}
    assert shares["ImageNette"] == (12_894, 500)  # "96/4"
    assert shares["ImageNette v2-160"] == (9_469, 3_925) and shares["ImageWoof"] == (9_025, 3_929)
    assert shares["NABirds"] == (23_929, 24_633)
    assert sum(shares["ImageNette"]) == sum(shares["ImageNette v2-160"])  # the same images, cut otherwise


def test_the_page_of_the_benchmark_names_what_exists(repo):
    text = (repo / "docs" / "benchmark.md").read_text()
    assert set(re.findall(r"study=(\w+)", text)) <= set(STUDIES)
    assert set(STUDIES) <= set(re.findall(r"blog_\w+", text))
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (repo / "docs" / link).exists(), link
