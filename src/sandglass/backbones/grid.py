"""Any timm model as an encoder with a grid: images in [0, 1] to the last feature map (B, C, h, w) after the final norm.

timm's models keep their features in four layouts. Which one is never guessed from a shape, where 7 x 7 x 768 and
768 x 7 x 7 look alike, but read from what the model declares: `output_fmt`, else NCHW for maps (timm's default) and
`num_prefix_tokens` for tokens. One forward serves the grid, the pooled feature and the logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from sandglass.backbones import BACKBONES
from sandglass.backbones._timm import timm
from sandglass.errors import Exit, Problem, did_you_mean

for _name in BACKBONES:
    BACKBONES.get(_name)  # importing a file makes its models known to timm


@dataclass(frozen=True)
class Features:
    """What one forward gives."""

    raw: Tensor  # the model's own forward_features, which its head reads
    grid: Tensor  # (B, C, h, w), after the final norm
    pooled: Tensor  # (B, C), the mean of the grid


class Encoder(nn.Module):
    """A timm model behind its own normalisation: (B, 3, S, S) in [0, 1] to Features.

    `width` is C and `grid_shape` (h, w) at the size it was made for. Raises whatever the model raises at that size.
    `layout` is the order in which weights and maps lie in memory: a convolution is fastest with channels last.
    """

    model: Any
    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.layout = torch.channels_last if _convolves(model) and _safely(model) else torch.contiguous_format
        self.model, self.size = model.to(memory_format=self.layout), size
        device = next(model.parameters()).device
        for name, values in (("mean", mean), ("std", std)):
            constant = torch.as_tensor(values, dtype=torch.float32, device=device).view(1, 3, 1, 1)
            self.register_buffer(name, constant, persistent=False)
        _refuse_cut_edges(model, size)
        with judging(model):
            features = self(self._blank())
        self.width, h, w = features.grid.shape[1:]
        self.grid_shape = (h, w)
        if features.raw.ndim == 3 and stages(self)[-1][0] == "output":
            raise _no_grid(model, f"its tokens are {h} x {w} cells, but its last stage is another grid")

    def forward(self, images: Tensor) -> Features:
        raw = self.model.forward_features(((images - self.mean) / self.std).contiguous(memory_format=self.layout))
        grid = _normed(self.model, _as_grid(self.model, raw, images.shape[2] / images.shape[3]))
        return Features(raw, grid, grid.mean((2, 3)))

    def logits(self, features: Features) -> Tensor:
        """(B, classes), from the model's own head."""
        return self.model.forward_head(features.raw)

    def _blank(self) -> Tensor:
        return torch.zeros(1, 3, self.size, self.size, device=self.mean.device)


def build(
    name: str,
    size: int,
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    arguments: dict[str, Any] | None = None,
) -> Encoder:
    """The timm model `name` (ours or theirs) for images of size x size, with a head of `classes`.

    `arguments` go to the model; `img_size` is passed to models that take it. Raises Problem B-301 (unknown name), B-302
    (unknown argument) or B-303 (a size the model cannot take; names the nearest settings that it can).
    """
    with _explaining(name, size, arguments or {}):
        return Encoder(_create(name, size, classes, arguments or {}), size, mean, std)


def stages(encoder: Encoder) -> list[tuple[str, int, int, int]]:
    """The model's stages in the order they are computed: (name, channels, h, w).

    Where what comes out at the end has another shape than the last stage (an Hourglass goes back up, some convolutional
    models widen before pooling) it is a stage of its own, called "output".
    """
    model: Any = encoder.model
    with judging(model):
        maps = model.forward_intermediates(encoder._blank(), output_fmt="NCHW", intermediates_only=True)
    names = [info["module"] for info in getattr(model.feature_info, "info", model.feature_info)]
    if len(names) != len(maps):
        names = [f"stage {i}" for i in range(len(maps))]
    found = [(name, *stage.shape[1:]) for name, stage in zip(names, maps)]
    if found[-1][1:] != (encoder.width, *encoder.grid_shape):
        found.append(("output", encoder.width, *encoder.grid_shape))
    return found


