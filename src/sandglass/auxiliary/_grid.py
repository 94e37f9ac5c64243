"""What a task on the grid may do to it without being seen in the loss: shrink it, flatten it, or make it a code of
places that is the same for every image. Four figures tell these apart; the fourth, `rank`, is asked at log steps only,
as it makes a GPU wait."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sandglass.objectives._parts import effective_rank

RANK_CELLS = 256  # of a batch, evenly spaced
COLLAPSED_BELOW = 0.1  # of the first epoch's deviation over the batch


class GridWatch(nn.Module):
    """Called with the grid of every step. Its state is in `state_dict`: a resumed run tells what a whole one would."""

    first_spread: Tensor
    spread_sum: Tensor
    spread_count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("first_spread", "spread_sum", "spread_count"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def forward(self, grid: Tensor) -> dict[str, Tensor]:
        """(B,C,h,w) -> size, and mean deviation over positions and over images."""
        tokens = _tokens(grid)
        spread = _deviation(tokens, 0)
        self.spread_sum += spread
        self.spread_count += 1
        return {
            "rms": tokens.square().mean().sqrt(),
            "std_positions": _deviation(tokens, 1),
            "std_batch": spread,
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


@torch.no_grad()
def rank(grid: Tensor) -> Tensor:
    """The effective rank of some cells of a grid (B,C,h,w)."""
    cells = _tokens(grid).flatten(0, 1)
    kept = min(RANK_CELLS, len(cells))
    rows = torch.arange(kept, device=cells.device) * (len(cells) - 1) // max(1, kept - 1)
    return effective_rank(cells[rows])


def _tokens(grid: Tensor) -> Tensor:
    """(B,C,h,w) -> float32 (B,hw,C), without gradient."""
    return grid.detach().float().flatten(2).transpose(1, 2).contiguous()


def _deviation(tokens: Tensor, axis: int) -> Tensor:
    """The mean standard deviation along an axis; on a CPU a tenth of the time of `Tensor.std`."""
    return (tokens - tokens.mean(axis, keepdim=True)).square().mean(axis).sqrt().mean()
