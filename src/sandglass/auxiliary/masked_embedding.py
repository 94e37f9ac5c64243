"""Masked embedding: hide a share r of the grid's cells and let a small transformer rebuild them from the others.

E_hat = blocks(where(masked, token, E) + positions);  loss = mean over masked cells and channels of (E - E_hat)^2.
With the target attached, the loss can also fall by shrinking E or making it constant; the figures watch for that.
With `ema`, E on the right is what a slowly moving copy of the encoder, as in BYOL, says of the same view.
The masking is that of He et al., arXiv 2111.06377; Das et al., arXiv 2310.20704, have features as an auxiliary target.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from sandglass.auxiliary._base import Auxiliary
from sandglass.auxiliary._grid import GridWatch
from sandglass.backbones.grid import Encoder
from sandglass.data.loader import Batch
from sandglass.errors import Exit, Problem
from sandglass.objectives._parts import follow, still

PAPER = "arXiv 2111.06377"

SETTINGS = {
    "weight": (0.1, 0.0, 10.0),  # lambda
    "lambda_schedule": ("const", {"const", "warmup_decay"}),
    "ratio": (0.75, 0.0, 0.95),  # r, share of the cells that is masked; 0: an autoencoder, judged on every cell
    "divide_by": ("masked", {"masked", "nominal"}),  # what is really masked, or r
    "target": ("detached", {"attached", "detached", "ema"}),  # attached: the loss also pulls at the cells to be rebuilt
    "momentum": (0.99, 0.0, 1.0),  # of the copy of the encoder that gives the target, if it is ema
    "target_norm": ("ln", {"none", "ln"}),  # layer norm of each target cell, without parameters
    "depth": (4, 1, 24),  # blocks
    "heads": (4, 1, 64),  # must divide the grid's channels
    "projection": False,  # a layer norm and Linear(C,C) after the blocks, as in MAE
    "decoder": ("trained", {"trained", "frozen"}),  # frozen: the control that stays as random as it began
}

PRESETS = {
    "thesis": {"divide_by": "nominal", "target": "attached", "target_norm": "none", "lambda_schedule": "const"},
    "sound": {"divide_by": "masked", "target": "detached", "target_norm": "ln", "lambda_schedule": "const"},
}


class MaskedEmbedding(Auxiliary):
    """Pre-norm blocks with an MLP ratio of 4 and no dropout; 4,709,016 parameters for a grid (312,8,8).

    The blocks run in the precision around them (they are no small share of a step), the loss in float32.
    Raises Problem T-151 if `heads` does not divide the channels.
    """

    def __init__(self, encoder: Encoder, settings: dict[str, Any]) -> None:
        super().__init__(encoder, settings)
        heads = settings["heads"]
        if self.channels % heads:
            near = [n for n in range(1, min(self.channels, 64) + 1) if self.channels % n == 0]
            raise Problem(
                "T-151",
                Exit.CONFIG,
                f"masked_embedding: {heads} heads do not divide the {self.channels} channels of the grid",
                fix=f"auxiliary.masked_embedding.heads: one of {', '.join(map(str, near))}",
            )
        self.cells = math.prod(self.grid_shape)
        visible = math.floor(self.cells * (1 - settings["ratio"]) + 1e-9)  # 10 * (1 - 0.9) is 0.99999
        self.masked_cells = self.cells - max(visible, 1)
        self.mask_token = nn.Parameter(torch.empty(self.channels).normal_(std=0.02))
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.cells, self.channels), std=0.02))
        self.blocks = nn.Sequential(*(Block(self.channels, heads, qkv_bias=True) for _ in range(settings["depth"])))
        self.projection: nn.Module = nn.Identity()
        if settings["projection"]:
            self.projection = nn.Sequential(nn.LayerNorm(self.channels), nn.Linear(self.channels, self.channels))
        if settings["decoder"] == "frozen":
            self.requires_grad_(False)
        if settings["target"] == "ema":
            self.target = still(copy.deepcopy(encoder))
        self.watch = GridWatch()

    def loss(self, encoder: Encoder, grid: Tensor, batch: Batch) -> dict[str, Tensor]:
        """grid (B,C,h,w) -> "loss", and what tells a learning task from a shrinking grid.

        "over_variance" is the loss over the variance of the target: 1 is what the mean of each channel would get.
        """
        tokens = grid.flatten(2).transpose(1, 2)  # (B,hw,C)
        masked = batch.drawn(self.draw).to(grid.device, non_blocking=True)
        filled = torch.where(masked[..., None], self.mask_token, tokens)
        predicted = self.projection(self.blocks(filled + self.positions)).float()
        target = self.wanted(encoder, tokens, batch)
        error = (predicted - target).square().mean(dim=-1)  # (B,hw)
        counted = masked if self.masked_cells else torch.ones_like(masked)  # nothing hidden: every cell counts
        nominal = self.settings["divide_by"] == "nominal"
        divisor = self.cells * (self.settings["ratio"] or 1) if nominal else self.masked_cells or self.cells
        loss = (error * counted).sum() / (divisor * len(tokens))
        variance = target.detach().var(dim=(0, 1), correction=0).mean().clamp_min(1e-12)
        ratio = error.new_full((), self.masked_cells / self.cells)
        return {"loss": loss, "over_variance": loss.detach() / variance, "mask_ratio": ratio, **self.watch(grid)}

    def wanted(self, encoder: Encoder, tokens: Tensor, batch: Batch) -> Tensor:
        """What is to be rebuilt, given the grid's own tokens: float32 (B,hw,C)."""
        if self.settings["target"] == "detached":
            tokens = tokens.detach()
        elif self.settings["target"] == "ema":
            for copied, own in zip(self.target.modules(), encoder.modules(), strict=True):
                copied.training = own.training  # the norms of a frozen stem stay frozen
            with torch.no_grad():
                tokens = self.target(batch.views[0]).grid.flatten(2).transpose(1, 2)
        tokens = tokens.float()
        return F.layer_norm(tokens, (self.channels,)) if self.settings["target_norm"] == "ln" else tokens

    def after_step(self, encoder: Encoder, progress: float) -> None:
        if self.settings["target"] == "ema":
            follow(self.target, encoder, self.settings["momentum"])

    def draw(self, images: int, generator: torch.Generator) -> Tensor:
        """A mask for each image, with the same number of masked cells: bool (images,hw), True is masked."""
        order = torch.rand(images, self.cells, generator=generator).argsort(dim=1)
        return torch.zeros(images, self.cells, dtype=torch.bool).scatter_(1, order[:, : self.masked_cells], True)

    def collapsed(self) -> bool:
        return self.watch.collapsed()
