"""Looking into a network: the map of every stage as colours, and where its tokens look.

Colours are the first three principal components of a stage's cells over all images shown: cells of like colour are
alike to the stage, and colours of two stages have nothing to do with each other. Attention is what a cell gets from all
others, mean over heads and queries, in the last layer of a stage in which every cell may attend to every cell. Layers
that look into windows have none, and attention that a model does not leave to PyTorch is not seen. Computed here, on
the CPU, from the weights that a run has left.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sandglass.backbones.grid import Encoder, build, judging, stages
from sandglass.data.loader import open_split
from sandglass.report import figures
from sandglass.report.parts import Gallery, Picture
from sandglass.runs import read_json
from sandglass.views.recipes import evaluation_view
from sandglass.weights import read

IMAGES = 4


class Attention(TorchFunctionMode):
    """Use as a context: `seen` gets, of every attention of n tokens to themselves, what each token gets: (B, n).

    B is the number of images, so that attention within windows, which has more rows, can be told from it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(zip(("query", "key", "value", "attn_mask"), args)) | (kwargs or {})
        alike = func is F.scaled_dot_product_attention and given["query"].shape == given["key"].shape
        if alike and given["query"].ndim == 4:  # with windows in a dimension of their own it has five
            query, key, mask = given["query"], given["key"], given.get("attn_mask")
            scale = given.get("scale") or query.shape[-1] ** -0.5
            if mask is None or mask.is_floating_point():
                weights = (query @ key.transpose(-2, -1) * scale + (0 if mask is None else mask)).softmax(-1)
                self.seen.append(weights.mean(dim=(1, 2)))
        return func(*args, **(kwargs or {}))


def gallery(folder: Path, packed: Path) -> Gallery | None:
    """A row for each of a few images (of val, else of train), a column for each stage and each attention of the trained
    run in `folder`; None for a network of a single map. `packed`: folder of its data.

    Raises Problem as `build` and `open_split` do, RuntimeError for weights that do not fit.
    """
    config, settings = read_json(folder / "config.json"), read_json(folder / "run.json")["settings"]
    about, size = config["pretrained_cfg"], settings["size"]
    arguments, classes = settings["arguments"], config["num_classes"]
    encoder = build(config["architecture"], size, classes, about["mean"], about["std"], arguments)
    encoder.model.load_state_dict(read(folder / "model.safetensors"))
    images = _images(packed, size)
    columns = {"image": images.numpy(), **_columns(encoder, images)}
    if len(columns) < 3:
        return None
    rows = [[[Picture(name, figures.picture(some[k]))] for name, some in columns.items()] for k in range(len(images))]
    return Gallery("", list(columns), rows)


def _images(packed: Path, size: int) -> Tensor:
    split = open_split(packed, "val" if read_json(packed / "info.json")["counts"].get("val") else "train")
    rows = np.arange(min(IMAGES, len(split))) * len(split) // min(IMAGES, len(split))
    return evaluation_view(*split.take(rows), size)


def _columns(encoder: Encoder, images: Tensor) -> dict[str, np.ndarray]:
    """By heading: maps of the stages as colours, attention as grey, (B,3,h,w) in [0,1], in the order of the network."""
    found = {}
    model, normed = encoder.model, (images - encoder.mean) / encoder.std
    with judging(encoder):
        maps = model.forward_intermediates(normed, output_fmt="NCHW", intermediates_only=True)
        with Attention() as attention:
            last = encoder(images).grid
    waiting = [weights for weights in attention.seen if len(weights) == len(images)]
    prefix = getattr(model, "num_prefix_tokens", 0)
    known = [*zip(stages(encoder), [*maps, last])]
    for shape, alike in groupby(known, key=lambda stage: stage[0][1:]):
        (name, *_), grid = [*alike][-1]  # the blocks of a flat network are a single stage
        channels, h, w = shape
        found[f"{name}, {channels}×{h}×{w}"] = colours(grid)
        own = next((k for k, weights in enumerate(waiting) if weights.shape[1] == prefix + h * w), None)
        if own is not None and h * w > 1:
            while own + 1 < len(waiting) and waiting[own + 1].shape == waiting[own].shape:
                own += 1  # the last of this stage
            found[f"{name}, attention"] = _grey(waiting[own][:, prefix:].unflatten(1, (h, w)))
            waiting = waiting[own + 1 :]
    return found


def colours(grid: Tensor) -> np.ndarray:
    """(B,C,h,w) -> (B,3,h,w) in [0,1]: three principal components, each turned so that its largest loading is positive,
    each from its 2nd to its 98th percentile."""
    cells = grid.permute(0, 2, 3, 1).flatten(0, 2).double()
    centred = cells - cells.mean(dim=0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:3]
    axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
    shown = F.pad(centred @ axes.T, (0, 3 - len(axes)))
    low, high = torch.quantile(shown, 0.02, dim=0), torch.quantile(shown, 0.98, dim=0)
    shown = ((shown - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return shown.unflatten(0, (len(grid), *grid.shape[2:])).permute(0, 3, 1, 2).numpy()


def _grey(weights: Tensor) -> np.ndarray:
    """(B,h,w) -> (B,3,h,w) in [0,1], each image from its least to its most."""
    low, high = weights.amin(dim=(1, 2), keepdim=True), weights.amax(dim=(1, 2), keepdim=True)
    grey = (weights - low) / (high - low).clamp_min(1e-12)
    return grey[:, None].expand(-1, 3, -1, -1).numpy()
