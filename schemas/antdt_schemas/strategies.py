"""How a job names its strategy. What all members must do alike is in the name, so that a worker that would not is told.

allreduce               every step of the optimizer is taken together
local-sgd/every=8       each member takes 8 by itself, then all average: one step of the log
"""

from __future__ import annotations


def kind_of(strategy: str) -> str:
    """The name with N in place of the number in it, if there is one: what rules are looked up by."""
    kind, _, number = strategy.partition("=")
    return f"{kind}=N" if number.isdecimal() and int(number) else strategy


def period_of(strategy: str) -> int:
    """Steps of the optimizer in one step of the log."""
    number = strategy.partition("=")[2]
    return int(number) if number.isdecimal() else 1
