"""Where in the original image the pixels of a view come from: what a loss on corresponding cells needs.

A crop, flips included, is a span along each axis: output pixel x of `size` was read around
begin + (x + 1/2) run / size; a flipped span runs backwards. What moved pixels about afterwards is undone first, the
last operation before the others. So the centre of a cell of any grid over the view has a place in the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sandglass.views import ops

Place = tuple[Tensor, Tensor]  # rows and columns


@dataclass(frozen=True)
class Places:
    """Of one view of B images, size x size px: spans (B, 4) along rows and columns, as in `ops.crop_spans`.

    moves: of what `recipes.draw` drew, the quarter turn, the local rotation and the region confusion, if they are on.
    """

    rows: Tensor
    columns: Tensor
    size: int = 1
    moves: dict[str, Tensor] = field(default_factory=dict)
    confusion_trim: int = 10

    def centres(self, h: int, w: int) -> Tensor:
        """(B, h, w, 2) float64: row and column, in px of the original image, of the centre of each cell."""
        device = self.rows.device
        whole = torch.ones(len(self.rows), h, w, dtype=torch.float64, device=device)
        y = whole * ((torch.arange(h, device=device).view(-1, 1) + 0.5).double() * self.size / h)
        x = whole * ((torch.arange(w, device=device) + 0.5).double() * self.size / w)
        y, x = self._undo("region_confusion", self._unconfused, y, x)
        y, x = self._undo("local_rotation", lambda y, x: ops.before_rotation(y, x, self.moves["patch"]), y, x)
        y, x = self._undo("quarter_turn", lambda y, x: (x, self.size - y), y, x)

        def along(spans: Tensor, place: Tensor) -> Tensor:
            begin, run = spans[:, 0].double().view(-1, 1, 1), spans[:, 1].double().view(-1, 1, 1)
            return begin + place * run / self.size

        return torch.stack((along(self.rows, y), along(self.columns, x)), 3)

    def _unconfused(self, y: Tensor, x: Tensor) -> Place:
        return ops.before_confusion(y, x, self.moves["cells"], self.size, self.confusion_trim)

    def _undo(self, name: str, before: Callable[[Tensor, Tensor], Place], y: Tensor, x: Tensor) -> Place:
        if name not in self.moves:
            return y, x
        done = self.moves[name].view(-1, 1, 1)
        row, column = before(y, x)
        return torch.where(done, row, y), torch.where(done, column, x)
