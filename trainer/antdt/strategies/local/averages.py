"""An average of models as one step of AllReduce.

The mean of all models is the last average minus the mean of how far each member has gone from it: one step of SGD with
rate 1 along an "outer gradient" (Reddi et al., arXiv 2003.00295; DiLoCo, arXiv 2311.08105). Differences are small where
weights are not, so they keep more of their digits in short formats, and what nobody moved stays as it is, bit by bit.

Must not know who is a member, nor when it is time for an average.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from antdt.strategies.together import name_of


class Averages:
    """In place of the script's optimizer, whose settings and state it shows as its own: they are saved and compared.

    `step`: gradients hold how far members have gone in the mean, and parameters are those of the last average.
    """

    def __init__(self, optimizer: Any, params: Sequence[torch.nn.Parameter]) -> None:
        self.optimizer, self.params = optimizer, params
        self.defaults = getattr(optimizer, "defaults", {})

    @property
    def param_groups(self) -> Any:
        """Those of the script's optimizer."""
        return self.optimizer.param_groups

    def step(self) -> None:
        """To the next average."""
        with torch.no_grad():
            for param in self.params:
                if param.grad is not None:
                    param.sub_(param.grad)

    def state_dict(self) -> Any:
        """That of the script's optimizer."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Into the script's optimizer."""
        self.optimizer.load_state_dict(state)


def averages_of(optimizer: Any, params: Sequence[torch.nn.Parameter]) -> Averages:
    """The class carries the optimizer's name: files say by it what they are of."""
    kind = type(f"LocalSGD({name_of(optimizer)})", (Averages,), {})
    made: Averages = kind(optimizer, params)
    return made


def loss_of(gone: Sequence[torch.Tensor], params: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """A loss whose gradients are `gone`, times whatever it is multiplied by."""
    return _Gone.apply(gone, *params)


class _Gone(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, gone: Sequence[torch.Tensor], *params: torch.Tensor) -> torch.Tensor:
        ctx.gone = gone
        return torch.zeros((), dtype=torch.float64, device="cpu")

    @staticmethod
    def backward(ctx: Any, weight: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *(one * weight for one in ctx.gone)
