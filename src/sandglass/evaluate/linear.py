"""Linear probe: L2-regularised multinomial logistic regression on standardised frozen features.

min over W, b of  mean cross-entropy(x W + b, y) + l2 / 2 |W|^2,  in float64 by L-BFGS from zero; b is not penalised.
l2 is the value of the grid with the best validation accuracy; test is read once, after that.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sandglass.evaluate.features import Row, Subject, accuracy_rows, places, refuse_blind_choice, share, share_row

SETTINGS = {
    "l2": [1e-06, 1e-05, 1e-04, 1e-03, 1e-02, 1e-01, 1.0],  # the grid
    "iterations": (1000, 1, 100000),  # of L-BFGS, at most, for each l2
}


def run(subject: Subject, settings: dict[str, Any], seed: int) -> list[Row]:
    """Accuracies on val and test, with the l2 chosen on val. Draws nothing: `seed` changes nothing.

    "majority" is what the commonest class of test would get; "gradient" is the largest entry of the gradient of the
    chosen fit, near 0 if it converged. Raises Problem E-120 if there is a grid to choose from and no validation split.
    """
    features = subject.features
    grid = sorted(set(settings["l2"]), reverse=True)
    if not len(features.val):
        refuse_blind_choice("linear", "l2", grid)
    mean, deviation = features.train.double().mean(dim=0), features.train.double().std(dim=0, correction=0)
    deviation = torch.where(deviation > 1e-12 * mean.abs().clamp_min(1), deviation, 1.0)  # a constant stays at zero

    def standard(rows: Tensor) -> Tensor:
        return (rows.double() - mean) / deviation

    train, val = standard(features.train), standard(features.val)
    weights = train.new_zeros(train.shape[1] + 1, features.classes)
    best: tuple[tuple[float, float], float, Tensor] | None = None
    for l2 in grid:  # from strong to weak: each solution is where the next search starts
        weights = fit(train, features.train_labels, l2, weights, settings["iterations"])
        scores = _scores(val, weights)
        top1 = share(places(scores, features.val_labels) < 1) if len(val) else 0.0
        cross_entropy = float(F.cross_entropy(scores, features.val_labels)) if len(val) else 0.0
        if best is None or (top1, -cross_entropy) > best[0]:  # of equal accuracies the surer one
            best = (top1, -cross_entropy), l2, weights
    assert best is not None
    _, l2, weights = best
    rows = accuracy_rows(_scores(val, weights), features.val_labels, "val") if len(val) else []
    scores = _scores(standard(features.test), weights)
    rows += accuracy_rows(scores, features.test_labels, "test")
    subject.answers["predicted"] = scores.argmax(dim=1)
    gradient = torch.func.grad(objective)(weights, train, features.train_labels, l2).abs().max()
    return [
        *rows,
        share_row("majority", features.test_labels == features.test_labels.bincount().argmax(), "test"),
        {"metric": "l2", "value": l2, "split": "val"},
        {"metric": "gradient", "value": float(gradient), "split": "train"},
    ]


def objective(weights: Tensor, rows: Tensor, labels: Tensor, l2: float) -> Tensor:
    """What is minimised; weights (D+1,classes) hold W and, in the last row, b."""
    return F.cross_entropy(_scores(rows, weights), labels) + l2 / 2 * weights[:-1].square().sum()


def fit(rows: Tensor, labels: Tensor, l2: float, start: Tensor, iterations: int) -> Tensor:
    """rows float64 (N,D), labels (N,) -> weights (D+1,classes) at the minimum, searched from `start`."""
    weights = start.clone().requires_grad_()
    search = torch.optim.LBFGS(
        [weights],
        max_iter=iterations,
        max_eval=2 * iterations,
        tolerance_grad=1e-7,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def evaluate() -> Tensor:
        search.zero_grad()
        value = objective(weights, rows, labels, l2)
        value.backward()
        return value

    search.step(evaluate)
    return weights.detach()


def _scores(rows: Tensor, weights: Tensor) -> Tensor:
    return rows @ weights[:-1] + weights[-1]
