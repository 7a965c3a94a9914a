"""Several models, or several optimizers, that one worker trains as one.

Owns the module and the optimizer that hold them. Must not know steps, members or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from antdt_schemas.errors import UsageError


class Group(torch.nn.Module):  # type: ignore[misc]
    """Several modules as one: `antdt.Group(generator=g, discriminator=d)`, or without names, by number.

    The modules stay the script's own; `group.generator` is the one that was given.
    """

    def __init__(self, *modules: torch.nn.Module, **named: torch.nn.Module) -> None:
        super().__init__()
        for name, module in [*((str(at), one) for at, one in enumerate(modules)), *named.items()]:
            if not isinstance(module, torch.nn.Module):
                raise UsageError(f"antdt.Group holds modules, and {name} is a {type(module).__name__}.")
            self.add_module(name, module)


class Optimizers:
    """Several optimizers as one, in the script's order. They stay the script's own."""

    def __init__(self, optimizers: Sequence[Any]) -> None:
        self.optimizers = tuple(optimizers)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all of them."""
        return [group for one in self.optimizers for group in one.param_groups]

    def step(self) -> None:
        """Each of them."""
        for one in self.optimizers:
            one.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Each of them."""
        for one in self.optimizers:
            one.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """In their order."""
        return {"optimizers": [one.state_dict() for one in self.optimizers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse."""
        for one, saved in zip(self.optimizers, state["optimizers"], strict=True):
            one.load_state_dict(saved)


def optimizers_of(optimizer: Any) -> tuple[Any, ...]:
    """Each of them; one alone is one."""
    return optimizer.optimizers if isinstance(optimizer, Optimizers) else (optimizer,)


def name_of(optimizer: Any) -> str:
    """Of its class, or their classes."""
    return ", ".join(type(one).__qualname__ for one in optimizers_of(optimizer))


def one_model(given: Any) -> torch.nn.Module:
    """A module as it is; several of a list, a tuple or a dict in a Group.

    Raises UsageError for what is neither.
    """
    if isinstance(given, Mapping) and not isinstance(given, torch.nn.Module):
        return Group(**given)
    if isinstance(given, list | tuple):
        return Group(*given)
    if not isinstance(given, torch.nn.Module):
        raise UsageError(f"The Agent trains a torch.nn.Module, or several of them in a list, not {type(given)}.")
    return given


def one_optimizer(given: Any) -> Any:
    """An optimizer as it is; several of a list, a tuple or a dict as one.

    Raises UsageError for none at all.
    """
    several = list(given.values()) if isinstance(given, Mapping) else given
    if not isinstance(several, list | tuple):
        return several
    if not several:
        raise UsageError("The Agent needs an optimizer: pass the one that the loop would step, or a list of them.")
    return several[0] if len(several) == 1 else Optimizers(several)
