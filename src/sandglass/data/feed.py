"""Where images wait until a device asks for them.

A split that fits stays on the GPU, and a batch is a gather there. One that does not is read from its mapped files into
pinned memory and copied beside the computation by a thread, one batch ahead. On a CPU the mapped files are the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import torch
from torch import Tensor

from sandglass.data.loader import Split

SHARE = 0.3  # of a GPU's free memory, for images
CHUNK = 1024  # images brought to a GPU at once


class Feed:
    """The images of a split on a device: uint8 (B,3,H,W), each in the top left of a canvas.

    room: bytes on the device for images; a share of what is free on a GPU, and on a CPU none are kept apart from the
    files. What has its place on a device has a canvas as large as the split's largest image: batches of one shape.
    """

    def __init__(self, split: Split, device: torch.device, room: float | None = None) -> None:
        self.split, self.device, self.resident = split, device, None
        if room is None and device.type == "cuda":
            room = SHARE * torch.cuda.mem_get_info(device)[0]
        self.mapped = room is None
        height, width = self.canvas = tuple(split.sizes.max(axis=0).tolist())
        if room is not None and len(split) * 3 * height * width <= room:
            self.resident = torch.empty(len(split), 3, height, width, dtype=torch.uint8, device=device)
            for rows in torch.arange(len(split)).split(CHUNK):
                self.resident[rows[0] : rows[-1] + 1] = split.take(rows, self.canvas)[0].to(device)

    def images(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images of each batch of rows (B,), int64 on the CPU, in turn."""
        if self.mapped:
            yield from (self.split.take(rows)[0] for rows in batches)
        elif self.resident is not None:
            yield from (self.resident.index_select(0, sent(rows, self.device)) for rows in batches)
        else:
            yield from self._ahead(batches)

    def _ahead(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """While one batch is worked on, the next is read and copied."""
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

        def fetch(rows: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
            with torch.cuda.stream(stream) if stream else nullcontext():
                images = sent(self.split.take(rows, self.canvas)[0], self.device)
                return images, stream.record_event() if stream else None

        with ThreadPoolExecutor(1) as thread:
            waiting = []
            for rows in batches:
                waiting.append(thread.submit(fetch, rows))
                if len(waiting) > 1:
                    yield self._arrived(*waiting.pop(0).result())
            for last in waiting:
                yield self._arrived(*last.result())

    def _arrived(self, images: Tensor, copied: torch.cuda.Event | None) -> Tensor:
        if copied:
            here = torch.cuda.current_stream(self.device)
            here.wait_event(copied)
            images.record_stream(here)
        return images


def sent(x: Tensor, device: torch.device) -> Tensor:
    """To a GPU without waiting for it, which takes memory that cannot be paged out."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x
