"""Hooks of a script on the gradients of parameters: each sees the part of one worker, and of one micro-batch.

What multiplies a gradient, or takes its mean away, adds up over parts; what clamps or clips it does not: it is refused.
Must not know how gradients come together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from antdt_schemas.errors import UsageError

log = logging.getLogger("antdt")

HOOKED = (
    "A hook on the gradient of {} changes this worker's part of it in a way that does not add up over workers and "
    "micro-batches (clamping, clipping, taking it away): do it to the gradient of all, between agent.reduce() and "
    "agent.apply()."
)
PROBE = 2.0**20  # how much larger a gradient is by which a hook shows whether it is linear


def refuse(model: torch.nn.Module) -> None:
    """Raises UsageError for a hook of the script that bends what it is given, or takes it away."""
    for name, param in model.named_parameters():
        before = [partial(_given, hook, param) for hook in _of_script(param, "_backward_hooks")]
        behind = [partial(_left, hook, param) for hook in _of_script(param, "_post_accumulate_grad_hooks")]
        if any(_bends(act, param) for act in (*before, *behind)):
            raise UsageError(HOOKED.format(name))


def _of_script(param: torch.nn.Parameter, where: str) -> list[Callable[..., Any]]:
    found = list((getattr(param, where, None) or {}).values())
    return [hook for hook in found if not (getattr(hook, "func", hook).__module__ or "").startswith("antdt.")]


def _given(hook: Callable[..., Any], _: torch.nn.Parameter, gradient: torch.Tensor) -> torch.Tensor:
    """What goes on from a hook on the gradient."""
    made = hook(gradient)
    return gradient if made is None else made


def _left(hook: Callable[..., Any], param: torch.nn.Parameter, gradient: torch.Tensor) -> torch.Tensor:
    """What is left by a hook behind it; nothing, where it was used up."""
    other = torch.nn.Parameter(param.detach().clone())
    other.grad = gradient
    hook(other)
    return torch.full_like(gradient, torch.nan) if other.grad is None else other.grad


def _bends(act: Callable[[torch.Tensor], torch.Tensor], param: torch.nn.Parameter) -> bool:
    """Whether something else becomes of a gradient than a multiple of it, row by row or as a whole."""
    with torch.no_grad():
        gradient = torch.linspace(-1, 1, max(2, param.numel()), dtype=torch.float64, device="cpu")[: param.numel()]
        gradient = gradient.to(dtype=param.dtype, device=param.device).view(param.shape)
        try:
            small, large = (act(one.clone()) for one in (gradient, gradient * PROBE))
        except Exception as error:  # noqa: BLE001  what it needs is there in backward only
            log.debug("cannot try a hook: %s", error)
            return False
        return not torch.allclose(large.double() / PROBE, small.double(), rtol=1e-2, atol=1e-6)
