"""Who asks for the place of a worker that somebody else has, and whether that one was heard since; and who was refused
any place, which those that wait for it are told.

Owns how long a newcomer waits, and for what. In memory only, and by the order of the requests: a new leader begins
anew, which costs a newcomer some of its wait. What comes of it is in the events. Must not know who is right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

# An occupant that is asked to leave finishes its step and sees it committed; after this long it is displaced.
TAKE_OVER_MS = 30_000
# Whoever has not asked again for so long has given up.
FORGET_MS = 60_000
# So long it is told to those that wait.
REFUSED_MS = 600_000
ASKED_MAX = 256


class Room(Enum):
    """What a newcomer finds."""

    FREE = auto()
    OCCUPIED = auto()
    UNKNOWN = auto()


@dataclass(slots=True)
class Asked:
    """A newcomer's question: whose place, since when and when last by the clock that runs on requests, and whether that
    one was heard since.
    """

    occupant: str
    since_ms: int
    last_ms: int
    alive: bool = False


@dataclass(slots=True)
class Callers:
    """Newcomers that asked for a place that was taken. `refused`: by worker, why and when, the newest last."""

    asked: dict[str, Asked] = field(default_factory=dict)
    refused: dict[str, tuple[str, int]] = field(default_factory=dict)
    clock_ms: int = 0

    def hear(self, incarnation: str, clock_ms: int) -> None:
        """A request of this incarnation is next: it is alive, for everybody who asked for its place before."""
        self.clock_ms = clock_ms
        for asked in self.asked.values():
            asked.alive = asked.alive or asked.occupant == incarnation

    def room(self, newcomer: str, occupant: str, take_over: bool) -> Room:
        """What this newcomer finds, having asked once more."""
        asked = self.asked.get(newcomer)
        if asked is None or asked.occupant != occupant:
            # The next occupant may live as well, but whoever takes over does not wait anew for each of them.
            since_ms = asked.since_ms if asked is not None else self.clock_ms
            self.asked = {n: a for n, a in self.asked.items() if self.clock_ms - a.last_ms < FORGET_MS}
            while len(self.asked) >= ASKED_MAX:
                del self.asked[next(iter(self.asked))]
            asked = self.asked[newcomer] = Asked(occupant, since_ms, self.clock_ms)
        asked.last_ms = self.clock_ms
        if take_over:
            return Room.FREE if self.clock_ms - asked.since_ms >= TAKE_OVER_MS else Room.UNKNOWN
        return Room.OCCUPIED if asked.alive else Room.UNKNOWN

    def forget(self, newcomer: str) -> None:
        """It was answered for good."""
        self.asked.pop(newcomer, None)

    def refuse(self, worker: str, reason: str) -> None:
        """Whoever came as this worker may not join."""
        self.refused.pop(worker, None)
        self.refused[worker] = reason, self.clock_ms
        while len(self.refused) > ASKED_MAX:
            del self.refused[next(iter(self.refused))]

    def joined(self, newcomer: str, worker: str) -> None:
        """This worker is there."""
        self.forget(newcomer)
        self.refused.pop(worker, None)

    def newest_refusal(self, alive: set[str]) -> str:
        """In words, where it is not long ago, and none of these; else empty."""
        since_ms = self.clock_ms - REFUSED_MS
        found = [(name, why) for name, (why, at) in self.refused.items() if name not in alive and at > since_ms]
        return "{} was refused: {}".format(*found[-1]) if found else ""
