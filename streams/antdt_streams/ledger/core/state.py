"""The state of the ledger and the only code that changes it: `apply(event)`.

Rules
  1. `apply` is total over the events of a counted entry and deterministic; it never decides, it asserts.
  2. A sample position of an epoch is in exactly one place: not handed out (at or above the cursor), returned, in one
     lease, committed, or quarantined. `check()` proves it by counting.
  3. What a lease still holds is always its tail: commits and returns take from the front.
  4. Memory is O(live leases + fragments), never O(samples) or O(steps): committed positions are intervals, compositions
     are kept for a bounded number of steps.
  5. `dirty` names the rows (see `rows`) that changed since they were last written.

Every event of a log that is proven comes through here, so leases and commits are written to cost little.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from antdt_schemas import lineage, records
from antdt_schemas.limits import CHECKPOINTS_KEPT, INIT_FILE

from antdt_streams.ledger.core.intervals import IntervalSet

FOLD_VERSION = 1
NO_TOKEN = 0
AUTHORS_KEPT = 16


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of the state. `steps` and `step_numbers` bound what is kept of past compositions."""

    checkpoints: int = CHECKPOINTS_KEPT
    steps: int = 4096
    step_numbers: int = 1 << 20


@dataclass(slots=True)
class Incarnation:
    """One life of a worker. status: waiting, ready, member, lost, displaced or left.

    launch, launcher, place: who started it, and what of this machine only one launch at a time can hold.
    """

    worker: str
    role: str
    host: str
    port: int
    node: str
    hardware: str
    restarts: int
    status: str = "waiting"
    claim: int | None = None
    launch: str = ""
    launcher: str = ""
    place: str = ""

    @property
    def gone(self) -> bool:
        return self.status in ("lost", "left", "displaced")


@dataclass(slots=True)
class Lease:
    """A run of shards held by one incarnation in one generation; [front, end) is not yet committed."""

    shards: int
    incarnation: str
    generation: int
    epoch: int
    start: int
    front: int
    end: int
    token: int = NO_TOKEN


def token_of(entry_hash: bytes) -> int:
    """The token of the leases of an entry, from the rolling hash after it. Never `NO_TOKEN`."""
    return int.from_bytes(entry_hash[:8], "big", signed=True) or 1


@dataclass(slots=True)
class Epoch:
    """Where the samples of one epoch are; positions from `cursor` on were never handed out."""

    cursor: int = 0
    returned: IntervalSet = field(default_factory=IntervalSet)
    committed: IntervalSet = field(default_factory=IntervalSet)
    quarantined: IntervalSet = field(default_factory=IntervalSet)
    attempts: dict[int, int] = field(default_factory=dict)


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


class Fault(NamedTuple):
    """Why samples are in quarantine."""

    length: int
    key: str
    reason: str


@dataclass(slots=True)
class Step:
    """A committed step: flat quadruples (lease, epoch, start, length), and the lineage after it. Never changed;
    `framed` is what it adds to a digest, once one was asked for.
    """

    step: int
    ranges: tuple[int, ...]
    lineage: bytes
    framed: bytes = field(default=b"", compare=False)


