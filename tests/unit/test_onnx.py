"""A model as an ONNX file: what ONNX Runtime computes from it is what the model computes, or there is no file."""

import json
import sys

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import register_model
from torch import nn

from sandglass.backbones import grid  # noqa: F401  registers the toy backbone
from sandglass.errors import Problem
from sandglass.onnx import FILE, TOLERANCE, convert


@register_model
def restless(pretrained=False, **ignored):
    """Its output is its input's mean plus noise: no file can compute what it computed."""
    return Restless()


@register_model
def counting(pretrained=False, **ignored):
    """It looks at its batch's size, so that a file of it would be for one size alone."""
    return Restless(counts=True)


class Restless(nn.Module):
    num_classes = 0

    def __init__(self, counts=False):
        super().__init__()
        self.counts = counts
        self.pretrained_cfg = {}
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        if self.counts:
            return self.scale * len(images) + images.mean((2, 3))
        return self.scale * images.mean((2, 3)) + torch.rand(images.shape[0], 3)


def folder(path, architecture, weights, classes):
    path.mkdir()
    shape = {"architecture": architecture, "num_classes": classes, "pretrained_cfg": {"num_classes": classes}}
    (path / "config.json").write_text(json.dumps(shape))
    save_file(weights, path / "model.safetensors")
    return path


def toy(path, classes):
    torch.manual_seed(0)
    model = timm.create_model("toy", num_classes=classes).eval()
    return model, folder(path, "toy", model.state_dict(), classes)


@pytest.mark.parametrize("classes, output", [(10, "logits"), (0, "features")])
def test_another_runtime_computes_the_same_from_the_file(tmp_path, classes, output):
    import onnxruntime

    model, place = toy(tmp_path / "model", classes)
    away = convert(place, 32)
    assert 0 <= away <= TOLERANCE
    images = torch.rand(7, 3, 32, 32)
    session = onnxruntime.InferenceSession(place / FILE, providers=["CPUExecutionProvider"])
    assert [port.name for port in session.get_outputs()] == [output]
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"images": images.numpy()})[0], model(images), atol=1e-5)


@pytest.mark.parametrize("architecture, what", [("restless", "away from the model's"), ("counting", "cannot be")])
def test_a_file_that_computes_something_else_is_refused_and_removed(tmp_path, architecture, what):
    place = folder(tmp_path / "model", architecture, {"scale": torch.ones(())}, 0)
    with pytest.raises(Problem) as caught:
        convert(place, 32)
    assert caught.value.id == "R-133" and what in caught.value.what and not (place / FILE).exists()


def test_without_the_extra_the_fix_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(Problem) as caught:
        convert(tmp_path, 32)
    assert caught.value.id == "R-132" and "onnx" in caught.value.fix
