"""Masked image: hide a share r of an image's patches and paint them from what the encoder says of the others.

    loss = mean over hidden pixels of (x_hat - x)^2,  x_hat = g(f(image with patches hidden)),
           x: pixels as the encoder sees them, normalised, or each patch of them with mean 0 and variance 1

Das et al. 2024 (SSAT), arXiv 2310.20704: masked autoencoding beside classification, in a forward of its own. Their
total is lambda CE + (1 - lambda) loss with lambda = 0.1; ours, CE + weight loss, is ten times that with a weight of
(1 - lambda) / lambda = 9. They show visible patches alone (`form: mae`), which a plain ViT and Hiera can take; the
others see hidden patches filled with a learned colour before their first layer, as in SimMIM (arXiv 2111.09886, whose
error is absolute where ours is squared). The decoder's positions are fixed, and it is given no class token.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sandglass.auxiliary._base import Auxiliary, looking_again
from sandglass.backbones.grid import Encoder
from sandglass.data.loader import Batch
from sandglass.errors import Exit, Problem
from sandglass.objectives._masking import Decoder, Dropped, Filled, Hiding, linear_painter, over_pixels, standardised
from sandglass.objectives._parts import single

PAPER = "arXiv 2310.20704"

SETTINGS = {
    "weight": (0.1, 0.0, 10.0),  # lambda
    "lambda_schedule": ("const", {"const", "warmup_decay"}),
    "form": ("simmim", {"simmim", "mae"}),  # hidden patches filled with a learned colour, or not shown at all
    "ratio": (0.75, 0.05, 0.95),  # r, share of the patches that is hidden
    "patch": (0, 0, 1024),  # px, side of a patch; 0: a cell of the grid (mae with Hiera: a mask unit)
    "head": ("linear", {"linear", "decoder"}),  # decoder: a small transformer before the linear map
    "target_norm": ("patch", {"none", "patch"}),  # patch: each patch with mean 0 and variance 1
    "budget": ("native", {"native", "matched"}),  # matched: a decoder of the size of masked embedding's, within 5 %
}

PRESETS = {  # thesis, with form mae: as released with SSAT, but for 8 heads instead of 16
    "thesis": {"weight": 9.0, "head": "decoder", "target_norm": "none", "lambda_schedule": "const"},
    "sound": {"weight": 0.1, "head": "linear", "target_norm": "patch", "lambda_schedule": "const"},
}


class MaskedImage(Auxiliary):
    """With a grid (312,8,8) of 32 px: 15,027 parameters, 443,059 with the native decoder, 4,802,043 with the matched.

    Raises Problem T-155 for a head that `form` or `budget` rules out; T-161 or T-163 where nothing can be hidden as
    asked (see `Hiding`).
    """

    own_forward = True

    def __init__(self, encoder: Encoder, settings: dict[str, Any]) -> None:
        super().__init__(encoder, settings)
        drop, matched = settings["form"] == "mae", settings["budget"] == "matched"
        if settings["head"] == "linear" and (drop or matched):
            why = "it has nothing for patches that were not shown" if drop else "its size follows from the grid's"
            what = f"masked_image: a linear head does not go with {'form: mae' if drop else 'budget: matched'}"
            raise Problem("T-155", Exit.CONFIG, what, why=why, fix="auxiliary.masked_image.head: decoder")
        self.hiding = Hiding(encoder, drop, settings["ratio"], settings["patch"], "auxiliary.masked_image.patch")
        # width, blocks, heads: SSAT's, or masked embedding's, whose width is the grid's (positions need multiples of 4)
        shape = (max(4, round(self.channels / 4) * 4), 4, 4) if matched else (128, 2, 8)
        if drop:
            self.way: Dropped | Filled = Dropped(encoder, self.hiding.patch, *shape)
        elif settings["head"] == "decoder":
            decoder = Decoder(encoder, *shape)
            decoder.decoder.mask_token.requires_grad_(False)  # no cell of this grid is missing
            self.way = Filled(1, decoder)
        else:
            self.way = Filled(1, linear_painter(encoder.width, encoder.size // encoder.grid_shape[0]))

    def loss(self, encoder: Encoder, grid: Tensor, batch: Batch) -> dict[str, Tensor]:
        """ "over_chance": 1 is what one colour for all hidden pixels would get, 0 is perfect; "mask_ratio": the share.

        `grid` is not asked: it has seen what is to be painted.
        """
        hidden = self.hiding.draw(batch)
        with looking_again(encoder):
            features = self.way.see(encoder, batch.views[0], hidden)
        painted = single(self.way.paint(features, hidden))
        target = (batch.views[0] - encoder.mean) / encoder.std
        if self.settings["target_norm"] == "patch":
            target = standardised(target, self.hiding.patch)
        where = over_pixels(hidden, encoder.size)
        loss = mean_at((painted - target).square(), where).mean()
        chance = mean_at((target - mean_at(target, where)).square(), where).mean()
        return {
            "loss": loss,
            "over_chance": loss.detach() / chance.clamp_min(1e-12),
            "mask_ratio": loss.new_full((), self.hiding.count / self.hiding.patches),
        }


def mean_at(values: Tensor, where: Tensor) -> Tensor:
    """Mean of each channel over images and places: (B,3,S,S), bool (B,1,S,S) -> (3,1,1)."""
    return (values * where).sum((0, 2, 3))[:, None, None] / where.sum()
