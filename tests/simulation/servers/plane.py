"""What servers and workers tell each other, and the links that it goes by: first in, first out, none of it lost while
both ends live and are in the generation that the link is of.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any, NamedTuple

from antdt.strategies.ps.core.facts import Contribution, Key


class Push(NamedTuple):
    """One server's part of a contribution, or of a pull. truth: what its gradient was really computed from."""

    facts: Contribution
    truth: tuple[int, ...]


class Idle(NamedTuple):
    """It has no samples for now."""


class Bye(NamedTuple):
    """It leaves for good."""


class Staged(NamedTuple):
    """To the first server: this one has its part."""

    rank: int
    key: Key


class Saved(NamedTuple):
    """To the first server: this one's part of a file is durable."""

    rank: int
    name: str


class Wanted(NamedTuple):
    """To the first server: this one wants a file."""


class Told(NamedTuple):
    """To a worker: what became of it; and, by the first server, whether somebody has no samples."""

    outcome: str
    key: Key
    version: int
    lineage: bytes
    somebody_is_idle: bool


class Links:
    """By generation and receiver, what each sender has sent it."""

    def __init__(self) -> None:
        self._to: dict[tuple[int, str], dict[str, deque[Any]]] = {}

    def send(self, generation: int, sender: str, receiver: str, message: Any) -> None:
        """It arrives, if the receiver ever looks there."""
        self._to.setdefault((generation, receiver), {}).setdefault(sender, deque()).append(message)

    def take(self, generation: int, receiver: str, rng: random.Random) -> tuple[str, Any] | None:
        """The next message of any sender."""
        full = [(sender, link) for sender, link in self._to.get((generation, receiver), {}).items() if link]
        if not full:
            return None
        sender, link = rng.choice(full)
        return sender, link.popleft()

    def cut(self, sender: str, rng: random.Random) -> None:
        """It is dead: the last of what it has sent may not have got through."""
        for links in self._to.values():
            link = links.get(sender)
            for _ in range(rng.randint(0, len(link)) if link else 0):
                assert link is not None
                link.pop()
