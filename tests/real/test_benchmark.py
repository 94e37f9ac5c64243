"""The four studies of the benchmark, small, on real photographs: everything they plan can be run, and the page shows
the published table with ours beside theirs. One epoch at 32 px says nothing about accuracy, and the table says so."""

import itertools
import json

import pandas as pd
import pytest
import yaml

from sandglass import stages
from sandglass.config import load
from sandglass.report.blog import METHODS, SETS
from sandglass.study import plan

ARCHIVE = "imagenette2-224sq-subset.tgz"
SHA256 = "66af9f70314ec9ee4586e65209f156b1cc2b28b84c379d0c08a7d21aabf58127"
SMALL = {"hidden": 32, "out": 32}
WIDTHS = dict.fromkeys(("barlow_twins", "byol", "simclr", "simsiam", "swav", "vicreg", "vicregl"), SMALL)

# Left out of each study: the first runs whole as the blog trained it, the others add our defaults and their data.
LEFT_OUT = {
    "blog_imagenette": [{"optimisation": "cnn"}],
    "blog_imagenette_v2_160": [{"views": ["simclr", "orthogonality", "lorot", "dcl"]}, {"optimisation": "blog"}],
    "blog_imagewoof": [{"views": ["baseline", "orthogonality", "lorot", "dcl"]}, {"optimisation": "cnn"}],
    "blog_nabirds": [{"views": "lorot"}, {"optimisation": "blog"}],
}
RUN = {"blog_imagenette": 50, "blog_imagenette_v2_160": 10, "blog_imagewoof": 10, "blog_nabirds": 10}


@pytest.fixture(scope="module")
def small(tmp_path_factory, repo, shared_data):
    """The shipped studies at 32 px: one epoch, one seed, narrow heads, one probe, and 600 photographs for each set."""
    root = tmp_path_factory.mktemp("benchmark")
    shipped = yaml.safe_load((repo / "params.yaml").read_text())["studies"]
    own = {"format": "imagenette", "source": str(shared_data / "imagenette" / ARCHIVE), "sha256": SHA256}
    data = {"sets": {name: own for name in SETS.values()}, "store_size": 40}
    studies = {name: dict(shipped[name]) for name in LEFT_OUT}
    for name, study in studies.items():
        study |= {"size": 32, "backbone": "toy", "seeds": [0], "exclude": LEFT_OUT[name]}
        study["pretrain"] = study["pretrain"] | {"epochs": 1, "batch_size": 256, "warmup_epochs": 0.0}
        study["probe"] = {"probe": "linear_augmented"}
        study["objectives"] = {key: values | study["objectives"].get(key, {}) for key, values in WIDTHS.items()}
    probes = {"linear_augmented": {"epochs": 1, "least_steps": 0, "lr_per_256": [0.1]}}
    text = {"study": "blog_imagenette", "data": data, "engine": {"device": "cpu"}, "probes": probes, "studies": studies}
    (root / "params.yaml").write_text(json.dumps(text))
    return root


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_study_runs_and_its_table_is_laid_out(small, name):
    params = load(small / "params.yaml")
    runs = plan(params, name)
    assert sum(run.stage == "pretrain" for run in runs) == RUN[name]
    for run in runs:
        stages.execute(run, params, name, small, lambda text: None)
        if run.stage == "pretrain":
            rows = json.loads((small / "results" / run.result).read_text())["rows"]
            assert [row["value"] for row in rows if row["metric"] == "collapsed"] == [0]

    folder = small / "results" / "report" / name
    page, cells = (folder / "index.html").read_text(), pd.read_csv(folder / "beside.csv")
    ours = cells[(cells["n"] > 0) & cells["evaluation"].notna()]
    metrics = 2 if name == "blog_nabirds" else 1
    assert len(ours) == RUN[name] * 2 * metrics and set(ours["model"]) == set(METHODS)  # the probe and the one online
    assert ours["mean"].between(0, 1).all() and (ours["test images"] == 250).all() and (ours["collapsed"] == 0).all()
    for reason in (
        "backbone toy, theirs resnet18",
        "size 32, theirs 224",
        "epochs 1, theirs 200",
        "protocol unknown",
    ):
        assert ours["not comparable"].str.contains(reason).all() and reason in page
    assert not ours["not comparable"].str.contains("data set").any()
    for method, policy in itertools.product(METHODS, cells["setting"].unique()):
        assert method in page and policy in page
    costs = cells[(cells["n"] > 0) & cells["metric"].isin(["minutes", "peak_gb"])]
    assert len(costs) == (2 * RUN[name] if name == "blog_imagenette" else 0) and (costs["mean"] > 0).all()
    assert ("no comparison of methods" in page) == (name == "blog_imagenette")
