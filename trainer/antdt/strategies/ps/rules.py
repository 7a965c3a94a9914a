"""How the rows of a table are stepped: each by its own gradient and state, when it has a gradient.

Formulas are torch's (SGD, Adagrad, Adam, AdamW, SparseAdam), for the rows at hand: weight decay and momentum move a row
in the versions that touch it, and Adam's step count is the row's own. So all of them equal torch's where every version
touches every row, and SGD without momentum and weight decay, and Adagrad, always do.

Must not know ids, servers or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from antdt_schemas.errors import UsageError

Settings = Mapping[str, Any]


class Rule(NamedTuple):
    """Of one class of optimizers. state: numbers of state for a row of this width. first: their first value. step:
    changes rows (n, width + state) in place by gradients (n, width), which it may change as well.
    """

    state: Callable[[int, Settings], int]
    first: Callable[[Settings], float]
    step: Callable[[torch.Tensor, torch.Tensor, Settings, float], None]


def rule_of(optimizer: str, settings: Settings) -> Rule:
    """Raises UsageError for settings that rows cannot be stepped with."""
    for name in ("amsgrad", "dampening", "lr_decay"):
        if settings.get(name):
            raise UsageError(
                f"{optimizer}({name}={settings[name]}) cannot step the rows of an antdt.Embedding: leave it out."
            )
    return RULES[optimizer]


def _decayed(weights: torch.Tensor, grads: torch.Tensor, settings: Settings) -> torch.Tensor:
    if settings.get("maximize"):
        grads.neg_()
    if settings.get("weight_decay"):
        grads.add_(weights, alpha=settings["weight_decay"])
    return grads


def _sgd(rows: torch.Tensor, grads: torch.Tensor, settings: Settings, rate: float) -> None:
    width = grads.shape[1]
    weights = rows[:, :width]
    grads = _decayed(weights, grads, settings)
    if settings.get("momentum"):
        momentum = rows[:, width:]
        momentum.mul_(settings["momentum"]).add_(grads)
        grads = grads.add_(momentum, alpha=settings["momentum"]) if settings.get("nesterov") else momentum
    weights.sub_(grads, alpha=rate)


def _adagrad(rows: torch.Tensor, grads: torch.Tensor, settings: Settings, rate: float) -> None:
    width = grads.shape[1]
    weights, squares = rows[:, :width], rows[:, width:]
    grads = _decayed(weights, grads, settings)
    squares.addcmul_(grads, grads)
    weights.addcdiv_(grads, squares.sqrt().add_(settings["eps"]), value=-rate)


def _adam(rows: torch.Tensor, grads: torch.Tensor, settings: Settings, rate: float) -> None:
    _moments(rows, _decayed(rows[:, : grads.shape[1]], grads, settings), settings, rate)


def _adamw(rows: torch.Tensor, grads: torch.Tensor, settings: Settings, rate: float) -> None:
    if settings.get("maximize"):
        grads.neg_()
    rows[:, : grads.shape[1]].mul_(1 - rate * settings["weight_decay"])
    _moments(rows, grads, settings, rate)


def _moments(rows: torch.Tensor, grads: torch.Tensor, settings: Settings, rate: float) -> None:
    """state: first moments, second moments, and how often the row was stepped."""
    width = grads.shape[1]
    weights, first, second, count = rows.split([width, width, width, 1], dim=1)
    beta1, beta2 = (float(beta) for beta in settings["betas"])
    count.add_(1)
    first.lerp_(grads, 1 - beta1)
    second.mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
    # 1 - beta ** count, exactly enough for large counts as well
    size1 = torch.expm1(count * math.log(beta1)).neg_() if beta1 else torch.ones_like(count)
    size2 = torch.expm1(count * math.log(beta2)).neg_() if beta2 else torch.ones_like(count)
    below = second.sqrt().div_(size2.sqrt_()).add_(settings["eps"])
    weights.addcdiv_(first / size1, below, value=-rate)


def _none(settings: Settings) -> float:
    return 0.0


RULES: Mapping[str, Rule] = {
    "SGD": Rule(lambda width, settings: width if settings.get("momentum") else 0, _none, _sgd),
    "Adagrad": Rule(
        lambda width, settings: width, lambda settings: float(settings.get("initial_accumulator_value", 0.0)), _adagrad
    ),
    "Adam": Rule(lambda width, settings: 2 * width + 1, _none, _adam),
    "AdamW": Rule(lambda width, settings: 2 * width + 1, _none, _adamw),
    "SparseAdam": Rule(lambda width, settings: 2 * width + 1, _none, _adam),
}
