"""A generation between its members: who is in it, and what they exchange."""

from __future__ import annotations

from typing import Any

from antdt.strategies.allreduce.composition import Round
from antdt.worker.session import Composition

from tests.simulation.model import Model


class Group:
    """The members of one grant. `broken`: one of them is out of it for good, so that whatever not all have entered is
    never completed.
    """

    __slots__ = ("broken", "generation", "members")

    def __init__(self, generation: int, members: tuple[str, ...], broken: bool) -> None:
        self.generation, self.members, self.broken = generation, members, broken


class Concluded:
    """What follows from all rows of a round for every member that holds the model `before`: the same for each of them,
    so it is worked out once.
    """

    __slots__ = ("before", "composition", "model", "result", "skipped")

    def __init__(self, result: Round, before: Model) -> None:
        self.result, self.before, self.model = result, before, before
        self.composition: Composition | None = None
        self.skipped: tuple[str, ...] | None = None


class Exchange(dict[str, Any]):
    """One collective: what each member has brought. Nobody brings something twice, and nothing is taken out of it."""

    __slots__ = ("concluded",)

    def __init__(self) -> None:
        super().__init__()
        self.concluded: Concluded | None = None
