"""How a job names its strategy. What all members must do alike is in the name, so that a worker that would not is told.

allreduce               every step of the optimizer is taken together
allreduce/unit=8        so, and gradients of 8 samples are added up in one order: the same bits for any workers
local-sgd/every=8       each member takes 8 by itself, then all average: one step of the log
ps-bsp/servers=2        the model is spread over 2 servers: what all workers push is one step of the log
ps-asp/servers=2        so, and what one worker pushes is one
ps-ssp=3/servers=2      so, and no worker is more than 3 pushes ahead of another
ps-asp/even/servers=2   samples of an epoch are dealt out evenly ahead; so with the other two
ps-asp/colony/servers=2 so, and whoever has nothing left to begin takes over from others what they have not begun
ps-bsp/drop/servers=2   what comes too late for its version is thrown away, and its samples with it
watched                 somebody else trains: workers are known and measured, nothing is handed out or committed
"""

from __future__ import annotations

import re
from functools import cache

EVEN, COLONY = "even", "colony"
DROP = "drop"
WATCHED = "watched"
_SERVERS = re.compile(
    r"(?:ps-bsp/drop|ps-(?:bsp|asp|ssp=[1-9][0-9]*)(?:/(even|colony))?)/servers=([1-9][0-9]*)", flags=re.ASCII
)
ASYNCHRONOUS = ("ps-asp", "ps-ssp")


def kind_of(strategy: str) -> str:
    """The name with N in place of each number in it, if there is one: what rules are looked up by."""
    if strategy.startswith("ps-"):
        return re.sub(r"=[1-9][0-9]*(?=/|$)", "=N", strategy, flags=re.ASCII)
    kind, _, number = strategy.partition("=")
    return f"{kind}=N" if number.isdecimal() and int(number) else strategy


@cache
def period_of(strategy: str) -> int:
    """Steps of the optimizer in one step of the log."""
    return _number(strategy, "local-sgd/every") or 1


def unit_of(strategy: str) -> int:
    """Samples of which a step is made up, each so many computed together; 0: as it comes."""
    return _number(strategy, "allreduce/unit")


def servers_of(strategy: str) -> int:
    """Servers that the model is spread over; 0: the workers hold it."""
    found = _SERVERS.fullmatch(strategy)
    return int(found[2]) if found else 0


def sharding_of(strategy: str) -> str:
    """How samples are dealt out ahead: EVEN or COLONY; empty: not at all, whoever asks first takes the next ones."""
    found = _SERVERS.fullmatch(strategy)
    return (found[1] or "") if found else ""


def drops(strategy: str) -> bool:
    """Whether late contributions are thrown away."""
    return servers_of(strategy) > 0 and strategy.startswith("ps-bsp/drop/")


def server_name(part: int) -> str:
    """The server that holds this part of the model."""
    return f"s{part}"


def is_asynchronous(strategy: str) -> bool:
    """Whether workers have no common step: each goes on by itself."""
    return strategy.startswith(ASYNCHRONOUS)


def is_collective(strategy: str) -> bool:
    """Whether each step is one exchange of all workers with each other, so that nobody can come late to it."""
    return strategy == "allreduce" or unit_of(strategy) > 0


def carries_out(strategy: str, action: str) -> bool:
    """Whether the members of such a job can carry out an action; of a strategy that is not known it is believed."""
    if strategy == WATCHED:
        return action == "NONE"
    return action != "BACKUP_WORKERS" or not strategy or strategy.startswith("ps-bsp") or is_collective(strategy)


def _number(strategy: str, kind: str) -> int:
    name, _, number = strategy.partition("=")
    return int(number) if name == kind and number.isdecimal() else 0