def check(name: str, size: int, arguments: dict[str, Any] | None = None, classes: int = 10) -> dict[str, Any]:
    """What a backbone would be at this size: its stages, width, parameters (head included) and MACs of one image.

    MACs count convolutions and matrix products. `warnings` name what is legal but unwise. Raises as `build` does.
    """
    from torch.utils.flop_counter import FlopCounterMode  # here, as it imports triton, which a training job need not

    arguments = arguments or {}
    with _explaining(name, size, arguments):
        try:
            encoder = _sketch(name, size, classes, arguments)
        except (NotImplementedError, RuntimeError):  # some models read values while they are built: build it in earnest
            encoder = Encoder(_create(name, size, classes, arguments), size, (0, 0, 0), (1, 1, 1))
        encoder.requires_grad_(False).eval()  # not no_grad: the counter cannot follow an expanded class token there
        with FlopCounterMode(display=False) as counter:
            encoder.model(encoder._blank())
        found = stages(encoder)
    warnings = []
    if encoder.grid_shape == (1, 1):
        others = _legal(name, size, arguments)
        warnings.append(
            "the grid is a single cell, so tasks on the grid have nothing to tell apart; " + _either(others)
        )
    return {
        "backbone": name,
        "size": size,
        "arguments": arguments,
        "stages": found,
        "grid": (encoder.width, *encoder.grid_shape),
        "width": encoder.width,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "macs": counter.get_total_flops() // 2,
        "warnings": warnings,
    }


def _convolves(model: nn.Module) -> bool:
    """Whether most of its weights are those of convolutions. Attention does not care how a map lies in memory."""
    convolutions = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d)]
    return 2 * sum(convolutions) > sum(p.numel() for p in model.parameters())


