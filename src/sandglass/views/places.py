"""Where in the original image the pixels of a view come from: what a loss on corresponding cells needs.

A crop, flips included, is a span along each axis: output pixel x of `size` was read around
begin + (x + 1/2) run / size; a flipped span runs backwards. So the centre of a cell of any grid over the view has a
place in the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """Of one view of B images: spans (B, 4) along rows and columns, as in `ops.crop_spans`."""

    rows: Tensor
    columns: Tensor

    def centres(self, h: int, w: int) -> Tensor:
        """(B, h, w, 2) float64: row and column, in px of the original image, of the centre of each cell."""

        def along(spans: Tensor, cells: int) -> Tensor:
            begin, run = spans[:, :1], spans[:, 1:2]
            return begin + (torch.arange(cells, device=spans.device, dtype=torch.float64) + 0.5) * run / cells

        rows, columns = along(self.rows, h), along(self.columns, w)
        return torch.stack((rows[:, :, None].expand(-1, -1, w), columns[:, None, :].expand(-1, h, -1)), 3)
