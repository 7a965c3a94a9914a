"""The state of the ledger and the only code that changes it: `apply(event)`.

Owns what an event means for members, shards and line together, each of which knows nothing of the others. Rules
  1. `apply` is total over the events of a counted entry and deterministic; it never decides, it asserts.
  2. Memory is O(live leases + fragments), never O(samples) or O(steps): committed positions are intervals, compositions
     are kept for a bounded number of steps.
  3. `dirty` names the rows (see `rows`) that changed since they were last written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from antdt_schemas import records
from antdt_schemas.space import TOPIC
from antdt_schemas.strategies import WATCHED, servers_of, sharding_of

from antdt_streams.ledger.core.batches import Batches
from antdt_streams.ledger.core.dealt import DealtShards
from antdt_streams.ledger.core.dirty import Dirty
from antdt_streams.ledger.core.line import Bounds, Inside, Line
from antdt_streams.ledger.core.members import Members
from antdt_streams.ledger.core.shards import Shards, token_of

AUTHORS_KEPT = 16

How = Callable[[Any, Any], None]


class State:
    """The fold of the log: who works (`members`), where the samples are (`shards`), which steps led to the model
    (`line`), and what is said of the job as a whole. how: what each event does; other rules are another class
    (see `versions`).

    tells_each: whether every commit has its lineage, or, of steps of a fixed size, the last one of an entry.
    authors: whose roll-backs were carried out lately. accepted: losses that an operator has accepted, as (run, next
    offset of what was known then). requests_topic: Kafka's id of the topic, if it is not that of Genesis any more.
    stop: behind which step the job ends before all is trained, and why.
    """

    how: ClassVar[Mapping[type, How]]

    def __init__(self, spec: records.JobSpec, bounds: Bounds | None = None) -> None:
        self.spec, self.dirty = spec, Dirty()
        self.members = Members(self.dirty, servers_of(spec.strategy))
        leased = DealtShards if sharding_of(spec.strategy) else Shards
        self.shards: Shards | Batches = Batches(spec, self.dirty) if spec.batches else leased(spec, self.dirty)
        self.line = Line(bounds or Bounds(), self.dirty)
        self.requests_next, self.sequence, self.now_ms = 0, 0, 0
        self.done: str | None = None
        self.authors: tuple[str, ...] = ()
        self.accepted: tuple[tuple[str, int], ...] = ()
        self.requests_topic = ""
        self.refused = 0
        self.stop: records.Stopped | None = None

    @property
    def samples_total(self) -> int:
        """Samples of all epochs."""
        return self.shards.total

    @property
    def finished(self) -> bool:
        """Everything is committed or quarantined, or not meant to be trained. What is only watched never is: nobody
        says what there is to be trained.
        """
        if self.spec.strategy == WATCHED:
            return False
        if self.stop is not None and self.line.committed >= self.stop.step:
            return True  # there may be no such step any more, since steps are larger than they were when it was made
        if isinstance(self.shards, Batches) and self.shards.layouts.changes:
            # What is left may be no step of another size, while a model has steps that were executed before.
            grant = self.members.grant
            awaits = grant is not None and (grant.source_step or 0) > self.line.committed
            return not awaits and self.shards.nothing_left_for(self.members.generation)
        return self.shards.finished

    @property
    def why_stopped(self) -> str:
        """Behind which step the job ends, or has ended, before all was trained, and why; empty where it does not."""
        if self.stop is None or (self.done is not None and self.line.committed < self.stop.step):
            return ""
        return f"is finished early, behind step {self.stop.step}: {self.stop.reason}"

    def apply(self, event: records.Event) -> None:
        """Apply one event of a counted entry, which `seal` then completes."""
        self.how[type(event)](self, event)

    def seal(self, sequence: int, requests_next: int, now_ms: int, entry_hash: bytes) -> None:
        """The entry with the events applied since the last seal has its place in the log: leases get their token."""
        self.shards.seal(token_of(entry_hash))
        assert sequence == self.sequence + 1, (sequence, self.sequence)
        assert requests_next >= self.requests_next, (requests_next, self.requests_next)
        self.sequence, self.requests_next = sequence, requests_next
        self.now_ms = max(self.now_ms, now_ms)
        self.dirty.others.add(("meta", 0))

    def check(self) -> None:
        """Invariants, by counting. Linear in the live state."""
        self.shards.check()

    # -- who works

    def _gone(self, incarnation: str, status: str) -> None:
        self.members.end(incarnation, status)
        if isinstance(self.shards, DealtShards):
            self.shards.forget(incarnation)
        if self.shards.blamed and self.members.took_part(incarnation):
            self.shards.pardon(self.dead_beside(incarnation))

    def dead_beside(self, incarnation: str) -> set[str]:
        """Who else of the newest generation is gone; of attached workers, who has not given its samples back yet."""
        dead = self.members.dead_beside(incarnation)
        if self.members.servers and isinstance(self.shards, Shards):
            dead |= {n for n in self.shards.held if n != incarnation and self.members.incarnations[n].gone}
        return dead

    def death_speaks(self, incarnation: str) -> bool:
        """Whether what this member had at hand is evidence, now that it has died."""
        return not self.dead_beside(incarnation)

    def _lost(self, e: records.Lost) -> None:
        self._gone(e.incarnation, "displaced" if e.by else "lost")

    def _left(self, e: records.Left) -> None:
        self._gone(e.incarnation, "left")

    def _granted(self, e: records.Granted) -> None:
        assert e.committed == self.line.committed, (e, self.line.committed)
        self.members.form(e)
        if isinstance(self.shards, Batches):
            source_step = self.line.committed if e.source_step is None else e.source_step
            self.shards.judge(source_step, e.generation)
            self.shards.begin(source_step)

    # -- samples and steps

    def _leased(self, e: records.Leased) -> None:
        assert self.members.open and e.generation == self.members.generation, (e, self.members.generation)
        assert isinstance(self.shards, Shards), "nothing is leased where steps have a fixed size"
        self.shards.lease(e)

    def _returned(self, e: records.Returned) -> None:
        assert isinstance(self.shards, Shards), "nothing is leased where steps have a fixed size"
        self.shards.take_back(e)

    def _dealt(self, e: records.Dealt) -> None:
        assert isinstance(self.shards, DealtShards), "nothing is dealt ahead in this job"
        assert all(name in self.members.attached for name in e.incarnations), e
        self.shards.deal(e)

    def _moved(self, e: records.Moved) -> None:
        assert isinstance(self.shards, DealtShards), "nothing is dealt ahead in this job"
        assert e.target in self.members.attached, e
        self.shards.move(e)

    def _of_topic(self) -> Shards:
        assert isinstance(self.shards, Shards) and self.spec.order == TOPIC, "this is said of topics"
        return self.shards

    def _excluded(self, e: records.Excluded) -> None:
        assert isinstance(self.shards, Batches), "what is leased goes into quarantine with its lease"
        assert e.generation == self.members.generation + 1 and not self.members.open, (e, self.members.generation)
        self.shards.exclude(e)

    def _lifted(self, e: records.Lifted) -> None:
        assert isinstance(self.shards, Batches) and not self.members.open, (e, self.members.generation)
        self.shards.lift(e)

    def _resized(self, e: records.Resized) -> None:
        assert isinstance(self.shards, Batches), "what is leased has no batches of a fixed size"
        assert e.generation == self.members.generation + 1 and not self.members.open, (e, self.members.generation)
        assert e.batch_size > 0 and e.stated > 0, e
        self.shards.resize(e)

    def _stopped(self, e: records.Stopped) -> None:
        assert self.stop is None and e.step >= max(1, self.line.committed), (e, self.line.committed)
        self.stop = e
        self.dirty.others.add(("stop", 0))

    def _readmitted(self, e: records.Readmitted) -> None:
        self.shards.readmit(e)
        self.done = None  # there is something to do again

    def _blamed(self, e: records.Blamed) -> None:
        self.shards.blame(e, deadly=self.members.incarnations[e.incarnation].gone)

    @property
    def tells_each(self) -> bool:
        return True

    def _committed(self, e: records.Committed) -> None:
        assert e.lineage or not self.tells_each, e
        assert self.members.open and e.generation == self.members.generation, (e, self.members.generation)
        assert self.stop is None or e.step <= self.stop.step, (e, self.stop)
        self.shards.commit(e.ranges)
        self.line.commit(e)

    def _checkpointed(self, e: records.Checkpointed) -> None:
        self.line.checkpoint(e, self._inside)

    def _inside(self, step: int) -> Inside:
        if isinstance(self.shards, Batches):
            return self.shards.reached(self.line.ranges_of(step)) if step else ()
        return self.line.inside(step, {number: epoch.committed for number, epoch in self.shards.epochs.items()})

    def _rolled_back(self, e: records.RolledBack) -> None:
        assert not self.members.open, e
        self.members.void_models()
        if e.author:
            self.authors = (*self.authors, e.author)[-AUTHORS_KEPT:]
        self.shards.undo_all_but(dict(self.line.roll_back(e.step).committed))
        if isinstance(self.shards, Batches):
            self.shards.made = e.step

    # -- the job

    def _done(self, e: records.Done) -> None:
        assert self.finished and self.done is None, e
        self.done = e.file

    def _refused(self, e: records.Refused) -> None:
        self.refused += 1

    def _digested(self, e: records.Digested) -> None:
        """Compared by the fold, before anything of the entry is applied."""

    def _regressed(self, e: records.Regressed) -> None:
        """Nobody is known any more, and no number that the lost entries may have given away is given again."""
        known = self.members.incarnations
        for name in sorted(known):  # losses have an order, and rows know no other one
            if not known[name].gone:
                self._gone(name, "left")  # not "lost": no sample is to blame
        self.members.disband(e.generation)
        self.accepted = (*self.accepted, (e.run_id, e.next_offset))
        if isinstance(self.shards, Shards):
            self.shards.next_lease = max(self.shards.next_lease, e.next_lease)

    def _requests_moved(self, e: records.RequestsMoved) -> None:
        """The only thing that lets the position go back."""
        self.requests_topic, self.requests_next = e.topic_id, e.next
        self.dirty.others.add(("requests", 0))


State.how = {
    records.Joined: lambda s, e: s.members.join(e),
    records.Lost: State._lost,
    records.Left: State._left,
    records.Closed: lambda s, e: s.members.close(e),
    records.Ready: lambda s, e: s.members.ready(e),
    records.Granted: State._granted,
    records.RolledBack: State._rolled_back,
    records.Leased: State._leased,
    records.Committed: State._committed,
    records.StepSkipped: lambda s, e: s.line.skip(e),
    records.Settled: lambda s, e: s.members.settle(e),
    records.Fenced: lambda s, e: s.members.fence(e),
    records.Returned: State._returned,
    records.Readmitted: State._readmitted,
    records.Checkpointed: State._checkpointed,
    records.Done: State._done,
    records.Refused: State._refused,
    records.Digested: State._digested,
    records.Regressed: State._regressed,
    records.RequestsMoved: State._requests_moved,
    records.Blamed: State._blamed,
    records.Excluded: State._excluded,
    records.Lifted: State._lifted,
    records.Resized: State._resized,
    records.Stopped: State._stopped,
    records.Vacant: lambda s, e: s._of_topic().vacant(e),
    records.SetAside: lambda s, e: s._of_topic().set_aside(e),
    records.Extended: lambda s, e: s._of_topic().extend(e),
    records.Dealt: State._dealt,
    records.Moved: State._moved,
}
