"""How a job names its strategy. What all members must do alike is in the name, so that a worker that would not is told.

allreduce               every step of the optimizer is taken together
allreduce/unit=8        so, and gradients of 8 samples are added up in one order: the same bits for any workers
local-sgd/every=8       each member takes 8 by itself, then all average: one step of the log
"""

from __future__ import annotations

ASYNCHRONOUS = ("ps-asp", "ps-ssp")


def kind_of(strategy: str) -> str:
    """The name with N in place of the number in it, if there is one: what rules are looked up by."""
    kind, _, number = strategy.partition("=")
    return f"{kind}=N" if number.isdecimal() and int(number) else strategy


def period_of(strategy: str) -> int:
    """Steps of the optimizer in one step of the log."""
    return _number(strategy, "local-sgd/every") or 1


def unit_of(strategy: str) -> int:
    """Samples of which a step is made up, each so many computed together; 0: as it comes."""
    return _number(strategy, "allreduce/unit")


def is_asynchronous(strategy: str) -> bool:
    """Whether workers have no common step: each goes on by itself."""
    return strategy.startswith(ASYNCHRONOUS)


def carries_out(strategy: str, action: str) -> bool:
    """Whether the members of such a job can carry out an action; of a strategy that is not known it is believed."""
    return action != "BACKUP_WORKERS" or not strategy or strategy.startswith("ps-bsp")


def _number(strategy: str, kind: str) -> int:
    name, _, number = strategy.partition("=")
    return int(number) if name == kind and number.isdecimal() else 0
