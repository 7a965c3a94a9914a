"""A job as it was: the same glance as of any entry of its log.

The state is rebuilt from the nearest point that is known: a waypoint that an earlier look has left, the ledger's newest
snapshot, or the first entry. What else there was to see, steps, measurements and decisions, is what the broker had
taken in when it took in that entry. Owns the waypoints, of which a bounded number is kept.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress

from antdt_schemas.connection import Connection
from antdt_schemas.errors import ForeignState, LogTampered, UsageError
from antdt_schemas.topics import DEAD_LETTERS, DECISIONS, SHARD_LOG, STEPS

from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.reader import TopicReader
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.snapshots import SERVICE
from antdt_streams.ledger.stored import Identity, fold_of
from antdt_streams.proof.replay import behind
from antdt_streams.proof.walker import Walker, chunks
from antdt_streams.proof.waypoints import Waypoint, stands
from antdt_streams.storage.snapshots import newest
from antdt_streams.views.glance import DECISIONS_KEPT, Glance
from antdt_streams.views.history import sampled
from antdt_streams.views.projection import Feed
from antdt_streams.views.top import LASTS, TOPICS

WAYPOINTS_MAX = 32
EVERY_ENTRIES = 4096  # between two waypoints at first; doubled when there are too many
DECISIONS_READ = 4 * DECISIONS_KEPT  # answers and effects lie among them


class Waypoints:
    """What was known at some entries of one log, in the order of their offsets; thinned out when there are too many."""

    def __init__(self, identity: Identity) -> None:
        self.identity, self.every = identity, EVERY_ENTRIES
        self._kept: list[Waypoint] = []

    def nearest(self, at: int) -> Fold | None:
        """A fold that has read as much as is known of what comes up to offset `at`."""
        index = bisect_right(self._kept, at + 1, key=lambda one: one.next_offset)
        return self._kept[index - 1].fold(self.identity) if index else None

    def offer(self, fold: Fold) -> None:
        """Keep one here if none is near."""
        here = fold.position.next_offset
        index = bisect_right(self._kept, here, key=lambda one: one.next_offset)
        if (index and here - self._kept[index - 1].next_offset < self.every) or not stands(fold):
            return
        if index < len(self._kept) and self._kept[index].next_offset - here < self.every:
            return
        self._kept.insert(index, Waypoint.of(fold, self.identity))
        if len(self._kept) > WAYPOINTS_MAX:
            self._kept, self.every = self._kept[::2], 2 * self.every

    def __len__(self) -> int:
        return len(self._kept)


class Past:
    """Earlier moments of one job. One look at a time."""

    def __init__(self, connection: Connection, job: str) -> None:
        """Raises UnknownJob."""
        self.connection, self.job = connection, job
        self.waypoints = Waypoints(Identity(job, topics_admin.topic_ids(connection, job)[SHARD_LOG.suffix]))

    def glance(self, at: int) -> Glance:
        """The job after the entry at this offset.

        Raises:
            UsageError: there is no such entry.
            LogTampered, Mismatch: the log is not what it says it is.
        """
        with TopicReader(self.connection, self.job, SHARD_LOG) as reader:
            (end,) = reader.ends()
            if not 0 <= at < end:
                raise UsageError(f"The log of job {self.job} has no entry at offset {at}: it has {end}, from 0 on.")
            fold = self.nearest(at)
            try:
                time_ms = self._read(reader, fold, at)
            except LogTampered:
                if not fold.trusted >= 0:
                    raise
                fold = Fold(cached=False)  # a snapshot of what the log has lost hides nothing
                time_ms = self._read(reader, fold, at)
        found = Glance(self.job, fold)
        found.newest.offset, found.newest.time_ms = at, time_ms
        feed = Feed(found.control, found.pace)
        for topic in TOPICS:
            if topic is not SHARD_LOG:
                with TopicReader(self.connection, self.job, topic) as other:
                    last = DECISIONS_READ if topic is DECISIONS else LASTS[topic.suffix]
                    feed.take(topic, other.before(time_ms, last))
        for some in sampled(self.connection, self.job, time_ms, LASTS[STEPS.suffix]):
            for record, offset, at_ms in some:
                found.pace.on_record(STEPS, record, offset, at_ms)
        return found

    def nearest(self, at: int) -> Fold:
        """What is known of the log up to this offset, in part."""
        known, found = self.waypoints.nearest(at), None
        if known is None:
            topic_id = self.waypoints.identity.topic_id
            found = newest(self.connection, self.job, SERVICE, topic_id=topic_id, at_most=at + 1)
        if found is not None:
            with suppress(ForeignState, LogTampered):  # of other rules: the log itself says all
                known, _ = fold_of(found.rows, self.waypoints.identity, "the newest snapshot")
        return known or Fold(cached=False)

    def _read(self, reader: TopicReader, fold: Fold, at: int) -> int:
        """Read on up to the entry at `at`, and leave waypoints on the way. The broker's time of that entry."""
        walker, start, time_ms = Walker(fold), fold.position.next_offset, 0

        def read() -> Iterator[tuple[int, bytes]]:
            nonlocal time_ms
            for raw in reader.to_end(max(0, start - 1)):
                if raw.offset > at:
                    return
                time_ms = raw.time_ms
                yield raw.offset, raw.value

        for chunk in chunks(behind(fold, read()) if start else read(), at):
            walker.read(chunk)
            self.waypoints.offer(fold)
        return time_ms

    def dead_letters(self, time_ms: int) -> int:
        """How many there were by then."""
        with TopicReader(self.connection, self.job, DEAD_LETTERS) as reader:
            return reader.count_by(time_ms)
