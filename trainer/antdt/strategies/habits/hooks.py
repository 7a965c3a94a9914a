"""Hooks of a script on the gradients of parameters: each sees the part of one worker, and of one micro-batch.

What multiplies a gradient, or takes its mean away, adds up over parts; what clamps or clips it does not: it is refused.
Must not know how gradients come together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from antdt_schemas.errors import UsageError

log = logging.getLogger("antdt")

HOOKED = (
    "A hook on the gradient of {} changes this worker's part of it in a way that does not add up over workers and "
    "micro-batches (clamping, clipping): do it to the gradient of all, between agent.reduce() and agent.apply()."
)
PROBE = 2.0**20  # how much larger a gradient is by which a hook shows whether it is linear


def refuse(model: torch.nn.Module) -> None:
    """Raises UsageError for a hook that bends what it is given."""
    for name, param in model.named_parameters():
        if any(_bends(hook, param) for hook in list((getattr(param, "_backward_hooks", None) or {}).values())):
            raise UsageError(HOOKED.format(name))


def _bends(hook: Callable[[torch.Tensor], torch.Tensor | None], param: torch.nn.Parameter) -> bool:
    """Whether a hook makes something else of a gradient than a multiple of it, row by row or as a whole."""
    with torch.no_grad():
        gradient = torch.linspace(-1, 1, max(2, param.numel()), dtype=torch.float64, device="cpu")[: param.numel()]
        gradient = gradient.to(dtype=param.dtype, device=param.device).view(param.shape)
        try:
            small, large = (hook(one.clone()) for one in (gradient, gradient * PROBE))
        except Exception as error:  # noqa: BLE001  what it needs is there in backward only
            log.debug("cannot try a hook: %s", error)
            return False
        if small is None or large is None:
            return False
        return not torch.allclose(large.double() / PROBE, small.double(), rtol=1e-2, atol=1e-6)
