"""Does the model withstand attacks, or does it only hide its gradient from them? Eight signs of hiding, with flags.

Each of SIGNS is a number that is near 0 for a model whose gradient says where its errors lie. Its flag goes up above
half a point of accuracy (or one image, where there are few), that of the two ratios above their own BOUNDS. A raised
flag says that the robust accuracies beside it are upper bounds and nothing more; none raised is no proof.
Carlini et al. 2019, arXiv 1902.06705; Athalye et al. 2018, arXiv 1802.00420; Croce et al. 2020, arXiv 2010.09670.
That the model is deterministic and tells its logits is not flagged but required (Problems E-114, E-115).
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sandglass.data.loader import step_generator
from sandglass.evaluate.attacks import fgsm, pgd, square
from sandglass.evaluate.attacks._ball import Ball
from sandglass.evaluate.attacks._base import Attack, Model, Outcome, Shown
from sandglass.evaluate.attacks._base import run as sweep
from sandglass.evaluate.attacks._kept import Kept
from sandglass.evaluate.attacks.signs import SIGNS

PAPER = "arXiv 1902.06705, 1802.00420, 2010.09670"

SETTINGS = {
    "epsilons": ([1.0, 2.0, 4.0, 8.0], 0.001, 255.0),  # in 1/255, above 0
    "steps": (20, 1, 10000),  # of PGD
    "restarts": (5, 1, 1000),
    "queries": (1000, 1, 1000000),  # of Square, for each image
}

FAR = 64.0
SLACK = 0.005  # of accuracy
BOUNDS = {"loss_falls_with_steps": 0.01, "noise_does_it_too": 0.5}  # parts of the loss, and of what the gradient does
STEPS = (1, 5, 20)  # along which the loss must not fall


def run(
    model: Model, images: Tensor, labels: Tensor, settings: dict[str, Any], seed: int, kept: Kept | None = None
) -> Outcome:
    """Rows: each sign, flag_<sign> (0 or 1), and `flags`, their number; examples are those of Square.

    What needs one epsilon is seen at the one where PGD leaves nearest to half of what was right.
    Raises Problem, see `_base.run`.
    """
    kept, n, epsilons = kept or Kept(), len(images), [*settings["epsilons"], FAR]

    def attacked(name: str, attack: Attack, *at: float) -> Outcome:
        return sweep("masking", attack, model, images, labels, {"epsilons": list(at)}, kept.within(name))

    def search(**changed: Any) -> Attack:
        usual = {"loss": "cross_entropy", "random_start": True, "step_scale": 2.5}
        return partial(pgd.descend, settings | usual | changed, seed)

    strong = attacked("pgd", search(), *epsilons)
    quick = _by_epsilon(attacked("fgsm", fgsm.step, *epsilons), "robust_top1")
    left, clean = _by_epsilon(strong, "robust_top1"), _by_epsilon(strong, "clean_top1")[FAR]
    middle = min(sorted(left, reverse=True), key=lambda epsilon: abs(left[epsilon] - clean / 2))
    blind = attacked("square", partial(square.squares, {"queries": settings["queries"], "share": 0.8}, seed), middle)
    climbs = [attacked(f"steps-{t}", search(steps=t, random_start=False), middle) for t in STEPS]
    losses = [_by_epsilon(climb, "robust_cross_entropy")[middle] for climb in climbs]
    first = _by_epsilon(attacked("once", search(restarts=1), middle), "robust_top1")[middle]
    noisy = clean - _by_epsilon(attacked("noise", partial(_noise, seed), middle), "robust_top1")[middle]
    slack = max(SLACK, 1.5 / n)
    values = {
        "pgd_above_fgsm": max(left[epsilon] - quick[epsilon] for epsilon in left),
        "rises_with_epsilon": max((left[b] - left[a] for a, b in pairwise(sorted(left))), default=0.0),
        "survives_far": left[FAR],
        "only_black_box": float((_right(strong, middle) & ~_right(blind, middle)).mean()),
        "zero_gradient": next(row["value"] for row in strong.rows if row["metric"] == "zero_gradient_images"),
        "loss_falls_with_steps": max((a - b) / a if a > 0 else 0.0 for a, b in pairwise(losses)),
        "noise_does_it_too": noisy / max(noisy, clean - left[middle]) if noisy > slack else 0.0,
        "needs_restarts": first - left[middle],
    }
    flags = {name: int(value > BOUNDS.get(name, slack)) for name, value in values.items()}
    found = {name: max(values[name], 0.0) for name in SIGNS}
    found |= {f"flag_{name}": up for name, up in flags.items()} | {"flags": sum(flags.values())}
    shared = {"split": "test", "n": n, "attack": "masking"}
    rows = [{"metric": metric, "value": value} | shared for metric, value in found.items()]
    return Outcome(rows, blind.examples, strong.predictions)


def _noise(seed: int, batch: Shown, ball: Ball) -> Tensor:
    """As far as FGSM goes, each entry up or down by chance."""
    generators = [step_generator(seed, 0, row, "noise") for row in batch.rows]
    signs = torch.stack([torch.randint(2, batch.x.shape[1:], generator=g) for g in generators]) * 2 - 1
    return ball.clipped(batch.x + ball.radius * ball.unit * signs.to(batch.x))


def _by_epsilon(outcome: Outcome, metric: str) -> dict[float, float]:
    return {row["epsilon"]: row["value"] for row in outcome.rows if row["metric"] == metric}


def _right(outcome: Outcome, epsilon: float) -> Any:
    """Which images are right at this epsilon: bool (N,)."""
    found = outcome.predictions
    return found["attacked"][list(found["epsilons"]).index(epsilon)] == found["labels"]