@dataclass(slots=True)
class Dirty:
    """Names of changed rows. The kinds that change with every step have sets of their own: numbers hash faster than
    pairs of kind and name.
    """

    leases: set[int] = field(default_factory=set)
    epochs: set[int] = field(default_factory=set)
    steps: set[int] = field(default_factory=set)
    others: set[tuple[str, Any]] = field(default_factory=lambda: {("meta", 0), ("checkpoints", 0)})

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """(kind, name) of each row."""
        for kind, numbers in (("lease", self.leases), ("epoch", self.epochs), ("step", self.steps)):
            yield from ((kind, number) for number in numbers)
        yield from self.others

    def __bool__(self) -> bool:
        return bool(self.others or self.leases or self.epochs or self.steps)

    def clear(self) -> None:
        """All of them are written, or nobody will."""
        self.leases.clear()
        self.epochs.clear()
        self.steps.clear()
        self.others.clear()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A durable file; `committed` are the intervals of each epoch that its model contains."""

    step: int
    lineage: bytes
    file: str
    committed: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]


# The model before any step: its file is never removed, so the way back to it is always open.
BEFORE_ANY = Checkpoint(0, lineage.ROOT, INIT_FILE, ())


class State:
    """The fold of the log."""

    def __init__(self, spec: records.JobSpec, bounds: Bounds | None = None) -> None:
        self.spec, self.bounds = spec, bounds or Bounds()
        self.generation, self.open, self.settled = 0, False, True
        self.members: tuple[str, ...] = ()
        self.grant: records.Granted | None = None
        self.committed, self.lineage, self.plan = 0, lineage.ROOT, 0
        self.next_lease, self.requests_next, self.sequence, self.now_ms = 1, 0, 0, 0
        self.done: str | None = None
        # After a roll-back every model there is belongs to an undone branch, until the next grant restores a file.
        self.restoring = False
        self.authors: tuple[str, ...] = ()
        # Losses that an operator has accepted: (run, next offset of what was known then).
        self.accepted: tuple[tuple[str, int], ...] = ()
        # Kafka's id of the topic of the requests, if it is not that of Genesis any more.
        self.requests_topic = ""
        self.committed_total = self.quarantined_total = self.refused = 0
        # Committed steps that the model was left out of, those undone by a roll-back included.
        self.skipped = 0
        self.incarnations: dict[str, Incarnation] = {}
        self.epochs: dict[int, Epoch] = {}
        self.leases: dict[int, Lease] = {}
        self.held: dict[str, dict[int, None]] = {}
        # Evidence against samples by the lease that holds them, which it ends with; faults by (epoch, position).
        self.blamed: dict[int, tuple[Evidence, ...]] = {}
        self.faults: dict[tuple[int, int], Fault] = {}
        self.checkpoints = [BEFORE_ANY]
        self.steps: deque[Step] = deque()
        self.step_numbers = 0
        self._low_epoch = 0
        self._unsealed: list[int] = []
        self.dirty = Dirty()

    # -- questions

    @property
    def samples_total(self) -> int:
        """Samples of all epochs."""
        return self.spec.samples * self.spec.epochs

    @property
    def finished(self) -> bool:
        """Everything is committed or quarantined."""
        return self.committed_total + self.quarantined_total == self.samples_total

    @property
    def first_epoch_with_work(self) -> int:
        """Epochs below were handed out whole, and nothing of them came back."""
        while self._low_epoch < self.spec.epochs:
            epoch = self.epochs.get(self._low_epoch)
            if epoch is None or epoch.cursor < self.spec.samples or epoch.returned:
                break
            self._low_epoch += 1
        return self._low_epoch

    def _give_back(self, epoch: int, start: int, end: int) -> None:
        self.epoch(epoch).returned.add(start, end)
        self._low_epoch = min(self._low_epoch, epoch)

    def epoch(self, epoch: int) -> Epoch:
        """An epoch, made when it is first touched."""
        found = self.epochs.get(epoch)
        if found is None:
            found = self.epochs[epoch] = Epoch()
        return found

    def held_samples(self, incarnation: str, generation: int) -> int:
        """Uncommitted samples that an incarnation holds in a generation."""
        leases = (self.leases[number] for number in self.held.get(incarnation, ()))
        return sum(lease.end - lease.front for lease in leases if lease.generation == generation)

    def lineage_at(self, step: int) -> bytes | None:
        """Lineage of a committed step, or None if it is not (or no longer) known."""
        if step == self.committed:
            return self.lineage
        if self.steps and self.steps[0].step <= step < self.committed:
            return self.steps[step - self.steps[0].step].lineage
        return next((c.lineage for c in self.checkpoints if c.step == step), None)

    def shards_between(self, start: int, end: int) -> range:
        """Numbers of the shards that [start, end) touches."""
        return range(start // self.spec.shard_size, -(-end // self.spec.shard_size))

    # -- change

    def apply(self, event: records.Event) -> None:
        """Apply one event of a counted entry, which `seal` then completes."""
        _APPLY[type(event)](self, event)

    def seal(self, sequence: int, requests_next: int, now_ms: int, entry_hash: bytes) -> None:
        """The entry with the events applied since the last seal has its place in the log: leases get their token."""
        token = token_of(entry_hash)
        for number in self._unsealed:
            if number in self.leases:
                self.leases[number].token = token
        self._unsealed.clear()
        assert sequence == self.sequence + 1, (sequence, self.sequence)
        assert requests_next >= self.requests_next, (requests_next, self.requests_next)
        self.sequence, self.requests_next = sequence, requests_next
        self.now_ms = max(self.now_ms, now_ms)
        self.dirty.others.add(("meta", 0))

    def _joined(self, e: records.Joined) -> None:
        assert e.incarnation not in self.incarnations, e
        who = Incarnation(e.worker, e.role, e.host, e.port, e.node, e.hardware, e.restarts)
        who.launch, who.launcher, who.place = e.launch, e.launcher, e.place
        self.incarnations[e.incarnation] = who
        self.dirty.others.add(("incarnation", e.incarnation))

    def _gone(self, incarnation: str, status: str) -> None:
        who = self.incarnations[incarnation]
        assert not who.gone, (incarnation, who)
        who.status, who.claim = status, None
        self.dirty.others.add(("incarnation", incarnation))
        if self.blamed and incarnation in self.members:
            self._pardon({m for m in self.members if m != incarnation and self.incarnations[m].gone})

    def _pardon(self, dead: set[str]) -> None:
        """These did not die alone: nothing follows from it."""
        for number, found in list(self.blamed.items()):
            self._suspect(number, tuple(e for e in found if not (e.deadly and e.incarnation in dead)))

    def _suspect(self, number: int, found: tuple[Evidence, ...]) -> None:
        if found:
            self.blamed[number] = found
        else:
            self.blamed.pop(number, None)
        self.dirty.others.add(("blamed", number))

    def _blamed(self, e: records.Blamed) -> None:
        end = e.start + e.length
        held = ((n, self.leases[n]) for n in self.held.get(e.incarnation, ()))
        number = next((n for n, x in held if x.epoch == e.epoch and x.front <= e.start < end <= x.end), None)
        assert number is not None, e
        deadly = self.incarnations[e.incarnation].gone
        found = Evidence(e.incarnation, e.start, end, e.key, e.reason, deadly)
        self._suspect(number, (*self.blamed.get(number, ()), found))

    def _lost(self, e: records.Lost) -> None:
        self._gone(e.incarnation, "displaced" if e.by else "lost")

    def _left(self, e: records.Left) -> None:
        self._gone(e.incarnation, "left")

    def _closed(self, e: records.Closed) -> None:
        assert self.open and e.generation == self.generation, e
        self.open = False

    def _ready(self, e: records.Ready) -> None:
        who = self.incarnations[e.incarnation]
        assert not self.open and who.status == "member", (e, who)
        assert e.claim is None or not self.restoring, e
        who.status, who.claim, who.host, who.port = "ready", e.claim, e.host, e.port
        self.dirty.others.add(("incarnation", e.incarnation))

    def _granted(self, e: records.Granted) -> None:
        assert not self.open and e.generation == self.generation + 1 and e.members, e
        assert e.committed == self.committed, (e, self.committed)
        assert e.source is None or not self.restoring, e
        self.generation, self.members, self.open, self.settled = e.generation, e.members, True, False
        self.restoring = False
        self.grant = e
        self.dirty.others.add(("grant", 0))
        for name in e.members:
            who = self.incarnations[name]
            assert who.status in ("waiting", "ready"), (name, who)
            who.status, who.claim = "member", None
            self.dirty.others.add(("incarnation", name))

    def _rolled_back(self, e: records.RolledBack) -> None:
        kept = [c for c in self.checkpoints if c.step <= e.step] or [BEFORE_ANY]
        target = kept[-1]
        assert target.step == e.step and not self.open, (e, self.checkpoints)
        self._void_models()
        if e.author:
            self.authors = (*self.authors, e.author)[-AUTHORS_KEPT:]
        before = dict(target.committed)
        for number, epoch in self.epochs.items():
            inside = IntervalSet(before.get(number, ()))
            for start, end in list(epoch.committed):
                for low, high in inside.gaps(start, end):
                    epoch.committed.remove(low, high)
                    self._give_back(number, low, high)
                    self.committed_total -= high - low
                    self.dirty.epochs.add(number)
        while self.steps and self.steps[-1].step > e.step:
            undone = self.steps.pop()
            self.step_numbers -= len(undone.ranges)
            self.dirty.steps.add(undone.step)
        self.checkpoints = kept
        self.committed, self.lineage = e.step, target.lineage
        self.dirty.others.add(("checkpoints", 0))

    def _void_models(self) -> None:
        self.restoring = True
        for name, who in self.incarnations.items():
            if who.claim is not None:
                who.claim = None
                self.dirty.others.add(("incarnation", name))

    def _regressed(self, e: records.Regressed) -> None:
        """Nobody is known any more, and no number that the lost entries may have given away is given again."""
        self.open = False
        self._void_models()
        for name, who in self.incarnations.items():
            if not who.gone:
                self._gone(name, "left")  # not "lost": no sample is to blame
        self.accepted = (*self.accepted, (e.run_id, e.next_offset))
        self.generation = max(self.generation, e.generation)
        self.next_lease = max(self.next_lease, e.next_lease)

    def _leased(self, e: records.Leased) -> None:
        assert e.lease == self.next_lease and e.shards > 0 and e.length > 0, (e, self.next_lease)
        assert self.open and e.generation == self.generation, (e, self.generation)
        epoch, end = self.epoch(e.epoch), e.start + e.length
        if e.start == epoch.cursor:
            epoch.cursor = end
            assert end <= self.spec.samples, e
        else:
            epoch.returned.remove(e.start, end)
        self.hold(e.lease, Lease(e.shards, e.incarnation, e.generation, e.epoch, e.start, e.start, end))
        self.next_lease += e.shards
        self._unsealed.append(e.lease)
        self.dirty.leases.add(e.lease)
        self.dirty.epochs.add(e.epoch)

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

    def _committed(self, e: records.Committed) -> None:
        assert e.step == self.committed + 1 and e.generation == self.generation and self.open, (e, self.committed)
        r, take_front, number_before, inside = e.ranges, self._take_front, -1, IntervalSet()
        values = iter(r)
        for number, epoch, start, length in zip(values, values, values, values, strict=True):
            end = start + length
            take_front(number, epoch, start, end)
            if epoch != number_before:
                inside, number_before = self.epoch(epoch).committed, epoch
                self.dirty.epochs.add(epoch)
            added = inside.try_add(start, end)
            assert added, (e, inside.overlaps(start, end))
            self.committed_total += length
        self.lineage = lineage.next_lineage(self.lineage, e.step, r)
        assert self.lineage == e.lineage, (e, self.lineage)
        self.committed, self.plan = e.step, e.plan
        self.remember((Step(e.step, r, e.lineage),))

    def _step_skipped(self, e: records.StepSkipped) -> None:
        assert e.step == self.committed, (e, self.committed)
        self.skipped += 1
        self.dirty.others.add(("skipped", 0))

    def remember(self, steps: Sequence[Step]) -> None:
        """Keep the next steps apart, and forget the oldest ones beyond the bounds."""
        self.steps.extend(steps)
        self.step_numbers += sum([len(step.ranges) for step in steps])
        self.dirty.steps.update(range(steps[0].step, steps[-1].step + 1))
        self._forget(self.bounds.steps, self.bounds.step_numbers)

    def forget_steps(self) -> None:
        """Keep none of the steps so far apart."""
        self._forget(0, 0)

    def _forget(self, steps: int, numbers: int) -> None:
        """Keep as many of the newest steps apart, of as many numbers together."""
        first = self.steps[0].step if self.steps else 0
        forgotten = 0
        while len(self.steps) > steps or self.step_numbers > numbers:
            self.step_numbers -= len(self.steps.popleft().ranges)
            forgotten += 1
        self.dirty.steps.update(range(first, first + forgotten))

    def _settled(self, e: records.Settled) -> None:
        assert e.generation == self.generation and not self.settled, e
        self.settled = True

    def _returned(self, e: records.Returned) -> None:
        end = e.start + e.length
        for found in self.blamed.get(e.lease, ()) if e.quarantined else ():
            if found.start < end and found.end > e.start:
                at = e.epoch, max(found.start, e.start)
                self.faults[at] = Fault(min(found.end, end) - at[1], found.key, found.reason)
                self.dirty.others.add(("fault", at))
        self._take_front(e.lease, e.epoch, e.start, end)
        epoch = self.epoch(e.epoch)
        if e.counted:
            for shard in self.shards_between(e.start, end):
                epoch.attempts[shard] = epoch.attempts.get(shard, 0) + 1
        if e.quarantined:
            epoch.quarantined.add(e.start, end)
            self.quarantined_total += e.length
        else:
            self._give_back(e.epoch, e.start, end)
        self.dirty.epochs.add(e.epoch)

    def _readmitted(self, e: records.Readmitted) -> None:
        epoch, end = self.epoch(e.epoch), e.start + e.length
        epoch.quarantined.remove(e.start, end)
        self._give_back(e.epoch, e.start, end)
        self.quarantined_total -= e.length
        for shard in self.shards_between(e.start, end):
            epoch.attempts.pop(shard, None)
        for at in [at for at in self.faults if at[0] == e.epoch and e.start <= at[1] < end]:
            del self.faults[at]
            self.dirty.others.add(("fault", at))
        self.done = None  # there is something to do again
        self.dirty.epochs.add(e.epoch)

    def _checkpointed(self, e: records.Checkpointed) -> None:
        assert self.lineage_at(e.step) == e.lineage, e
        # The same model in another file contains the same, also when the steps since are no longer kept apart.
        same = next((c.committed for c in self.checkpoints if c.step == e.step), None)
        inside = self._inside(e.step) if same is None else same
        self.checkpoints.append(Checkpoint(e.step, e.lineage, e.file, inside))
        self.checkpoints.sort(key=lambda c: c.step)
        del self.checkpoints[: -self.bounds.checkpoints]
        self.dirty.others.add(("checkpoints", 0))

    def _inside(self, step: int) -> tuple[tuple[int, tuple[tuple[int, int], ...]], ...]:
        """Committed intervals of each epoch after this step: all that are committed, but those of later steps."""
        committed = {number: epoch.committed.copy() for number, epoch in self.epochs.items()}
        for later in reversed(self.steps):
            if later.step <= step:
                break
            for i in range(0, len(later.ranges), 4):
                _, number, start, length = later.ranges[i : i + 4]
                committed[number].remove(start, start + length)
        return tuple((number, tuple(s)) for number, s in sorted(committed.items()) if s)

    def _done(self, e: records.Done) -> None:
        assert self.finished and self.done is None, e
        self.done = e.file

    def _refused(self, e: records.Refused) -> None:
        self.refused += 1

    def _requests_moved(self, e: records.RequestsMoved) -> None:
        """The only thing that lets the position go back."""
        self.requests_topic, self.requests_next = e.topic_id, e.next
        self.dirty.others.add(("requests", 0))

    def _digested(self, e: records.Digested) -> None:
        """Compared by the fold, before anything of the entry is applied."""

    # -- invariants

    def check(self) -> None:
        """Rule 2, by counting, and the indexes. Linear in the live state."""
        leased: dict[int, IntervalSet] = {}
        for number, lease in self.leases.items():
            assert lease.start <= lease.front < lease.end, lease
            assert number in self.held[lease.incarnation]
            leased.setdefault(lease.epoch, IntervalSet()).add(lease.front, lease.end)
        assert sum(map(len, self.held.values())) == len(self.leases)
        for number, epoch in self.epochs.items():
            inside = IntervalSet()
            for part in (epoch.returned, epoch.committed, epoch.quarantined, leased.pop(number, IntervalSet())):
                for start, end in part:
                    inside.add(start, end)
            whole = [(0, epoch.cursor)] if epoch.cursor else []
            assert list(inside) == whole, (number, inside, epoch.cursor)
        assert not leased
        for number, found in self.blamed.items():
            assert found and all(self.leases[number].start <= e.start < e.end <= self.leases[number].end for e in found)
        for (epoch_of, start), fault in self.faults.items():
            assert not self.epochs[epoch_of].quarantined.gaps(start, start + fault.length)
        assert self.committed_total == sum(e.committed.total for e in self.epochs.values())
        assert self.quarantined_total == sum(e.quarantined.total for e in self.epochs.values())


_APPLY: dict[type, Any] = {
    records.Joined: State._joined,
    records.Lost: State._lost,
    records.Left: State._left,
    records.Closed: State._closed,
    records.Ready: State._ready,
    records.Granted: State._granted,
    records.RolledBack: State._rolled_back,
    records.Leased: State._leased,
    records.Committed: State._committed,
    records.StepSkipped: State._step_skipped,
    records.Settled: State._settled,
    records.Returned: State._returned,
    records.Readmitted: State._readmitted,
    records.Checkpointed: State._checkpointed,
    records.Done: State._done,
    records.Refused: State._refused,
    records.Digested: State._digested,
    records.Regressed: State._regressed,
    records.RequestsMoved: State._requests_moved,
    records.Blamed: State._blamed,
}
