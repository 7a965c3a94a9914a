"""Who was measured last: the incarnation of each worker and server, and the strategy that they work under.

Owns what an order to start one of them again is refused for. What the log knows, whoever orders has looked at; here is
what came since, in the one order of the Controller's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from antdt_schemas.records import Action, Measurement
from antdt_schemas.strategies import carries_out

RESTARTS_MAX = 6  # of which nobody is back: all of them are open trials, of which so many are kept


@dataclass(slots=True)
class Lives:
    """incarnations: by worker. strategy: empty while nothing was measured."""

    incarnations: dict[str, str] = field(default_factory=dict)
    strategy: str = ""

    def note(self, record: Measurement) -> bool:
        """Take in a measurement; whether anything is new."""
        found = Lives({node.worker: node.incarnation for node in record.nodes}, record.strategy)
        if found == self:
            return False
        self.incarnations, self.strategy = found.incarnations, found.strategy
        return True

    def refusal(self, incarnation: str, restarting: Sequence[str]) -> str:
        """Why it is not started again, in one sentence; empty: it is. restarting: workers that are not back yet."""
        worker = worker_of(incarnation)
        if not worker or worker == incarnation:
            return f"{incarnation!r} is no incarnation: name one, as `antdt restart` does"
        if not carries_out(self.strategy, Action.KILL_RESTART):
            return f"nobody carries it out: this job's strategy is {self.strategy}"
        if worker in restarting:
            return f"{worker} is being started again already"
        if len(restarting) >= RESTARTS_MAX:
            return f"{len(restarting)} others are being started again: wait until one of them is back"
        measured = self.incarnations.get(worker, incarnation)
        if measured != incarnation and is_of_one_launch(measured, incarnation) and is_later(measured, incarnation):
            return f"{incarnation} is over: {worker} is {measured} by now"
        return ""

    def to_row(self) -> list[Any]:
        return [sorted(self.incarnations.items()), self.strategy]

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Lives:
        incarnations, strategy = row
        return cls(dict(incarnations), strategy)


def worker_of(incarnation: str) -> str:
    """Whose life it is: NAME.LIFE.LAUNCH, or NAME-LIFE as tests and simulations have it."""
    name = incarnation.rsplit(".", 2)[0]
    return name if name != incarnation else incarnation.rsplit("-", 1)[0]


def is_of_one_launch(one: str, other: str) -> bool:
    return len(_parts(one)) == 3 and _parts(one)[::2] == _parts(other)[::2]


def is_later(one: str, other: str) -> bool:
    """Whether it is another life of the worker than that, and none before it. Which of two launches came first, their
    names do not say.
    """
    if not is_of_one_launch(one, other):
        return one != other
    mine, theirs = _parts(one)[1], _parts(other)[1]
    return int(mine) > int(theirs) if mine.isdecimal() and theirs.isdecimal() else one != other


def _parts(incarnation: str) -> list[str]:
    return incarnation.rsplit(".", 2)
