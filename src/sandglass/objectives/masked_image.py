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

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM
from timm.models.hiera import Hiera
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sandglass.backbones.grid import Encoder, Features
from sandglass.data.loader import Batch
from sandglass.errors import Exit, Problem
from sandglass.objectives._base import Objective
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

    Raises Problem T-161 if the encoder's grid does not divide the image, or it cannot drop patches; T-163 for patches
    that do not divide the image or leave none to see.
    """

    alarm = 0.02  # pooled features have much in common, and no norm takes it away before they are watched

    def __init__(self, encoder: Encoder, settings: dict[str, Any], classes: int) -> None:
        super().__init__(encoder, settings, classes)
        legal, usual = patch_sides(encoder, settings["form"], settings["ratio"])
        self.patch = settings["mask_patch"] or usual
        if self.patch not in legal:
            near = sorted(sorted(legal, key=lambda side: abs(side - self.patch))[:3])
            raise Problem(
                "T-163",
                Exit.CONFIG,
                f"masked_image: patches of {self.patch} px cannot hide {settings['ratio']:g} of {encoder.size} px",
                why="patches must divide the image, be whole ones of the encoder to be dropped, and not be all hidden",
                fix=f"objectives.masked_image.mask_patch: {' or '.join(map(str, near))}" if near else "larger images",
            )
        self.patches = (encoder.size // self.patch) ** 2
        self.count = hidden_of(self.patches, settings["ratio"])
        self.way = (Dropped if settings["form"] == "drop" else Filled)(encoder, self.patch)

    def features(self, encoder: Encoder, batch: Batch) -> list[Features]:
        """Of the first view, with patches hidden that are drawn here; `loss` will ask which."""
        order = batch.drawn(lambda n, generator: torch.rand(n, self.patches, generator=generator)).argsort(1)
        hidden = torch.zeros(order.shape, dtype=torch.bool).scatter_(1, order[:, : self.count], True)
        self.hidden = hidden.to(batch.views[0].device, non_blocking=True)
        return [self.way.see(encoder, batch.views[0], self.hidden)]

    def loss(self, encoder: Encoder, features: list[Features], batch: Batch) -> dict[str, Tensor]:
        self.watch(features[0].pooled)
        pixels = (batch.views[0] - encoder.mean) / encoder.std
        error = self.way.error(single(self.way.paint(features[0], self.hidden)), pixels)
        where = over_pixels(self.hidden, self.patch)
        return {"loss": (error * where).sum() / (where.sum() * 3)}


class Filled(nn.Module):
    """SimMIM: the whole image is seen, hidden patches filled with a learned one."""

    def __init__(self, encoder: Encoder, patch: int) -> None:
        super().__init__()
        side = encoder.size // encoder.grid_shape[0]
        self.mask_token = nn.Parameter(torch.zeros(3, patch, patch))  # normalised: it begins as the mean colour
        self.decode = nn.Sequential(nn.Conv2d(encoder.width, 3 * side**2, 1), nn.PixelShuffle(side))

    def see(self, encoder: Encoder, view: Tensor, hidden: Tensor) -> Features:
        """view (B, 3, S, S) in [0, 1]; hidden (B, n) bool, row by row."""
        times = view.shape[-1] // self.mask_token.shape[-1]
        filling = self.mask_token.repeat(1, times, times) * encoder.std + encoder.mean
        return encoder(torch.where(over_pixels(hidden, self.mask_token.shape[-1]), filling, view))

    def paint(self, features: Features, hidden: Tensor) -> Tensor:
        """(B, 3, S, S), all of it, normalised."""
        return self.decode(features.grid)

    def error(self, painted: Tensor, pixels: Tensor) -> Tensor:
        return (painted - pixels).abs()


class Dropped(nn.Module):
    """MAE: visible patches alone are seen."""

    cells: Tensor

    def __init__(self, encoder: Encoder, patch: int, width: int = 256, depth: int = 4, heads: int = 8) -> None:
        super().__init__()
        self.side = encoder.grid_shape[0]
        self.pixels = encoder.size // self.side  # px, side of a cell
        patches = encoder.size // patch
        inside = self.side // patches
        cells = torch.arange(self.side**2).view(patches, inside, patches, inside).transpose(1, 2)
        self.register_buffer("cells", cells.reshape(patches**2, inside**2), persistent=False)  # those of each patch
        self.embed = nn.Linear(encoder.width, width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(self.side**2, width, depth, heads, num_prefix_tokens=0)
        self.decode = nn.Sequential(nn.Conv2d(width, 3 * self.pixels**2, 1), nn.PixelShuffle(self.pixels))

    def seen(self, hidden: Tensor) -> Tensor:
        """The cells (B, v) of the grid that are seen, patch after patch."""
        return self.cells.expand(len(hidden), -1, -1)[~hidden].view(len(hidden), -1)

    def see(self, encoder: Encoder, view: Tensor, hidden: Tensor) -> Features:
        """As `Filled.see`; the grid of the features is a column of the v visible cells, (B, C, v, 1)."""
        model, pixels = encoder.model, (view - encoder.mean) / encoder.std
        if isinstance(model, Hiera):  # its mask is of what to keep
            raw = model.forward_features(pixels, mask=~hidden)
            tokens = model.head.norm(model.reroll(raw, len(model.blocks) - 1, mask=~hidden).flatten(1, 3))
        else:
            tokens = model._pos_embed(model.patch_embed(pixels))
            prefix = torch.arange(model.num_prefix_tokens, device=view.device).expand(len(view), -1)
            kept = torch.cat((prefix, self.seen(hidden) + model.num_prefix_tokens), 1)
            tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
            raw = model.norm(model.blocks(model.norm_pre(tokens)))
            tokens = model.fc_norm(raw)[:, model.num_prefix_tokens :]
        return Features(raw, tokens.transpose(1, 2)[..., None], tokens.mean(1))

    def paint(self, features: Features, hidden: Tensor) -> Tensor:
        visible = single(self.embed(features.grid[..., 0].transpose(1, 2)))
        tokens = self.decoder.mask_token.expand(len(hidden), self.side**2, -1)
        tokens = tokens.scatter(1, self.seen(hidden)[..., None].expand_as(visible), visible)
        tokens = self.decoder.decode(self.decoder.add_pos_embed(tokens))
        return self.decode(tokens.transpose(1, 2).unflatten(2, (self.side, self.side)))

    def error(self, painted: Tensor, pixels: Tensor) -> Tensor:
        cells = F.pixel_unshuffle(pixels, self.pixels)
        variance, mean = torch.var_mean(cells, 1, keepdim=True)
        return (painted - F.pixel_shuffle((cells - mean) / (variance + 1e-6).sqrt(), self.pixels)).square()


def over_pixels(hidden: Tensor, patch: int) -> Tensor:
    """(B, n) patches, row by row, -> (B, 1, S, S)."""
    rows = hidden.unflatten(1, (math.isqrt(hidden.shape[1]), -1))
    return rows.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None]


def hidden_of(patches: int, ratio: float) -> int:
    return math.ceil(patches * ratio - 1e-9)  # 10 * 0.7 is 7.000000000000001


def patch_sides(encoder: Encoder, form: str, ratio: float) -> tuple[list[int], int]:
    """In px: the sides that patches can have, and the usual one."""
    model, size, cells = encoder.model, encoder.size, encoder.grid_shape[0]
    if size % cells:
        what = f"masked_image: a grid of {cells} cells a side does not divide an image of {size} px"
        raise Problem("T-161", Exit.CONFIG, what, fix=f"images of {cells * (size // cells)} px")
    usual, sides = size // cells, range(1, size)
    if form == "drop" and isinstance(model, Hiera):
        usual = int(model.mask_unit_size[0] * model.patch_stride[0])
        sides = range(usual, usual + 1)
    elif form == "drop" and isinstance(model, VisionTransformer) and model.pos_embed is not None:
        sides = range(usual, size, usual)
    elif form == "drop":
        raise Problem(
            "T-161",
            Exit.CONFIG,
            f"masked_image: {type(model).__name__} cannot be shown visible patches alone",
            why="its layers need the whole grid; those of a plain ViT with absolute positions, and of Hiera, do not",
            fix="objectives.masked_image.form: simmim",
        )
    number = {side: (size // side) ** 2 for side in sides if size % side == 0}
    return [side for side, patches in number.items() if hidden_of(patches, ratio) < patches], usual
