"""Optimisers and parameter groups. Weight decay never touches norms, biases, positions, tokens or tables."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

# Parameters of two or more axes that are still no weights of a linear map.
_NEVER_DECAYED = (
    "pos_embed",
    "cls_token",
    "reg_token",
    "mask_token",
    "relative_position",
    "rel_pos",
    "attention_biases",
)


def parameter_groups(
    modules: Iterable[nn.Module],
    weight_decay: float,
    scaled: dict[str, float] | None = None,
    constant: tuple[str, ...] = (),
    everything: bool = False,
) -> list[dict[str, Any]]:
    """Trainable parameters in groups {params, weight_decay, lr_scale, constant}.

    No decay for parameters of at most one axis, `*.bias`, what the model itself names in `no_weight_decay()`, and
    position tables and tokens, unless `everything` is to decay. `scaled` maps a name prefix to a factor on the learning
    rate; `constant` are the prefixes of those whose rate stays at its peak.
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for module in modules:
        own = _declared(module)
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            bare = parameter.ndim <= 1 or name.endswith(".bias") or name in own
            bare = not everything and (bare or any(word in name for word in _NEVER_DECAYED))
            decay = 0.0 if bare else weight_decay
            scale = next((factor for prefix, factor in (scaled or {}).items() if name.startswith(prefix)), 1.0)
            groups.setdefault((decay, scale, name.startswith(constant)), []).append(parameter)
    keys = ("weight_decay", "lr_scale", "constant")
    return [{"params": list_, **dict(zip(keys, key, strict=True))} for key, list_ in groups.items()]


def _declared(module: nn.Module) -> set[str]:
    """Full names of the parameters that a module, or one inside it, declares free of decay (timm's convention)."""
    names: set[str] = set()
    for prefix, inner in module.named_modules():
        declare = getattr(inner, "no_weight_decay", None)
        if callable(declare):
            names |= {f"{prefix}.{name}" if prefix else name for name in declare()}
    return names


def build(groups: list[dict[str, Any]], name: str, lr: float, momentum: float) -> torch.optim.Optimizer:
    """The optimiser of a name. LARS is lightly's: trust ratio only where a group has weight decay."""
    fused = all(p.is_cuda for group in groups for p in group["params"])
    if name == "adamw":
        return _uncompiled(torch.optim.AdamW)(groups, lr=lr, fused=fused or None)
    if name == "adam":
        return _uncompiled(torch.optim.Adam)(groups, lr=lr, fused=fused or None)
    if name == "sgd":
        return _uncompiled(torch.optim.SGD)(groups, lr=lr, momentum=momentum, fused=fused or None)
    from lightly.utils.lars import LARS

    return _uncompiled(LARS)(groups, lr=lr, momentum=momentum)


def _uncompiled(kind: type[torch.optim.Optimizer]) -> Any:
    """The same optimiser, but for what imports torch's compiler (backbones/_timm.py) to say that it is not compiled."""
    methods = ("add_param_group", "zero_grad", "state_dict", "load_state_dict", "step")
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in methods}
    return type(kind.__name__, (kind,), plain | {"step": torch.no_grad()(plain["step"])})
