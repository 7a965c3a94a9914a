"""What a script states that servers cannot do: refused before anything is trained, with what to do instead.

Must not know how servers do the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from antdt_schemas.errors import UsageError
from torch.optim.lr_scheduler import ReduceLROnPlateau

from antdt.strategies.habits.untouched import Part
from antdt.strategies.once import Once
from antdt.strategies.together import Optimizers

REFUSED = "ParameterServer: {}."
CARRIES = (
    "This loss depends on {}, which servers do not have: each worker has its own, and one that comes later begins with "
    "another. Compute it of the batch at hand and of the model, or use AllReduce, where it is given to the Agent. "
    "(Where it is the same on all workers at every step, say agent.step(loss, weight=len(x)).)"
)
FROZEN = (
    "Frozen parameter {} was changed by the script: servers have what is trained only, so it would be each worker's "
    "own, and in no checkpoint. Leave the change out, or use AllReduce, and change it under @agent.on_step."
)
TRAINED = (
    "Parameter {} was changed by the script, and the next version of the servers, who hold it, undoes that: leave the "
    "change out, or use AllReduce, and change it under @agent.on_step."
)
BUFFER = (
    "Buffer {} changes while the model trains: servers do not have it, so it would be each worker's own, and in no "
    "checkpoint. Leave that out, register what only saves time with persistent=False, or use AllReduce."
)
CALLED = "ParameterServer: agent.{} needs all workers at one place, and each works at its own pace: {}."


def refuse(model: torch.nn.Module, optimizer: Any, once: Once) -> None:
    """Raises UsageError: servers cannot do this."""
    for why in _reasons(model, optimizer, once):
        raise UsageError(REFUSED.format(why))


def _reasons(model: torch.nn.Module, optimizer: Any, once: Once) -> Iterator[str]:
    if isinstance(optimizer, Optimizers):
        yield "it takes one optimizer, whose groups may differ; give several parameter groups to one, or use AllReduce"
    if once.clip_grad_norm is not None:
        yield (
            "no server has all gradients, so there is no norm of them for clip_grad_norm: clip each worker's own part "
            "of the loss, lower the learning rate, or use AllReduce"
        )
    if once.scaler is not None:
        yield "it takes no scaler, as servers step the optimizer: train in bfloat16, or use AllReduce"
    if once.state:
        names = ", ".join(sorted(once.state))
        yield (
            f"state={{{names}}} changes on each worker by itself, and servers do not have it: leave it out, compute an "
            "average of the weights from saved ones, or use AllReduce"
        )
    if once.buffers:
        yield "buffers stay each worker's own: leave buffers= out, or use AllReduce"
    if once.schedulers and once.every != "step":
        yield "servers step a scheduler once a version, not once an epoch: say scheduler_every='step'"
    if any(isinstance(one, ReduceLROnPlateau) for one in once.schedulers):
        yield "ReduceLROnPlateau needs a value that no server has: take a scheduler that counts steps"
    norm = next((name for name, one in model.named_modules() if getattr(one, "running_mean", None) is not None), None)
    if norm is not None:
        yield (
            f"the running statistics of {norm} would be each worker's own, and in no checkpoint: use GroupNorm or "
            "LayerNorm, or track_running_stats=False, or AllReduce"
        )


def refuse_hooks(optimizer: Any, once: Once) -> None:
    """When training begins: what was registered with the Agent or the optimizer and would never be called.

    Raises UsageError.
    """
    if once.on_step:
        raise UsageError(REFUSED.format("no worker makes a step, so agent.on_step is never called: leave it out"))
    hooks = "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"
    if any(getattr(optimizer, name, None) for name in hooks):
        said = "servers step optimizers of their own, whose class and settings are those of the script's, so its step "
        said += "hooks are never called: for learning rates give the Agent a scheduler"
        raise UsageError(REFUSED.format(said))


def unchanged(model: torch.nn.Module) -> Iterator[Part]:
    """What no script changes, as servers either hold it or would not know."""
    for name, param in model.named_parameters():
        yield Part(name, param, TRAINED if param.requires_grad else FROZEN)
    persistent = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers():
        if name in persistent:
            yield Part(name, buffer, BUFFER)
