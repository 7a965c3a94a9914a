"""What the scripts of all members tell each other, and optimizers that step before a step's end.

Rules
    A place is where a script is: the step, whether it is in its body, and how many calls it has made there. Whoever has
    something to say tells its place; so does whoever has come to the reduction, which is behind all places of a step.
    The hindmost place is served by all: those who are there give what they have, all others nothing. So a member that
    has no batch, fewer of them, or that came later, holds up nobody.
    What was said between two steps is kept until the next one, for members who come there later: they hear the same.
    Nobody asks for places before some script has something to say; then the members meet anew, and all of them do.
    Scripts make the same calls. Whoever has run the body of a step makes as many there as the others who have, or as
    many in each micro-batch; and whoever has made a step itself makes as many behind it. (Those behind the loss of a
    micro-batch that is not the last one are of the latter kind, and not counted: others may have one micro-batch.) One
    that calls alone would hear itself alone: that ends the run, and says where the call is. A member that has come
    later, has no batch, or skips its own is no evidence.

Must not know what is said, nor what a step is made of.
"""

from __future__ import annotations

import io
import logging
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from antdt_schemas.errors import UsageError

from antdt.strategies.allreduce.rendezvous import Generation
from antdt.strategies.allreduce.state import broadcast, gather_bytes

log = logging.getLogger("antdt")

REDUCTION, EXCHANGE, UPDATE = range(3)
LAST = 2**62  # the number of the place behind all others of a step
KINDS = {REDUCTION: "the end of its step", EXCHANGE: "a collective", UPDATE: "agent.apply(optimizer)"}
LONELY = (
    "agent.{} was called by {} and not by {}, {} step {}: whoever calls alone hears itself alone. All workers make the "
    "same calls in the same order: make it on all of them, and decide whether to by what all know alike "
    "(agent.step_number), not by rank, by a worker's own samples, or by what this process has counted."
)
UNLIKE = "Workers make different calls {} step {} ({}): all workers make the same calls in the same order."


