"""Hiding patches of an image and painting them: what masked images are made of, as objective and as auxiliary task.

`Hiding` says which patches, `Filled` and `Dropped` how an encoder sees the rest, and each has a head that paints.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM
from timm.layers import PatchEmbed
from timm.models.hiera import Hiera
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sandglass.backbones.grid import Encoder, Features
from sandglass.data.loader import Batch
from sandglass.errors import Exit, Problem
from sandglass.objectives._parts import single


class Hiding:
    """Which patches are hidden: `count` of the `patches` of an image, `patch` px a side, others for each image.

    `asked` px for a side, 0 for the usual one; `drop`: hidden patches are not shown at all; `setting`: the name of the
    one that asked. Raises Problem T-161 if the encoder's grid does not divide the image, or it cannot drop patches;
    T-163 for patches that do not divide the image or leave none to see.
    """

    def __init__(self, encoder: Encoder, drop: bool, ratio: float, asked: int, setting: str) -> None:
        legal, usual = patch_sides(encoder, drop, ratio, setting)
        self.patch = asked or usual
        if self.patch not in legal:
            near = sorted(sorted(legal, key=lambda side: abs(side - self.patch))[:3])
            raise Problem(
                "T-163",
                Exit.CONFIG,
                f"masked_image: patches of {self.patch} px cannot hide {ratio:g} of {encoder.size} px",
                why="patches must divide the image, be whole ones of the encoder to be dropped, and not be all hidden",
                fix=f"{setting}: {' or '.join(map(str, near))}" if near else "larger images",
            )
        self.patches = (encoder.size // self.patch) ** 2
        self.count = hidden_of(self.patches, ratio)

    def draw(self, batch: Batch) -> Tensor:
        """bool (B, n) where the views are, True is hidden; patches row by row."""
        return batch.drawn(self._drawn).to(batch.views[0].device, non_blocking=True)

    def _drawn(self, images: int, generator: torch.Generator) -> Tensor:
        order = torch.rand(images, self.patches, generator=generator).argsort(1)
        return torch.zeros(order.shape, dtype=torch.bool).scatter_(1, order[:, : self.count], True)


class Filled(nn.Module):
    """SimMIM: the whole image is seen, hidden patches filled with a learned piece of `token` px a side, repeated.

    `decode` paints: a grid (B, C, h, w) to (B, 3, S, S).
    """

    def __init__(self, token: int, decode: nn.Module) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(3, token, token))  # normalised: it begins as the mean colour
        self.decode = decode

    def see(self, encoder: Encoder, view: Tensor, hidden: Tensor) -> Features:
        """view (B, 3, S, S) in [0, 1]; hidden (B, n) bool, row by row."""
        times = view.shape[-1] // self.mask_token.shape[-1]
        filling = self.mask_token.repeat(1, times, times) * encoder.std + encoder.mean
        return encoder(torch.where(over_pixels(hidden, view.shape[-1]), filling, view))

    def paint(self, features: Features, hidden: Tensor) -> Tensor:
        """(B, 3, S, S), all of it, normalised."""
        return self.decode(features.grid)


class Decoder(nn.Module):
    """A transformer over the cells of a grid (B, C, h, w), which gives each its pixels: (B, 3, S, S), normalised."""

    def __init__(self, encoder: Encoder, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.side = encoder.grid_shape[0]
        self.pixels = encoder.size // self.side  # px, side of a cell
        self.embed = nn.Linear(encoder.width, width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(self.side**2, width, depth, heads, num_prefix_tokens=0)
        self.decode = linear_painter(width, self.pixels)

    def forward(self, grid: Tensor) -> Tensor:
        return self.from_tokens(self.embed(grid.flatten(2).transpose(1, 2)))

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """Of embedded cells, (B, h w, width)."""
        tokens = self.decoder.decode(self.decoder.add_pos_embed(tokens))
        return self.decode(tokens.transpose(1, 2).unflatten(2, (self.side, self.side)))


class Dropped(Decoder):
    """MAE: visible patches alone are seen; to the decoder a learned token stands for each of the others."""

    cells: Tensor

    def __init__(self, encoder: Encoder, patch: int, width: int = 256, depth: int = 4, heads: int = 8) -> None:
        super().__init__(encoder, width, depth, heads)
        patches = encoder.size // patch
        inside = self.side // patches
        cells = torch.arange(self.side**2).view(patches, inside, patches, inside).transpose(1, 2)
        self.register_buffer("cells", cells.reshape(patches**2, inside**2), persistent=False)  # those of each patch

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
            raw, tokens = of_patches(model, pixels, self.seen(hidden))
        return Features(raw, tokens.transpose(1, 2)[..., None], tokens.mean(1))

    def paint(self, features: Features, hidden: Tensor) -> Tensor:
        visible = single(self.embed(features.grid[..., 0].transpose(1, 2)))
        tokens = self.decoder.mask_token.expand(len(hidden), self.side**2, -1)
        return self.from_tokens(tokens.scatter(1, self.seen(hidden)[..., None].expand_as(visible), visible))


def linear_painter(width: int, side: int) -> nn.Module:
    """A linear map of each cell (B, width, h, w) to its pixels, `side` px a side: (B, 3, S, S)."""
    return nn.Sequential(nn.Conv2d(width, 3 * side**2, 1), nn.PixelShuffle(side))


def of_patches(model: VisionTransformer, pixels: Tensor, kept: Tensor, placed: bool = True) -> tuple[Tensor, Tensor]:
    """What a plain ViT makes of the patches `kept` (B, v) alone, with their positions or without.

    Returns its own output and, of these patches, that after the final norm: (B, v, C).
    """
    first = model.num_prefix_tokens
    patches = model.patch_embed(pixels)
    tokens = model._pos_embed(patches)
    cells = tokens[:, first:] if placed else patches.flatten(1, -2)  # a grid (B, h, w, C) if sizes may change
    cells = cells.gather(1, kept[..., None].expand(-1, -1, cells.shape[2]))
    raw = model.norm(model.blocks(model.norm_pre(torch.cat((tokens[:, :first], cells), 1))))
    return raw, model.fc_norm(raw)[:, first:]


def takes_patches_alone(model: nn.Module) -> bool:
    """A plain ViT with absolute positions, whose patches do not overlap (those of its relatives do)."""
    return (
        isinstance(model, VisionTransformer) and type(model.patch_embed) is PatchEmbed and model.pos_embed is not None
    )


def standardised(pixels: Tensor, patch: int) -> Tensor:
    """(B, 3, S, S), every patch of it with mean 0 and variance 1 over its pixels and channels."""
    patches = F.pixel_unshuffle(pixels, patch)
    variance, mean = torch.var_mean(patches, 1, keepdim=True)
    return F.pixel_shuffle((patches - mean) / (variance + 1e-6).sqrt(), patch)


def over_pixels(hidden: Tensor, size: int) -> Tensor:
    """(B, n) patches, row by row, -> (B, 1, S, S)."""
    rows = hidden.unflatten(1, (math.isqrt(hidden.shape[1]), -1))
    patch = size // rows.shape[1]
    return rows.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None]


def hidden_of(patches: int, ratio: float) -> int:
    return math.ceil(patches * ratio - 1e-9)  # 10 * 0.7 is 7.000000000000001


def cell_side(encoder: Encoder, name: str) -> int:
    """In px. Raises Problem T-161 if the cells of the grid do not divide the image."""
    cells = encoder.grid_shape[0]
    if encoder.size % cells:
        what = f"{name}: a grid of {cells} cells a side does not divide an image of {encoder.size} px"
        raise Problem("T-161", Exit.CONFIG, what, fix=f"images of {cells * (encoder.size // cells)} px")
    return encoder.size // cells


def patch_sides(encoder: Encoder, drop: bool, ratio: float, setting: str) -> tuple[list[int], int]:
    """In px: the sides that patches can have, and the usual one."""
    model, size = encoder.model, encoder.size
    usual, sides = cell_side(encoder, "masked_image"), range(1, size)
    if drop and isinstance(model, Hiera):
        usual = int(model.mask_unit_size[0] * model.patch_stride[0])
        sides = range(usual, usual + 1)
    elif drop and takes_patches_alone(model):
        sides = range(usual, size, usual)
    elif drop:
        raise Problem(
            "T-161",
            Exit.CONFIG,
            f"masked_image: {type(model).__name__} cannot be shown visible patches alone",
            why="its layers need the whole grid, or its patches overlap; those of Hiera, and of a plain ViT with "
            "absolute positions, do not",
            fix=f"{setting.rpartition('.')[0]}.form: simmim",
        )
    number = {side: (size // side) ** 2 for side in sides if size % side == 0}
    return [side for side, patches in number.items() if hidden_of(patches, ratio) < patches], usual
