"""What training costs: wall-clock inside the loop and peak memory, over all attempts of a run.

Time spent on evaluation, checkpoints and start-up is not counted. The first epoch warms up caches and kernels, so the
rate is that of the others, and minutes are what all epochs take at that rate.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

import torch


@dataclass
class Cost:
    """Counted by `spent`; all of it goes into the checkpoint."""

    first_images: int = 0  # of the first epoch
    first_seconds: float = 0.0
    later_images: int = 0
    later_seconds: float = 0.0
    allocated_gib: float = 0.0  # most at one time; without a GPU what the process has in memory
    reserved_gib: float = 0.0  # of a GPU, by the allocator

    def __post_init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def spent(self, epoch: int, images: int, seconds: float) -> None:
        """A step of epoch 0, 1, ..."""
        if epoch == 0:
            self.first_images, self.first_seconds = self.first_images + images, self.first_seconds + seconds
        else:
            self.later_images, self.later_seconds = self.later_images + images, self.later_seconds + seconds

    def look(self) -> None:
        """Remember the peak of memory so far."""
        if torch.cuda.is_available():
            self.allocated_gib = max(self.allocated_gib, torch.cuda.max_memory_allocated() / 2**30)
            self.reserved_gib = max(self.reserved_gib, torch.cuda.max_memory_reserved() / 2**30)
        else:
            unit = 1 if sys.platform == "darwin" else 1024
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
            self.allocated_gib = max(self.allocated_gib, resident)

    def numbers(self) -> dict[str, float]:
        """minutes, images_per_second, peak_memory_gib, and on a GPU peak_reserved_gib."""
        images = self.first_images + self.later_images
        if self.later_images:
            rate = self.later_images / max(self.later_seconds, 1e-9)
        else:
            rate = self.first_images / max(self.first_seconds, 1e-9)
        found = {"minutes": images / rate / 60, "images_per_second": rate, "peak_memory_gib": self.allocated_gib}
        return found | ({"peak_reserved_gib": self.reserved_gib} if self.reserved_gib else {})
