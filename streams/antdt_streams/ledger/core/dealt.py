"""Samples that are dealt out ahead: to whom what nobody has begun belongs.

Owns the part of each worker, and what is nobody's yet. A part says nothing of what becomes of samples, which `shards`
does: it only says who may begin with them. Must not know how much is dealt to whom, nor who takes over from whom.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from antdt_schemas import records
from antdt_schemas.strategies import sharding_of

from antdt_streams.ledger.core.dirty import Dirty
from antdt_streams.ledger.core.intervals import IntervalSet
from antdt_streams.ledger.core.shards import Shards

NOBODY = ""


@dataclass(slots=True)
class Part:
    """What a worker was dealt, and has not begun, by epoch: an epoch is in it once it was dealt to it, if only nothing.
    dealt: how many samples it was dealt in all, without those that it gave up again before it began.
    """

    dealt: int = 0
    todo: dict[int, IntervalSet] = field(default_factory=dict)

    @property
    def unstarted(self) -> int:
        """Samples that it has not begun."""
        return sum(inside.total for inside in self.todo.values())


class DealtShards(Shards):
    """parts: by incarnation, of those that live; NOBODY's is to be dealt.

    Invariant: what of an epoch is to be done is in exactly one part. Positions from its cursor on are in none: they
    were never dealt.
    """

    def __init__(self, spec: records.JobSpec, dirty: Dirty) -> None:
        super().__init__(spec, dirty)
        self.sharding = sharding_of(spec.strategy)
        self.parts: dict[str, Part] = {NOBODY: Part()}

    # -- questions

    def todo(self, who: str, epoch: int) -> IntervalSet:
        """What of an epoch this worker has not begun, which is not to be changed."""
        part = self.parts.get(who)
        return (part.todo.get(epoch) if part is not None else None) or IntervalSet()

    def has(self, who: str, epoch: int, start: int, end: int) -> bool:
        """Whether a worker was dealt all of this, and has not begun it."""
        return self.todo(who, epoch).overlaps(start, end) == [(start, end)]

    # -- change

    def deal(self, e: records.Dealt) -> None:
        """What is nobody's, or all that is not begun, is somebody's."""
        epoch = self.epoch(e.epoch)
        if epoch.cursor < self.samples:
            start, epoch.cursor = epoch.cursor, self.samples
            self._give_back(e.epoch, start, self.samples)
        for name in [n for n in self.parts if n != NOBODY] if e.anew else ():
            for start, end in list(self.todo(name, e.epoch)):
                self._hand(name, NOBODY, e.epoch, start, end)
        for name in e.incarnations:
            self._part(name).todo.setdefault(e.epoch, IntervalSet())
            self._mark(name)
        values = iter(e.pieces)
        for number, start, length in zip(values, values, values, strict=True):
            self._hand(NOBODY, e.incarnations[number], e.epoch, start, start + length)
        self.dirty.epochs.add(e.epoch)
        self._forget_epochs()

    def move(self, e: records.Moved) -> None:
        """Somebody takes over what another one has not begun."""
        assert e.source not in (NOBODY, e.target), e
        self._hand(e.source, e.target, e.epoch, e.start, e.start + e.length)

    def forget(self, who: str) -> None:
        """A worker is gone: what it has not begun is nobody's."""
        part = self.parts.get(who)
        for epoch, inside in list(part.todo.items()) if part is not None else ():
            for start, end in list(inside):
                self._hand(who, NOBODY, epoch, start, end)
        if part is not None:
            del self.parts[who]
            self._mark(who)

    def lease(self, e: records.Leased) -> None:
        """See Shards. A worker begins with what it was dealt, and with nothing else."""
        self._part(e.incarnation).todo[e.epoch].remove(e.start, e.start + e.length)
        self._mark(e.incarnation)
        super().lease(e)

    def take_back(self, e: records.Returned) -> None:
        """See Shards. What somebody gives back who lives is still its own."""
        holder = self.leases[e.lease].incarnation
        super().take_back(e)
        if not e.quarantined and holder in self.parts:
            self._hand(NOBODY, holder, e.epoch, e.start, e.start + e.length, counts=False)

    def _give_back(self, epoch: int, start: int, end: int) -> None:
        super()._give_back(epoch, start, end)
        self._part(NOBODY).todo.setdefault(epoch, IntervalSet()).add(start, end)
        self._mark(NOBODY)

    def _hand(self, source: str, target: str, epoch: int, start: int, end: int, *, counts: bool = True) -> None:
        """From one part into another. counts: as dealt, and as given up."""
        giver, taker = self.parts[source], self._part(target)
        giver.todo[epoch].remove(start, end)
        taker.todo.setdefault(epoch, IntervalSet()).add(start, end)
        if counts:
            giver.dealt -= end - start
            taker.dealt += end - start
        self.parts[NOBODY].dealt = 0
        self._mark(source)
        self._mark(target)

    def _part(self, who: str) -> Part:
        return self.parts.setdefault(who, Part())

    def _mark(self, who: str) -> None:
        self.dirty.others.add(("part", who))

    def _forget_epochs(self) -> None:
        """What is begun whole has no parts any more; what comes back of it is nobody's or its holder's."""
        low = self.first_epoch_with_work
        for name, part in self.parts.items():
            for epoch in [epoch for epoch in part.todo if epoch < low]:
                assert not part.todo[epoch], (name, epoch)
                del part.todo[epoch]
                self._mark(name)

    def check(self) -> None:
        """See Shards."""
        super().check()
        for number, epoch in self.epochs.items():
            inside = IntervalSet()
            for part in self.parts.values():
                for start, end in part.todo.get(number, ()):
                    inside.add(start, end)
            assert inside == epoch.returned, (number, inside, epoch.returned)
