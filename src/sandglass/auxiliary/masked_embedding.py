"""Masked embedding: hide a share r of the grid's cells and let a small transformer rebuild them from the others.

E_hat = blocks(where(masked, token, E) + positions);  loss = mean over masked cells and channels of (E - E_hat)^2.
With the target attached, the loss can also fall by shrinking E or making it constant; the scalars watch for that.
The masking is that of He et al., arXiv 2111.06377; Das et al., arXiv 2310.20704, have features as an auxiliary target.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from sandglass.auxiliary._base import Auxiliary
from sandglass.backbones.grid import Encoder
from sandglass.data.loader import Batch
from sandglass.errors import Exit, Problem
from sandglass.objectives._parts import effective_rank

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

RANK_EVERY = 50  # calls; singular values make a GPU wait
RANK_CELLS = 256  # of a batch, evenly spaced
COLLAPSED_BELOW = 0.1  # of the first epoch's deviation over the batch


class MaskedEmbedding(Auxiliary):
    """Pre-norm blocks with an MLP ratio of 4 and no dropout; 4,709,016 parameters for a grid (312,8,8).

    The blocks run in the precision around them (they are no small share of a step), the loss in float32.
    Raises Problem T-151 if `heads` does not divide the channels.
    """

    first_spread: Tensor
    spread_sum: Tensor
    spread_count: Tensor
    rank: Tensor

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
        for name in ("first_spread", "spread_sum", "spread_count"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("rank", torch.ones(()))
        self.calls = 0

    def loss(self, encoder: Encoder, grid: Tensor, batch: Batch) -> dict[str, Tensor]:
        """grid (B,C,h,w) -> "loss" and what tells a learning task from a shrinking grid (see `watch`)."""
        tokens = grid.flatten(2).transpose(1, 2)  # (B,hw,C)
        masked = batch.drawn(self.draw).to(grid.device, non_blocking=True)
        filled = torch.where(masked[..., None], self.mask_token, tokens)
        predicted = self.blocks(filled + self.positions).float()
        target = tokens.float()
        if self.settings["target"] == "detached":
            target = target.detach()
        if self.settings["target_norm"] == "ln":
            target = F.layer_norm(target, (self.channels,))
        error = (predicted - target).square().mean(dim=-1)  # (B,hw)
        divisor = self.masked_cells if self.settings["divide_by"] == "masked" else self.cells * self.settings["ratio"]
        loss = (error * masked).sum() / (divisor * len(tokens))
        return {"loss": loss, **self.watch(tokens.detach().float(), target.detach(), loss.detach())}

    def draw(self, images: int, generator: torch.Generator) -> Tensor:
        """A mask for each image, with the same number of masked cells: bool (images,hw), True is masked."""
        order = torch.rand(images, self.cells, generator=generator).argsort(dim=1)
        return torch.zeros(images, self.cells, dtype=torch.bool).scatter_(1, order[:, : self.masked_cells], True)

    @torch.no_grad()
    def watch(self, tokens: Tensor, target: Tensor, loss: Tensor) -> dict[str, Tensor]:
        """The grid's size, deviation over positions and over images, and effective rank; tokens, target (B,hw,C).

        "over_variance" is the loss over the variance of the target: 1 is what the mean of each channel would get.
        """
        spread = tokens.std(dim=0, correction=0).mean()
        self.spread_sum += spread
        self.spread_count += 1
        if self.calls % RANK_EVERY == 0:
            rows = torch.linspace(0, tokens[..., 0].numel() - 1, RANK_CELLS, device=tokens.device).long()
            self.rank.copy_(effective_rank(tokens.flatten(0, 1)[rows.unique()]))
        self.calls += 1
        return {
            "rms": tokens.square().mean().sqrt(),
            "std_positions": tokens.std(dim=1, correction=0).mean(),
            "std_batch": spread,
            "effective_rank": self.rank.clone(),
            "mask_ratio": tokens.new_full((), self.masked_cells / self.cells),
            "over_variance": loss / target.var(dim=(0, 1), correction=0).mean().clamp_min(1e-12),
        }

    def collapsed(self) -> bool:
        """Asked once at the end of every epoch: is the deviation over the batch below a tenth of the first epoch's?"""
        if not self.spread_count:
            return False
        spread = self.spread_sum / self.spread_count
        self.spread_sum.zero_()
        self.spread_count.zero_()
        if not self.first_spread:
            self.first_spread.copy_(spread)
        return bool(spread < COLLAPSED_BELOW * self.first_spread)

    def get_extra_state(self) -> Tensor:
        """The number of calls is in `state_dict`, so that a resumed run measures the rank at the same steps."""
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        self.calls = int(state)
