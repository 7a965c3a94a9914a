"""The partitions that one instance owns now, each with its state: loaded when they come, left behind when they go.

What is loaded is never wrong, at most old: processing is deterministic and readers drop repeats. So nothing here
depends on being told in time that somebody else has a partition; an instance that is not told repeats, and that is all.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from antdt_schemas.errors import ForeignState, LogTruncated, Unavailable

from antdt_streams.runtime.runner import Counters, Runner
from antdt_streams.runtime.service import Batch, Bounds, Observer, Service, Sink, Store
from antdt_streams.storage.rows import Identity
from antdt_streams.storage.snapshots import SnapshotFound

SNAPSHOT_EVERY_RECORDS = 10_000
FAREWELL_TIMEOUT_S = 1.5

log = logging.getLogger("antdt.partitions")


@dataclass(frozen=True, slots=True)
class Policy:
    """accept_loss: where retention has removed records that were not processed, go on behind them and write that down.
    snapshot_every_records: a partition whose folder is gone is rebuilt from at most that many and what has come since.
    """

    accept_loss: bool = False
    snapshot_every_records: int = SNAPSHOT_EVERY_RECORDS


class Shelf(Protocol):
    """Where the snapshots of a service lie."""

    def newest(self, partition: int) -> SnapshotFound | None:
        """The newest whole one; `write` leaves it alone from now on."""

    def write(
        self, partition: int, topic_id: str, next_offset: int, rows: Mapping[bytes, bytes], timeout_s: float | None
    ) -> None:
        """Write one, or raise Unavailable."""


@dataclass(slots=True)
class _Owned:
    assignment: int
    runner: Runner
    snapped: int


class Partitions:
    """The owner of a source's partitions; `take` and the rest may be called from two threads."""

    def __init__(
        self,
        service: Service,
        identity: Identity,
        store: Store,
        sink: Sink,
        shelf: Shelf,
        policy: Policy,
        observer: Observer | None = None,
    ) -> None:
        self._shelf, self._policy = shelf, policy
        self.service, self.identity, self.store, self.sink = service, identity, store, sink
        self._observer, self.rebuilds = observer, 0
        self._owned: dict[int, _Owned] = {}
        self._failed = False
        self._lock = threading.Lock()

    def begin(self, partition: int, assignment: int, bounds: Bounds) -> int:
        """Load a partition: the newest of rows, snapshot and zero. The offset to go on from.

        Raises:
            ForeignState: rows or snapshot are of another job, service or topic.
            LogTruncated: the topic does not have what comes next.
            Unavailable: the snapshots cannot be read, or what was written before a state is rebuilt.
        """
        with self._lock:
            runner = Runner(self.service, self.identity, self.store, self.sink, partition, self._observer)
            found = self._shelf.newest(partition)
            origin = "rows" if runner.next_offset else "zero"
            if found is not None and self._adopted(runner, found):
                origin = "snapshot"
            if runner.outdated is not None:
                log.warning("event=rebuilding partition=%d reason=%r", partition, runner.outdated.reason)
                runner.rebuild()
                self.rebuilds += 1
            self._check_position(runner, bounds)
            snapped = found.next_offset if found is not None else 0
            self._owned[partition] = _Owned(assignment, runner, snapped)
        log.info("event=assigned partition=%d next_offset=%d from=%s", partition, runner.next_offset, origin)
        return runner.next_offset

    def _adopted(self, runner: Runner, found: SnapshotFound) -> bool:
        if found.topic_id != self.identity.topic_id:
            hint = "The topic was created again: its readers remember the old one. Take another name for the job."
            raise ForeignState(
                f"The topic_id of the snapshot of {runner.topic}", self.identity.topic_id, found.topic_id, hint
            )
        return found.next_offset > runner.next_offset and runner.adopt(found.rows)

    def _check_position(self, runner: Runner, bounds: Bounds) -> None:
        """Stop where the topic no longer has what comes next, or not yet: it would be skipped, or stall in silence."""
        processed = max(runner.next_offset, runner.rebuilt_below)
        if processed > bounds.high:
            hint = "The broker has lost records, or the topic was created again."
            least = f"at least {processed}, which was processed already"
            raise LogTruncated(f"The end of {runner.topic}", least, bounds.high, hint)
        if runner.next_offset < bounds.low:
            lost = f"Records {runner.next_offset} to {bounds.low - 1} of {runner.topic} were removed by retention"
            if bounds.low <= processed:
                reason = f"{lost}; another version had processed them, and its state is rebuilt without them."
                runner.skip_to(bounds.low, reason)
                log.warning("event=rebuilding partition=%d reason=%r", runner.partition, reason)
                return
            if not self._policy.accept_loss:
                hint = "Start once with --accept-loss to go on behind them; that is written into dead-letters."
                what = f"{lost}, and were not processed: the next offset"
                raise LogTruncated(what, runner.next_offset, bounds.low, hint)
            runner.skip_to(bounds.low, f"{lost}. The operator went on without them.")
            log.warning("event=loss-accepted reason=%r", lost)

    def take(self, batch: Batch) -> None:
        """Process a batch, unless it was read for an assignment that is over: whoever owns it now reads it, too."""
        with self._lock:
            owned = self._owned.get(batch.partition)
            if owned is None or owned.assignment != batch.assignment:
                return
            try:
                owned.runner.take(batch)
            except BaseException:
                self._failed = True
                raise
            if owned.runner.committed - owned.snapped >= self._policy.snapshot_every_records:
                self._snapshot(owned)

    def end(self, partitions: Iterable[int], *, lost: bool) -> None:
        """Let partitions go, behind a last snapshot for whoever takes them over; if they are lost, they have begun."""
        with self._lock:
            for partition in partitions:
                owned = self._owned.pop(partition, None)
                if owned is None:
                    continue
                if not lost and not self._failed:
                    self._snapshot(owned, FAREWELL_TIMEOUT_S)
                _tell(owned.runner, lost)

    def positions(self) -> Mapping[int, int]:
        return {partition: owned.runner.committed for partition, owned in list(self._owned.items())}

    def counted(self) -> dict[int, tuple[int, Counters]]:
        """Next offset of each partition, committed, and what was done there. Whoever works is not waited for."""
        return {
            partition: (owned.runner.committed, owned.runner.counters) for partition, owned in list(self._owned.items())
        }

    def _snapshot(self, owned: _Owned, timeout_s: float | None = None) -> None:
        at = owned.runner.committed
        if at <= owned.snapped:
            return
        owned.snapped = at  # also if it fails: the next one is due when as many records have come again
        try:
            self._shelf.write(owned.runner.partition, self.identity.topic_id, at, owned.runner.rows(), timeout_s)
        except Unavailable as error:
            log.warning("event=no-snapshot next_offset=%d reason=%r", at, str(error))


def _tell(runner: Runner, lost: bool) -> None:
    c = runner.counters
    counts = c.records, c.outputs, c.dead_letters, c.repeats
    form = "event=%s partition=%d next_offset=%d records=%d outputs=%d dead_letters=%d repeats=%d"
    log.info(form, "lost" if lost else "released", runner.partition, runner.committed, *counts)
