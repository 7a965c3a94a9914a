"""Accelerate: watched by one line behind `prepare`, or steered by an Agent in the place of `prepare`.

    antdt.accelerate.watch(accelerator)                                     # behind accelerator.prepare(...)
    optimizer, loader = antdt.accelerate.prepare(accelerator, agent)        # the loop stays as it is

Owns which of Accelerate's calls are the Agent's. Must not know how a step is made.
"""

from __future__ import annotations

from typing import Any

from antdt_schemas.errors import UsageError

from antdt.adapters.given import Given, Scheduled
from antdt.adapters.loader import Loader
from antdt.agent import Agent
from antdt.watching import Watch
from antdt.watching import watch as watch_loop

ALONE = ("NO", "MULTI_CPU", "MULTI_GPU")  # kinds of processes that each may hold a whole model


def watch(accelerator: Any) -> Watch | None:
    """Watch what `accelerator.prepare` was given: its model, its optimizers, its first loader. See `antdt.watch`."""
    models, loaders = accelerator._models, accelerator._dataloaders
    if not models or not accelerator._optimizers:
        raise UsageError("There is nothing to watch yet: call antdt.accelerate.watch behind accelerator.prepare(...).")
    return watch_loop(models[0], list(accelerator._optimizers), loaders[0] if loaders else None)


def prepare(accelerator: Any, agent: Agent, scheduler: Any = None) -> tuple[Any, ...]:
    """What the loop of an Accelerate script goes on with in place of its own: optimizer and loader, and behind them the
    scheduler where one is given (which the Agent has, too). `accelerator.backward`, `optimizer.step` and `zero_grad`
    stay where they are.

    Raises UsageError for what Accelerate would do beside the Agent.
    """
    refuse(accelerator)
    if scheduler is not None and all(one is not scheduler for one in agent.strategy.once.schedulers):
        raise UsageError("Give the Agent the scheduler as well, antdt.Agent(..., scheduler=scheduler): it steps it.")
    accelerator.backward = agent.backward
    optimizers = [Given(one) for one in agent.optimizers]
    optimizers[-1].stepped = agent.apply
    loader = Loader(agent, accelerator.device)
    accelerator._dataloaders.append(loader)
    accelerator.register_for_checkpointing(loader)
    found = (*optimizers, loader)
    return found if scheduler is None else (*found, Scheduled(scheduler))


def refuse(accelerator: Any) -> None:
    """Raises UsageError for what an Agent cannot steer."""
    kind = getattr(accelerator.distributed_type, "name", str(accelerator.distributed_type))
    if kind not in ALONE:
        raise UsageError(
            f"Accelerate spreads the model by {kind}, and the Agent steps whole models: watch it, "
            "antdt.accelerate.watch(accelerator), or leave the plugin out."
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise UsageError(
            f"gradient_accumulation_steps={accelerator.gradient_accumulation_steps}: the Agent cuts a step by itself; "
            "leave it out, and make antdt.Agent(batch_size=...) so many times as large."
        )
    if accelerator.mixed_precision != "no":
        raise UsageError(
            f"mixed_precision={accelerator.mixed_precision!r} comes with accelerator.prepare, which a steered "
            "model does not go through: write `with torch.autocast(...)` around the loss, and "
            "antdt.Agent(..., scaler=scaler)."
        )
    if accelerator._models:
        raise UsageError(
            "accelerator.prepare has wrapped a model already, and reduces its gradients by itself: give antdt.Agent "
            "the plain model and optimizer, and call antdt.accelerate.prepare in place of accelerator.prepare."
        )
