"""Whether an objective can teach a backbone by some views: found in seconds, before a training asks for a GPU.

An objective refuses by itself what it cannot work on (its constructor raises). What is left are the number of views and
images of another side than the backbone was made for, such as small crops: each side is tried on a blank image.
"""

from __future__ import annotations

from typing import Any

import torch

from sandglass.backbones.grid import Encoder, build, judging
from sandglass.errors import Exit, Problem
from sandglass.objectives import OBJECTIVES
from sandglass.objectives._base import Objective

# What lets a backbone of timm take other sides than the one it was made for: for windows, for tables of positions.
ELASTIC: tuple[dict[str, Any], ...] = ({"strict_img_size": False}, {"dynamic_img_size": True})


def check(
    objective: str, settings: dict[str, Any], sides: list[int], backbone: str, size: int, arguments: dict[str, Any]
) -> None:
    """Build both for images of `size` px whose views have `sides`, and try. Raises Problem B-30x or T-16x (78)."""
    constant = (0.5, 0.5, 0.5)
    encoder = build(backbone, size, 0, constant, constant, arguments)
    refuse_misfit(objective, OBJECTIVES.get(objective)(encoder, settings, 2), sides, encoder)


def refuse_misfit(name: str, objective: Objective, sides: list[int], encoder: Encoder) -> None:
    """Raises Problem T-167 (78) for a number of views it does not take, and T-164 (78) if the encoder cannot take what
    the objective shows it; both with settings that work."""
    least, most = objective.views
    if not least <= len(sides) <= most:
        wanted = f"{least}" if most == least else f"{least} or more"
        recipe = "crop_flip" if least == 1 else "baseline"
        what = f"{name} takes {wanted} views of an image, and this recipe makes {len(sides)}"
        raise Problem("T-167", Exit.CONFIG, what, fix=f"pretrain.views: {recipe}, or the recipe's count: {least}")
    shown = objective.inputs(sides)
    for side in dict.fromkeys(shown):
        if why := _failure(encoder, side):
            backbone, arguments = encoder.model.made_as
            raise Problem(
                "T-164",
                Exit.CONFIG,
                f"{name} shows the backbone images of {side} px, and {backbone} made for {encoder.size} px takes none",
                why=why,
                fix=_remedy(backbone, arguments, encoder, shown),
            )


def _failure(encoder: Encoder, side: int) -> str:
    """Why the encoder cannot take images of this side, or ''."""
    if side == encoder.size:
        return ""
    try:
        with judging(encoder.model):
            grid = encoder(torch.zeros(1, 3, side, side, device=encoder.mean.device)).grid
    except Exception as error:  # whatever a model raises at a side that is not for it
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return "" if grid.shape[1] == encoder.width else f"it gives {grid.shape[1]} channels there, not {encoder.width}"


def _remedy(name: str, arguments: dict[str, Any], encoder: Encoder, shown: list[int]) -> str:
    for change in ELASTIC:
        try:
            elastic = build(name, encoder.size, 0, (0.5,) * 3, (0.5,) * 3, arguments | change)
        except Problem:
            continue
        if not any(_failure(elastic, side) for side in shown):
            return "\n".join(f"the backbone's argument {key}: {str(value).lower()}" for key, value in change.items())
    return "views without small crops (pretrain.views: baseline), or another backbone: resnet, convnext, hourglass"
