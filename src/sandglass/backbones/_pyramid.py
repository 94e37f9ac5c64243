"""What timm asks of a model of stages, said once: intermediates, pruning, classifier, checkpointing.

A subclass has `stages`, a final `norm` (or none: Identity), `feature_info`, and `run`, which goes through the stages.
"""

from __future__ import annotations

from typing import Any

from timm.models._features import feature_take_indices
from torch import Tensor, nn


class Pyramid(nn.Module):
    """Stages one after the other, each with a map (B, C, h, w)."""

    stages: Any
    norm: Any
    head: Any
    feature_info: list[dict[str, Any]]
    grad_checkpointing = False

    def run(self, x: Tensor, last: int | None) -> tuple[Tensor, list[Tensor]]:
        """The output of stage `last` (None: the final one) before the norm, and the maps of all stages to it."""
        raise NotImplementedError

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps of the stages; `norm` is for the last one, whose width the final norm has."""
        if output_fmt != "NCHW":
            raise ValueError("the only output format is NCHW")
        take, last = feature_take_indices(len(self.stages), indices)
        x, maps = self.run(x, last if stop_early or intermediates_only else None)
        if norm and len(maps) == len(self.feature_info):
            maps[-1] = self.norm(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        taken = [maps[i] for i in take]
        if intermediates_only:
            return taken
        return (self.norm(x) if len(maps) == len(self.feature_info) else x), taken

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last one asked for; the final norm goes with the last stage."""
        take, last = feature_take_indices(len(self.stages), indices)
        if prune_norm or last + 1 < len(self.stages):
            self.norm = nn.Identity()
        self.stages = self.stages[: last + 1]
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm(self.run(x, None)[0])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
