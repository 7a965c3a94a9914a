"""Where the samples of a job are: in leases, in the model, in quarantine, or to be handed out.

Owns epochs, leases, and the evidence against samples. Must not know who works on them, nor which step took them: it is
told. Every event of a log that is proven comes through here, so leases and commits are written to cost little.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from antdt_schemas import records
from antdt_schemas.space import Space

from antdt_streams.ledger.core.dirty import Dirty
from antdt_streams.ledger.core.intervals import IntervalSet
from antdt_streams.ledger.core.samples import Fault, Lease, Samples


def token_of(entry_hash: bytes) -> int:
    """The token of the leases of an entry, from the rolling hash after it. Never 0, which stands for none."""
    return int.from_bytes(entry_hash[:8], "big", signed=True) or 1


class Evidence(NamedTuple):
    """Why samples of a lease are under suspicion. deadly: whoever had them is dead, which says something only as long
    as no other member of its generation is gone as well.
    """

    incarnation: str
    start: int
    end: int
    key: str
    reason: str
    deadly: bool


class Shards(Samples):
    """Samples by epoch, and the leases on them.

    A sample position of an epoch is in exactly one place: not handed out (at or above the cursor), returned, in one
    lease, committed, or quarantined. What a lease still holds is always its tail: commits and returns take from the
    front. `check` proves both by counting.
    """

    def __init__(self, spec: records.JobSpec, dirty: Dirty) -> None:
        super().__init__(spec, dirty)
        self.next_lease = 1
        self.leases: dict[int, Lease] = {}
        self.held: dict[str, dict[int, None]] = {}
        # Evidence against samples by the lease that holds them, which it ends with.
        self.blamed: dict[int, tuple[Evidence, ...]] = {}
        self._low_epoch = 0
        self._unsealed: list[int] = []

    # -- questions

    @property
    def first_epoch_with_work(self) -> int:
        """Epochs below were handed out whole, and nothing of them came back."""
        while self._low_epoch < self.spec.epochs:
            epoch = self.epochs.get(self._low_epoch)
            if epoch is None or epoch.cursor < self.samples or epoch.returned:
                break
            self._low_epoch += 1
        return self._low_epoch

    def held_samples(self, incarnation: str, generation: int) -> int:
        """Uncommitted samples that an incarnation holds in a generation."""
        leases = (self.leases[number] for number in self.held.get(incarnation, ()))
        return sum(lease.end - lease.front for lease in leases if lease.generation == generation)

    def between(self, start: int, end: int) -> range:
        """Numbers of the shards that [start, end) touches."""
        return range(start // self.spec.shard_size, -(-end // self.spec.shard_size))

    # -- change

    def lease(self, e: records.Leased) -> None:
        """Samples that nobody holds are held by somebody."""
        assert e.lease == self.next_lease and e.shards > 0 and e.length > 0, (e, self.next_lease)
        epoch, end = self.epoch(e.epoch), e.start + e.length
        if e.start == epoch.cursor:
            epoch.cursor = end
            assert end <= self.samples, e
        else:
            epoch.returned.remove(e.start, end)
        self.hold(e.lease, Lease(e.shards, e.incarnation, e.generation, e.epoch, e.start, e.start, end))
        self.next_lease += e.shards
        self._unsealed.append(e.lease)
        self.dirty.leases.add(e.lease)
        self.dirty.epochs.add(e.epoch)

    def seal(self, token: int) -> None:
        """Leases that began since the last call have this token."""
        for number in self._unsealed:
            if number in self.leases:
                self.leases[number].token = token
        self._unsealed.clear()

    def hold(self, number: int, lease: Lease) -> None:
        """A lease begins."""
        self.leases[number] = lease
        self.held.setdefault(lease.incarnation, {})[number] = None

    def move_front(self, number: int, front: int) -> None:
        """What a lease held up to `front` is committed or returned; it is over when nothing is left."""
        lease = self.leases[number]
        lease.front = front
        self.dirty.leases.add(number)
        if front == lease.end:
            del self.leases[number]
            if number in self.blamed:
                self._suspect(number, ())
            mine = self.held[lease.incarnation]
            del mine[number]
            if not mine:
                del self.held[lease.incarnation]

    def _take_front(self, number: int, epoch: int, start: int, end: int) -> None:
        lease = self.leases[number]
        assert lease.epoch == epoch and lease.front == start and end <= lease.end, (number, lease, epoch, start, end)
        self.move_front(number, end)

    def commit(self, ranges: tuple[int, ...]) -> None:
        """Flat quadruples (lease, epoch, start, length) are in the model."""
        take_front, number_before, inside = self._take_front, -1, IntervalSet()
        values = iter(ranges)
        for number, epoch, start, length in zip(values, values, values, values, strict=True):
            end = start + length
            take_front(number, epoch, start, end)
            if epoch != number_before:
                inside, number_before = self.epoch(epoch).committed, epoch
                self.dirty.epochs.add(epoch)
            added = inside.try_add(start, end)
            assert added, (ranges, inside.overlaps(start, end))
            self.committed_total += length

    def undo_all_but(self, inside: Mapping[int, tuple[tuple[int, int], ...]]) -> None:
        """Of what is committed, only these intervals of each epoch stay; the rest is to be done again."""
        for number, epoch in self.epochs.items():
            kept = IntervalSet(inside.get(number, ()))
            for start, end in list(epoch.committed):
                for low, high in kept.gaps(start, end):
                    epoch.committed.remove(low, high)
                    self._give_back(number, low, high)
                    self.committed_total -= high - low
                    self.dirty.epochs.add(number)

    def take_back(self, e: records.Returned) -> None:
        """What is left of a lease is to be done again, or is in quarantine."""
        end = e.start + e.length
        for found in self.blamed.get(e.lease, ()) if e.quarantined else ():
            if found.start < end and found.end > e.start:
                at = e.epoch, max(found.start, e.start)
                self.faults[at] = Fault(min(found.end, end) - at[1], found.key, found.reason)
                self.dirty.others.add(("fault", at))
        self._take_front(e.lease, e.epoch, e.start, end)
        epoch = self.epoch(e.epoch)
        if e.counted:
            for shard in self.between(e.start, end):
                epoch.attempts[shard] = epoch.attempts.get(shard, 0) + 1
        if e.quarantined:
            epoch.quarantined.add(e.start, end)
            self.quarantined_total += e.length
        else:
            self._give_back(e.epoch, e.start, end)
        self.dirty.epochs.add(e.epoch)

    def vacant(self, e: records.Vacant) -> None:
        """Nothing is at these positions of a lease, which are committed with the others: nobody need do anything."""
        lease, values = self.leases[e.lease], iter(e.places)
        for start, length in zip(values, values, strict=True):
            assert e.epoch == lease.epoch and lease.front <= start and length > 0, (e, lease)
            assert start + length <= lease.end, (e, lease)

    def set_aside(self, e: records.SetAside) -> None:
        """A lease ends before what is in quarantine now, and what was behind that is to be done."""
        lease, end = self.leases[e.lease], e.start + e.length
        assert e.epoch == lease.epoch and lease.front <= e.start < end <= lease.end, (e, lease)
        if end < lease.end:
            self._give_back(e.epoch, end, lease.end)
        epoch, lease.end = self.epoch(e.epoch), e.start
        if e.lease in self.blamed:
            self._suspect(e.lease, tuple(x for x in self.blamed[e.lease] if x.end <= e.start))
        self.move_front(e.lease, lease.front)
        epoch.quarantined.add(e.start, end)
        self.quarantined_total += e.length
        self.faults[e.epoch, e.start] = Fault(e.length, e.key, e.reason)
        self.dirty.others.add(("fault", (e.epoch, e.start)))
        self.dirty.epochs.add(e.epoch)

    def extend(self, e: records.Extended) -> None:
        """More of a topic, or its end."""
        self.space = self.space.extended(Space.of(e.blocks, closed=True).blocks, closed=e.closed)
        self._low_epoch = 0
        self.dirty.others.add(("space", 0))

    def readmit(self, e: records.Readmitted) -> None:
        """What is in quarantine is to be tried again, as if it had never failed."""
        epoch, end = self.epoch(e.epoch), e.start + e.length
        epoch.quarantined.remove(e.start, end)
        self._give_back(e.epoch, e.start, end)
        self.quarantined_total -= e.length
        for shard in self.between(e.start, end):
            epoch.attempts.pop(shard, None)
        for at in [at for at in self.faults if at[0] == e.epoch and e.start <= at[1] < end]:
            del self.faults[at]
            self.dirty.others.add(("fault", at))
        self.dirty.epochs.add(e.epoch)

    def _give_back(self, epoch: int, start: int, end: int) -> None:
        self.epoch(epoch).returned.add(start, end)
        self._low_epoch = min(self._low_epoch, epoch)

    # -- suspicion

    def blame(self, e: records.Blamed, deadly: bool) -> None:
        """There is evidence against samples, which one lease of this incarnation holds."""
        end = e.start + e.length
        held = ((n, self.leases[n]) for n in self.held.get(e.incarnation, ()))
        number = next((n for n, x in held if x.epoch == e.epoch and x.front <= e.start < end <= x.end), None)
        assert number is not None, e
        found = Evidence(e.incarnation, e.start, end, e.key, e.reason, deadly)
        self._suspect(number, (*self.blamed.get(number, ()), found))

    def pardon(self, dead: set[str]) -> None:
        """These did not die alone: nothing follows from it."""
        for number, found in list(self.blamed.items()):
            self._suspect(number, tuple(e for e in found if not (e.deadly and e.incarnation in dead)))

    def _suspect(self, number: int, found: tuple[Evidence, ...]) -> None:
        if found:
            self.blamed[number] = found
        else:
            self.blamed.pop(number, None)
        self.dirty.others.add(("blamed", number))

    # -- invariants

    def check(self) -> None:
        """That every position is in one place, by counting, and the indexes. Linear in the live state."""
        leased: dict[int, list[tuple[int, int]]] = {}
        for number, lease in self.leases.items():
            assert lease.start <= lease.front < lease.end, lease
            assert number in self.held[lease.incarnation]
            leased.setdefault(lease.epoch, []).append((lease.front, lease.end))
        assert sum(map(len, self.held.values())) == len(self.leases)
        for number, epoch in self.epochs.items():
            end_before = 0
            for start, end in sorted((*epoch.returned, *epoch.committed, *epoch.quarantined, *leased.pop(number, ()))):
                assert start == end_before, (number, epoch, start, end_before)
                end_before = end
            assert end_before == epoch.cursor, (number, end_before, epoch.cursor)
        assert not leased
        for number, found in self.blamed.items():
            assert found and all(self.leases[number].start <= e.start < e.end <= self.leases[number].end for e in found)
        super().check()
