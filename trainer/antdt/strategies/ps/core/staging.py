"""What any server holds until the primary's order says what becomes of it.

Rules
    A push is staged: nothing of it is in the model before the order includes it.
    Orders are obeyed one by one, without a gap. Each server works out the lineage of a version from what itself has
    staged: if it is not the primary's, servers would hold different samples, and the run ends.
    Who waits for parameters is answered at the point of the order that says so, so all servers answer of one version.

Owns staged and included contributions, of whose tensors it knows nothing. Must not know sockets or the ledger.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from antdt_schemas.errors import Mismatch
from antdt_schemas.lineage import next_lineage

from antdt.strategies.ps.core.facts import PULL, Contribution, Key, Order
from antdt.strategies.ps.core.ordering import without_tokens


class Item(NamedTuple):
    """A server's part of a contribution. payload: whatever the caller needs to apply and to answer it."""

    facts: Contribution
    payload: Any


class Apply(NamedTuple):
    """Make this version of these, in this order."""

    version: int
    items: tuple[Item, ...]
    plan: int
    factor: float


class Answer(NamedTuple):
    """Tell the worker of the item, with the parameters as they are now. outcome: pulled, included or late."""

    item: Item
    outcome: str
    version: int
    staleness: int


class Save(NamedTuple):
    """Take a copy of the state as it is now."""

    name: str
    version: int
    lineage: bytes


Do = Apply | Answer | Save


class Staging:
    """One server's, in one generation. Invariant: at most one staged or included item of each incarnation is kept."""

    def __init__(self, version: int, lineage: bytes) -> None:
        self.version, self.lineage = version, lineage
        self._number = 0
        self._staged: dict[Key, Item] = {}
        self._included: dict[Key, tuple[Item, int, int]] = {}  # with the version that it is in, and its staleness
        self._open: dict[str, Key] = {}
        self._dropped: set[str] = set()

    def stage(self, item: Item) -> bool:
        """Keep it, and report it to the primary; False: it is of a lost incarnation, and is forgotten.

        Raises ValueError if another one of the same incarnation is open.
        """
        key = item.facts.key
        if key.incarnation in self._dropped:
            return False
        if key.incarnation in self._open:
            raise ValueError(f"{key} was sent while {self._open[key.incarnation]} is open.")
        self._open[key.incarnation], self._staged[key] = key, item
        return True

    def is_dropped(self, incarnation: str) -> bool:
        """Whether the ledger has given it up."""
        return incarnation in self._dropped

    def obey(self, order: Order) -> list[Do]:
        """What is to be done, in this order.

        Raises Mismatch if this server would make another version than the primary.
        """
        assert order.number == self._number + 1, f"order {order.number} follows {self._number}"
        self._number = order.number
        for incarnation in order.drop:
            self._drop(incarnation)
        do: list[Do] = []
        if order.include:
            do.append(self._include(order))
        assert order.version == self.version, f"order {order.number} is of version {order.version}, not {self.version}"
        do.extend(self._late(key) for key in order.late)
        do.extend(self._answer(key) for key in order.answer)
        if order.save:
            do.append(Save(order.save, self.version, self.lineage))
        return do

    def _include(self, order: Order) -> Apply:
        items = tuple(self._staged.pop(key) for key in order.include)
        before, self.version = self.version, self.version + 1
        flat = [number for item in items for number in without_tokens(item.facts.ranges)]
        self.lineage = next_lineage(self.lineage, self.version, flat)
        if self.lineage != order.lineage:
            hint = (
                "This server and the primary do not hold the same samples: this is a fault of antdt, and the run ends."
            )
            what = f"The lineage of version {self.version}"
            raise Mismatch(what, order.lineage.hex(), self.lineage.hex(), hint)
        for item in items:
            self._included[item.facts.key] = item, self.version, before - item.facts.base
        return Apply(self.version, items, order.plan, order.factor)

    def _late(self, key: Key) -> Answer:
        del self._open[key.incarnation]
        item = self._staged.pop(key)
        return Answer(item, "late", self.version, self.version - item.facts.base)

    def _answer(self, key: Key) -> Answer:
        del self._open[key.incarnation]
        if key.attempt == PULL:
            return Answer(self._staged.pop(key), "pulled", self.version, 0)
        item, _version, staleness = self._included.pop(key)
        return Answer(item, "included", self.version, staleness)

    def _drop(self, incarnation: str) -> None:
        self._dropped.add(incarnation)
        key = self._open.pop(incarnation, None)
        if key is not None:
            self._staged.pop(key, None)
            self._included.pop(key, None)
