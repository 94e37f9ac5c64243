"""Optimisers and parameter groups. Weight decay never touches norms, biases, positions, tokens or tables.

No step asks a tensor for its value, so that a GPU is never waited for.
"""

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


class LARS(torch.optim.Optimizer):
    """SGD whose decayed parameters are scaled, each by itself, to the size of their weights (arXiv 1708.03888).

        u = c |w| / (|g| + d |w|) (g + d w),    v <- m v + u,    w <- w - lr v

    with the trust coefficient c and the weight decay d. Where d, |w| or |g| is 0, u = g. So it is in lightly, whose
    optimiser asks for both norms of every parameter and has a GPU wait for each.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float, trust: float = 0.001) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Without a closure, which is here for the base class's sake."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            updates: Any = [p.grad for p in weights]
            if decay := group["weight_decay"]:
                own, steep = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, updates))
                scaled = (own != 0) & (steep != 0)
                ratio = torch.where(scaled, group["trust"] * own / (steep + own * decay + 1e-8), 1.0)
                pulled = torch._foreach_mul(weights, (scaled.to(own.dtype) * decay).unbind())
                updates = torch._foreach_mul(torch._foreach_add(updates, pulled), ratio.unbind())
            velocities = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in weights]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, updates)
            torch._foreach_sub_(weights, torch._foreach_mul(velocities, group["lr"]))


def build(groups: list[dict[str, Any]], name: str, lr: float, momentum: float) -> torch.optim.Optimizer:
    """The optimiser of a name, whose rates `set_rates` sets: each group's own number on the device.

    One fused call for all parameters, on a GPU and on a CPU: there AdamW takes a third of the time of torch's loop.
    """
    device = groups[0]["params"][0].device
    for group in groups:
        group["lr"] = torch.tensor(lr, device=device)
    if name == "lars":
        return _uncompiled(LARS)(groups, lr=lr, momentum=momentum)
    if name == "sgd":
        return _uncompiled(torch.optim.SGD)(groups, lr=lr, momentum=momentum, fused=True)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    return _uncompiled(kind)(groups, lr=lr, fused=True, capturable=device.type == "cuda")


def _uncompiled(kind: type[torch.optim.Optimizer]) -> Any:
    """The same optimiser, but for what imports torch's compiler (backbones/_timm.py) to say that it is not compiled."""
    methods = ("add_param_group", "zero_grad", "state_dict", "load_state_dict", "step")
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in methods}
    return type(kind.__name__, (kind,), plain | {"step": torch.no_grad()(plain["step"])})


def set_rates(optimizer: torch.optim.Optimizer, peak: float, factor: float) -> None:
    """The learning rates at `factor` of their peak, but of those groups that keep it."""
    for group in optimizer.param_groups:
        group["lr"].fill_(peak * (1.0 if group["constant"] else factor) * group["lr_scale"])
