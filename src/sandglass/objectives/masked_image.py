"""Masked image: hide a share r of an image's patches and paint them from the others.

    simmim  L = mean over hidden pixels of |x_hat - x|,  x_hat = a linear map of each cell of the grid f(filled x)
    drop    L = mean over hidden pixels of (x_hat - x')^2,  x_hat = a transformer's of f(visible patches) and of tokens
            x: pixels as the encoder sees them, normalised;  x': each cell of them with mean 0 and variance 1

Xie et al. 2022 (SimMIM), and He et al. 2022 (MAE, arXiv 2111.06377), r n of n patches rounded up.
SimMIM puts a learned token in the place of hidden patch embeddings. Here a learned patch of pixels hides them before
the first layer: to a linear patch embedding that is the same, and it is the same way for every backbone, also where a
convolution reads across the edges of patches and would see what is hidden. `drop` shows the encoder visible patches
alone and is much faster; it needs a plain ViT, or Hiera, which drops mask units. Its decoder is small (4 blocks, 256
wide, MAE's is 8 of 512), is given no class token, and reads Hiera's last stage only.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sandglass.backbones.grid import Encoder, Features
from sandglass.data.loader import Batch
from sandglass.objectives._base import Objective
from sandglass.objectives._masking import Dropped, Filled, Hiding, linear_painter, over_pixels, standardised
from sandglass.objectives._parts import single

PAPER = "arXiv 2111.09886"
VIEWS = "masked"
KIND = "one view"
BACKBONES = "any; form drop: plain ViT and Hiera"
SETTINGS = {
    "form": ("simmim", {"simmim", "drop"}),
    "ratio": (0.6, 0.05, 0.95),  # r, share of the patches that is hidden
    "mask_patch": (0, 0, 1024),  # px, side of a patch; 0: a cell of the grid (drop with Hiera: a mask unit)
}
PRESETS = {"mae": {"form": "drop", "ratio": 0.75}}
TRAIN = {
    "transformer": {"optimizer": "adamw", "lr_per_256": 1e-4, "weight_decay": 0.05, "clip_norm": 5.0},
    "blog": {  # lightly's; its second beta, 0.95, is 0.999 here
        "optimizer": "adamw",
        "lr_per_256": 1.5e-4,
        "weight_decay": 0.05,
        "decay": "everything",
        "warmup_epochs": 20.0,
        "clip_norm": 0.0,
    },
}


class MaskedImage(Objective):
    """A simple framework for masked image modelling (Xie et al. 2022); masked autoencoders (He et al. 2022).

    Raises Problem T-161 or T-163 where nothing can be hidden as asked (see `Hiding`).
    """

    static = True
    rowwise = True
    views = (1, 1)
    alarm = 0.02  # pooled features have much in common, and no norm takes it away before they are watched

    def __init__(self, encoder: Encoder, settings: dict[str, Any], classes: int) -> None:
        super().__init__(encoder, settings, classes)
        self.drop = settings["form"] == "drop"
        setting = "objectives.masked_image.mask_patch"
        self.hiding = Hiding(encoder, self.drop, settings["ratio"], settings["mask_patch"], setting)
        self.cell, patch = encoder.size // encoder.grid_shape[0], self.hiding.patch
        self.way = Dropped(encoder, patch) if self.drop else Filled(patch, linear_painter(encoder.width, self.cell))

    def features(self, encoder: Encoder, batch: Batch) -> list[Features]:
        """Of the first view, with patches hidden that are drawn here; `loss` will ask which."""
        self.hidden = self.hiding.draw(batch)
        return [self.way.see(encoder, batch.views[0], self.hidden)]

    def loss(self, encoder: Encoder, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        self.watch(features[0].pooled)
        pixels = (batch.views[0] - encoder.mean) / encoder.std
        painted = single(self.way.paint(features[0], self.hidden))
        if self.drop:
            error = (painted - standardised(pixels, self.cell)).square()
        else:
            error = (painted - pixels).abs()
        where = over_pixels(self.hidden, encoder.size)
        return {"loss": (error * where).sum() / (where.sum() * 3)}