class Said(NamedTuple):
    """One member's call. at: twice the steps in its model, one more in the body of the next. number: of its calls
    there. kept: what it has heard there from this number on. The rest is of an update: which optimizers, as bits, what
    the losses weigh, whether they are sums, and of which epoch. bare: the step has no gradients left to reduce. Of a
    reduction, which is behind all calls, `optimizers` is how many there were; of a collective, which one it is. there:
    its script has made the last step itself; before: how many calls it has made behind that; parts: micro-batches of
    this step, none where their number of calls says nothing; between: how many of its calls were behind the loss of one
    of these.
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
    there: bool = False
    before: int = 0
    parts: int = 0
    between: int = 0

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
        return torch.tensor([*self[:5], weight, *map(int, self[6:])], device="cpu")

    @classmethod
    def unpack(cls, columns: list[int]) -> Said:
        """The inverse."""
        kind, at, number, kept, optimizers, weight, summed, epoch, bare, there, before, parts, between = columns
        (weighs,) = struct.unpack(">d", struct.pack(">q", weight))
        first = kind, at, number, kept, optimizers, weighs
        return cls(*first, bool(summed), epoch, bool(bare), bool(there), before, parts, between)


SAID_WIDTH = len(Said._fields)
Update = Callable[[list[Said]], None]


class Talk:
    """Of one member. update: carries out an update that these members have called. `workers`: what to call each rank.
    `_made`: the place behind the step that this member's script has made last, itself; `_behind`: its calls there.
    """

    def __init__(self, update: Update) -> None:
        self._update = update
        self._at, self._number, self._between, self._made = -1, 0, 0, -1
        self._heard: dict[int, list[bytes]] = {}
        self._calls: list[str] = []
        self._behind: list[str] = []
        self.workers: Sequence[str] = ()

    def _come_to(self, at: int) -> None:
        if at != self._at:
            self._at, self._number, self._between, self._calls = at, 0, 0, []
            self._heard.clear()

    def _calls_here(self, call: str) -> None:
        self._calls.append(call)
        if self._at == self._made:
            self._behind = self._calls

    def stepped(self, at: int, *, itself: bool) -> None:
        """A step was made, and this is the place behind it. itself: by a script that has run its body."""
        self._made, self._behind = at if itself else -1, []

    def adopted(self) -> None:
        """The model is another one, whose last step others have made."""
        self.stepped(-1, itself=False)

    def given_up(self) -> None:
        """What was said in the body of a step is said again; between two steps, the script goes on where it is."""
        if self._at % 2:
            self._at = -1

    def exchange(
        self, generation: Generation, at: int, value: torch.Tensor | None, call: str = "", *, between: bool = False
    ) -> list[torch.Tensor | None]:
        """What each member gives who comes to this call, by rank, None for others. call: what it is, and where in the
        script. between: it is behind the loss of a micro-batch that others follow in this step.

        Raises GenerationClosed, and UsageError where others make no such call.
        """
        self._come_to(at)
        which = zlib.crc32(call.partition(" at ")[0].encode())
        said = Said(EXCHANGE, at, self._number, self._kept, which)
        heard: list[bytes] = self._serve(generation, said, _packed(value), call)
        self._heard[self._number] = heard
        self._number += 1
        self._between += between
        if not between:
            self._calls_here(call)
        return [_unpacked(one) if one else None for one in heard]

    def update(self, generation: Generation, said: Said) -> None:
        """All members step these optimizers, with the gradients that there are."""
        self._come_to(said.at)
        self._serve(generation, said._replace(number=self._number))
        self._number += 1
        self._calls_here("apply(optimizer)")

    def reduction(self, generation: Generation, at: int, *, idle: bool, bare: bool, parts: int = 0) -> bool:
        """Until all have come to the end of their step. Returns whether it has no gradients left to reduce. parts: see
        Said.
        """
        self._come_to(at)
        place = REDUCTION, at, LAST, self._kept, self._number
        parts = 0 if idle else parts
        mine = Said(*place, bare=bare, weight=float(not idle), parts=parts, between=self._between)
        said = self._serve(generation, mine)
        found = {one.bare for one in said if one.weight}
        if len(found) > 1:
            raise UsageError("In one step some workers called agent.apply(optimizer), others not: do it on all alike.")
        self._compare(generation, said)
        return bare if not found else found.pop()

    def _compare(self, generation: Generation, said: list[Said]) -> None:
        """Raises UsageError, on all members alike, where scripts have made different calls."""
        there = [rank for rank, one in enumerate(said) if one.there]
        if len({said[rank].before for rank in there}) > 1:
            self._complain(generation, {rank: said[rank].before for rank in there}, self._behind, "behind")
        ran = [rank for rank, one in enumerate(said) if one.parts]
        calls = {rank: said[rank].calls - said[rank].between for rank in ran}
        if any(
            calls[a] != calls[b] and calls[a] * said[b].parts != calls[b] * said[a].parts for a in ran[:1] for b in ran
        ):
            self._complain(generation, calls, self._calls, "in the body of")

    def _complain(self, generation: Generation, calls: dict[int, int], mine: list[str], where: str) -> None:
        """calls: how many each of these members has made there."""
        given = [
            one.decode().splitlines() for one in gather_bytes(generation, "\n".join(mine).encode())
        ]  # of all alike: each has found the same
        least, most = min(calls.values()), max(calls.values())
        alone, others = ([rank for rank in calls if (calls[rank] > least) == more] for more in (True, False))
        call = next((given[rank][least] for rank in alone if calls[rank] == most and len(given[rank]) > least), "")
        step = self._at // 2 + (where != "behind")
        raise UsageError(
            LONELY.format(call or "all_reduce(value)", self._names(alone), self._names(others), where, step)
        )

    def _names(self, ranks: list[int]) -> str:
        return ", ".join(self.workers[rank] if rank < len(self.workers) else f"rank {rank}" for rank in ranks)

    @property
    def _kept(self) -> int:
        return min(self._heard, default=LAST)

    def _serve(self, generation: Generation, mine: Said, value: bytes = b"", call: str = "") -> Any:
        """Takes part in whatever is called further behind, then in what was called here: what was heard, or said."""
        behind = self._made >= 0 and self._made == mine.at - mine.at % 2
        mine = mine._replace(there=behind, before=len(self._behind) if behind else 0)
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
                self._require_all(generation, said, called, call if ours else "")
                found = self._exchange(generation, said, place, value if ours else b"")
            if ours:
                return found

    def _require_all(self, generation: Generation, said: list[Said], called: list[Said], call: str) -> None:
        """Raises UsageError, on all members alike, where another call is made at this place, or who has made the last
        step has gone past it.
        """
        at, number = called[0].place
        where, step = ("in the body of", at // 2 + 1) if at % 2 else ("behind", at // 2)
        if len({one.optimizers for one in called}) > 1:
            given = gather_bytes(generation, call.encode())
            raise UsageError(UNLIKE.format(where, step, ", ".join(sorted({one.decode() for one in given if one}))))
        if at % 2 or not any(one.place > (at, LAST) for one in said):
            return
        gone = {rank: one.before for rank, one in enumerate(said) if one.at > at and one.there}
        calling = {rank: number + 1 for rank, one in enumerate(said) if one.place == (at, number) and one.there}
        if calling and gone and min(gone.values()) <= number:
            self._complain(generation, gone | calling, [*self._behind, call] if call else self._behind, where)
        if call and len(called) == 1 and not any(one.before > number for one in said):
            log.warning(
                "agent.%s heard this worker alone: it has come to step %d when the others had gone on", call, step
            )

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
    rows = torch.empty(generation.world, SAID_WIDTH, dtype=torch.int64, device="cpu")
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
