"""Table 4.6 of the thesis, small, on real images of CIFAR-10: all that it plans can be run, its tables are on the page.

500 images and one epoch of narrow models say nothing about accuracy, and the page says what differs.
"""

import json

import pandas as pd
import pytest

from sandglass import stages
from sandglass.config import load
from sandglass.report.thesis import MODELS
from sandglass.strict_yaml import parse
from sandglass.study import plan

NARROW = {
    "resnet_tiny": {"model": "resnet312", "channels": [8, 16, 24], "layers": [1, 1, 1]},
    "vit_tiny": {"model": "vit312", "embed_dim": 24, "depth": 2, "num_heads": 2},
    "t2t_tiny": {"model": "t2t312", "embed_dim": 24, "depth": 1, "num_heads": 2, "token_dim": 8},
    "cvt_tiny": {"model": "cvt312", "embed_dims": [8, 16, 24], "num_heads": [1, 1, 2], "depths": [1, 1, 1]},
}
NAME = "table_4_6"


@pytest.fixture(scope="module")
def small(tmp_path_factory, repo, shared_data):
    """The shipped study with one epoch, a tenth of the labels and narrow models."""
    root = tmp_path_factory.mktemp("thesis")
    shipped, _ = parse((repo / "params.yaml").read_text(), "params.yaml")
    sets = {"cifar10_5k": dict(shipped["data"]["sets"]["cifar10_5k"])}
    sets["cifar10_5k"]["source"] = str(shared_data / "cifar10" / "cifar-10-python-subset.tar.gz")
    study = shipped["studies"][NAME] | {
        "data": "cifar10_5k",
        "backbone": list(NARROW),
        "attack": {"attack": "fgsm", "images": 50},
    }
    study["finetune"] |= {"epochs": 1, "labels": 0.1}
    study["auxiliary"] = {"drloc": {"hidden": 16}, "masked_embedding": {"depth": 1, "heads": 2}}
    text = {"study": NAME, "data": {"sets": sets}, "engine": {"device": "cpu"}, "studies": {NAME: study}}
    (root / "params.yaml").write_text(json.dumps(text | {"backbones": NARROW}))
    return root


def test_table_4_6_is_run_and_laid_out(small):
    params = load(small / "params.yaml")
    runs = plan(params, NAME)
    assert sum(run.stage == "finetune" for run in runs) == 16
    for run in runs:
        stages.execute(run, params, NAME, small, lambda text: None)

    folder = small / "results" / "report" / NAME
    page, cells = (folder / "index.html").read_text(), pd.read_csv(folder / "beside.csv")
    cells = cells[(cells["table"] == "thesis/4.6") & (cells["n"] > 0)]
    assert set(cells["model"]) == set(MODELS.values()) and cells["mean"].between(0, 1).all()
    assert (cells["metric"] == "top1").sum() == 16 and (cells["metric"] == "robust_top1").sum() == 16 * 4
    for reason in ("data set cifar10_5k", "epochs 1, theirs 100", "with embed_dim 24"):
        assert reason in page
    assert "cannot be significant with n = 1" in page  # one seed decides nothing
