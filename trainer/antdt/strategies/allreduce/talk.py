"""What the scripts of all members tell each other, and optimizers that step before a step's end.

Rules
    A place is where a script is: the step, whether it is in its body, and how many calls it has made there. Whoever has
    something to say tells its place; so does whoever has come to the reduction, which is behind all places of a step.
    The hindmost place is served by all: those who are there give what they have, all others nothing. So a member that
    has no batch, fewer of them, or that came later, holds up nobody.
    What was said between two steps is kept until the next one, for members who come there later: they hear the same.
    Nobody asks for places before some script has something to say; then the members meet anew, and all of them do.

Must not know what is said, nor what a step is made of.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from antdt_schemas.errors import UsageError

from antdt.strategies.allreduce.rendezvous import Generation
from antdt.strategies.allreduce.state import broadcast, gather_bytes

REDUCTION, EXCHANGE, UPDATE = range(3)
LAST = 2**62  # the number of the place behind all others of a step
KINDS = {REDUCTION: "the end of its step", EXCHANGE: "a collective", UPDATE: "agent.apply(optimizer)"}


class Said(NamedTuple):
    """One member's call. at: twice the steps in its model, one more in the body of the next. number: of its calls
    there. kept: what it has heard there from this number on. The rest is of an update: which optimizers, as bits, what
    the losses weigh, whether they are sums, and of which epoch. bare: the step has no gradients left to reduce. Of a
    reduction, which is behind all calls, `optimizers` is how many there were.
    """

    kind: int
    at: int
    number: int
    kept: int = LAST
    optimizers: int = 0
    weight: float = 0.0
    summed: bool = False
    epoch: int = -1
    bare: bool = False

    @property
    def calls(self) -> int:
        """How many it has made at its place."""
        return self.optimizers if self.kind == REDUCTION else self.number

    @property
    def place(self) -> tuple[int, int]:
        """In the order in which a script comes by."""
        return self.at, self.number

    def pack(self) -> torch.Tensor:
        """(SAID_WIDTH,) int64."""
        (weight,) = struct.unpack(">q", struct.pack(">d", self.weight))
        return torch.tensor([*self[:5], weight, int(self.summed), self.epoch, int(self.bare)])

    @classmethod
    def unpack(cls, columns: list[int]) -> Said:
        """The inverse."""
        kind, at, number, kept, optimizers, weight, summed, epoch, bare = columns
        (weighs,) = struct.unpack(">d", struct.pack(">q", weight))
        return cls(kind, at, number, kept, optimizers, weighs, bool(summed), epoch, bool(bare))


SAID_WIDTH = len(Said._fields)
Update = Callable[[list[Said]], None]


class Talk:
    """Of one member. update: carries out an update that these members have called."""

    def __init__(self, update: Update) -> None:
        self._update = update
        self._at, self._number, self._first = -1, 0, 0
        self._heard: dict[int, list[bytes]] = {}

    def _come_to(self, at: int) -> None:
        if at != self._at:
            self._at, self._number, self._first = at, 0, 0
            self._heard.clear()

    def given_up(self) -> None:
        """What was said in the body of a step is said again; between two steps, the script goes on where it is."""
        if self._at % 2:
            self._at = -1

    def exchange(self, generation: Generation, at: int, value: torch.Tensor | None) -> list[torch.Tensor | None]:
        """What each member gives who comes to this call, by rank, None for others. Raises GenerationClosed."""
        self._come_to(at)
        heard: list[bytes] = self._serve(generation, Said(EXCHANGE, at, self._number, self._kept), _packed(value))
        self._heard[self._number] = heard
        self._number += 1
        return [_unpacked(one) if one else None for one in heard]

    def update(self, generation: Generation, said: Said) -> None:
        """All members step these optimizers, with the gradients that there are."""
        self._come_to(said.at)
        self._serve(generation, said._replace(number=self._number))
        self._number += 1

    def reduction(self, generation: Generation, at: int, *, idle: bool, bare: bool) -> bool:
        """Until all have come to the end of their step. Returns whether it has no gradients left to reduce."""
        self._come_to(at)
        said = self._serve(
            generation, Said(REDUCTION, at, LAST, self._kept, self._number, bare=bare, weight=float(not idle))
        )
        found = {one.bare for one in said if one.weight}
        if len(found) > 1:
            raise UsageError("In one step some workers called agent.apply(optimizer), others not: do it on all alike.")
        return bare if not found else found.pop()

    @property
    def _kept(self) -> int:
        return min(self._heard, default=LAST)

    def _serve(self, generation: Generation, mine: Said, value: bytes = b"") -> Any:
        """Takes part in whatever is called further behind, then in what was called here: what was heard, or said."""
        while True:
            said = _gather(generation, mine)
            place = min(one.place for one in said)
            called = [one for one in said if one.place == place]
            if len({one.kind for one in called}) > 1:
                kinds = " and ".join(sorted({KINDS[one.kind] for one in called}))
                raise UsageError(f"Scripts came to {kinds} at the same place: all workers make the same calls.")
            ours = mine.place == place
            if called[0].kind == REDUCTION:
                return said
            if called[0].kind == UPDATE:
                self._update(called)
                found: list[bytes] = []
            else:
                found = self._exchange(generation, said, place, value if ours else b"")
            if ours:
                return found

    def _exchange(self, generation: Generation, said: list[Said], place: tuple[int, int], value: bytes) -> list[bytes]:
        at, number = place
        knows = [one.at == at and one.kept <= number < one.calls for one in said]
        if True not in knows:
            found = gather_bytes(generation, value)
            generation.settled()
            return found
        source = knows.index(True)
        mine = _whole(self._heard[number]) if generation.rank == source else None
        found = _parts(broadcast(generation, source, mine))
        generation.settled()
        return found


def _gather(generation: Generation, mine: Said) -> list[Said]:
    if generation.world == 1:
        return [mine]
    rows = torch.empty(generation.world, SAID_WIDTH, dtype=torch.int64)
    generation.wait(generation.gather(rows, mine.pack()))
    return [Said.unpack(row) for row in rows.tolist()]


def _packed(value: torch.Tensor | None) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def _unpacked(data: bytes) -> torch.Tensor:
    found: torch.Tensor = torch.load(io.BytesIO(data), weights_only=True)
    return found


def _whole(parts: list[bytes]) -> bytes:
    return b"".join(struct.pack(">q", len(part)) + part for part in parts)


def _parts(data: bytes) -> list[bytes]:
    out, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from(">q", data, at)
        out.append(data[at + 8 : at + 8 + size])
        at += 8 + size
    return out