def _safely(model: nn.Module) -> bool:
    """Not with strided 1x1 convolutions of fewer than 16 channels: with channels last, oneDNN writes beyond its memory
    when it differentiates them (uxlfoundation/oneDNN#6035)."""
    strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and max(m.stride) > 1]
    return all(m.in_channels // m.groups >= 16 for m in strided)


def _as_grid(model: Any, raw: Any, aspect: float) -> Tensor:
    """The output of forward_features as (B, C, h, w); `aspect` is height / width of the image."""
    if not isinstance(raw, Tensor):
        raise _no_grid(model, "it has several final maps")
    if getattr(model, "output_fmt", None) == "NHWC":
        return raw.permute(0, 3, 1, 2)
    if raw.ndim == 4:
        return raw
    if hasattr(model, "reroll"):  # Hiera keeps its tokens in the order of mask units
        return model.reroll(raw, len(model.blocks) - 1).permute(0, 3, 1, 2)
    cells = raw[:, getattr(model, "num_prefix_tokens", 0) :]
    h = round(math.sqrt(cells.shape[1] * aspect))
    if h == 0 or cells.shape[1] % h:
        raise _no_grid(model, f"its {cells.shape[1]} tokens are not h x w, and it declares no others among them")
    return cells.transpose(1, 2).unflatten(2, (h, -1))


def _no_grid(model: nn.Module, why: str) -> Problem:
    return Problem(
        "B-304",
        Exit.CONFIG,
        f"{type(model).__name__} gives no grid of features",
        why=why,
        fix="choose a backbone of another family, such as swin, hiera, pvt_v2, vit, resnet or hourglass",
    )


def _normed(model: Any, grid: Tensor) -> Tensor:
    """The grid after the final norm, which some models apply only after pooling: here it is applied to each cell."""
    for norm in (getattr(model, "fc_norm", None), getattr(getattr(model, "head", None), "norm", None)):
        if norm is None or isinstance(norm, nn.Identity):
            continue
        if type(norm).__name__.endswith("2d"):
            grid = norm(grid)
        else:
            grid = norm(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return grid


def _refuse_cut_edges(model: nn.Module, size: int) -> None:
    """timm's patch embeddings drop the pixels beyond the last whole patch without a word."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    pads = getattr(getattr(model, "patch_embed", None), "dynamic_img_pad", False)
    if first is None or pads or first.stride != first.kernel_size or first.padding != (0, 0):
        return
    if size % int(first.stride[0]):
        raise ValueError(f"{size} px do not divide into patches of {first.stride[0]} px")


def _create(name: str, size: int, classes: int, arguments: dict[str, Any]) -> nn.Module:
    if not timm.is_model(name):
        raise Problem("B-301", Exit.CONFIG, f"unknown backbone '{name}'", fix=did_you_mean(name, timm.list_models()))
    given = {"img_size": size, **arguments}
    try:
        model: Any = timm.create_model(name, num_classes=classes, **given)
    except TypeError as error:
        if "'img_size'" not in str(error) or "img_size" in arguments:
            raise
        given = arguments  # it takes images of any size
        model = timm.create_model(name, num_classes=classes, **given)
    model.made_with = given  # for the config.json beside exported weights
    model.made_as = name, arguments
    return model


def _sketch(name: str, size: int, classes: int, arguments: dict[str, Any]) -> Encoder:
    """The encoder without numbers: shapes only, whatever its size in a fraction of a second."""
    with torch.device("meta"):
        return Encoder(_create(name, size, classes, arguments), size, (0, 0, 0), (1, 1, 1))


def _legal(name: str, size: int, arguments: dict[str, Any]) -> list[str]:
    """Up to three settings near these that end in more than one cell, each of them tried: two at this size at most."""
    asked = arguments.get("patch_size")
    patches = [p for p in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16) if size % p == 0 and p < size]
    patches.sort(key=lambda p: abs(math.log(p / (asked if isinstance(asked, int) else 4))))
    finer = [
        {"patch_size": patch, **window}
        for patch in patches
        for window in ({"window_size": max(w for w in range(1, 9) if size // patch % w == 0)}, {})
    ]
    here = [(name, size, {**arguments, **change}) for change in finer]
    if name + "_small" in BACKBONES:
        here.insert(0, (name + "_small", size, arguments))
    sizes = {(size // step + up) * step for step in (4, 8, 16, 32) for up in (0, 1)} - {0, size}
    there = [(name, other, arguments) for other in sorted(sizes, key=lambda other: abs(other - size))]
    found: dict[str, str] = {}  # by the stages they give: a second way to the same ones is not news
    for limit, candidates in ((2, here), (3, there)):
        for candidate in candidates:
            if len(found) >= limit:
                break
            try:
                encoder = _sketch(candidate[0], candidate[1], 10, candidate[2])
                shapes = [(c, h, w) for _, c, h, w in stages(encoder)]
            except Exception:  # whatever a model raises at a setting that is not for it
                continue
            if encoder.grid_shape > (1, 1):
                text = " ".join(f"{c}x{h}x{w}" + (f" ({n} times)" if n > 1 else "") for (c, h, w), n in _runs(shapes))
                found.setdefault(text, f"{_setting(*candidate)}: {text}")
    return list(found.values())


def _runs(items: list[Any]) -> Iterator[tuple[Any, int]]:
    for item, group in groupby(items):
        yield item, len(list(group))


def _setting(name: str, size: int, arguments: dict[str, Any]) -> str:
    return ", ".join([f"{name} at {size} px", *(f"{key}={value}" for key, value in arguments.items())])


def _either(settings: list[str]) -> str:
    return "these work:\n" + "\n".join(settings) if settings else "no setting near this one works either"


@contextmanager
def _explaining(name: str, size: int, arguments: dict[str, Any]) -> Iterator[None]:
    """Turn what a model raises while it is built or tried into a Problem."""
    try:
        yield
    except Problem:
        raise
    except Exception as error:
        if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
            raise Problem(
                "B-302",
                Exit.CONFIG,
                f"{name} does not take one of its arguments",
                where=_setting(name, size, arguments),
                why=str(error),
                fix=f"take it out of the arguments of {name}",
            ) from error
        raise Problem(
            "B-303",
            Exit.CONFIG,
            f"{name} cannot be used for images of {size} x {size}",
            where=_setting(name, size, arguments),
            why=str(error),
            fix=_either(_legal(name, size, arguments)),
        ) from error


@contextmanager
def judging(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module gets its own mode back (a stem may be frozen in it)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
