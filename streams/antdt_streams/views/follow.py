"""Follows the topics of a job while they are written, and keeps projections of them up to date."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from time import monotonic, thread_time
from typing import Any

from antdt_schemas.connection import Connection
from antdt_schemas.topics import SHARD_LOG, Topic

from antdt_streams.kafka.reader import Raw, TopicReader
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.views.projection import Feed, Projection

POLL_S = 0.02  # for all topics together
LEAP_EVERY_S = 1.0
RECORD_BYTES, FETCH_BYTES_MIN = 400, 16 << 10  # of a record of `steps`, about
EVERYTHING = 1 << 40


@dataclass(frozen=True, slots=True)
class Pacing:
    """How much is read of a topic of which the newest records will do: at most so many a second, and at most this share
    of a processor. What is more is passed over, unread, and counted.
    """

    records_a_s: int
    share: float

    @property
    def settings(self) -> dict[str, int]:
        """Of a client that must not fetch ahead what will be passed over."""
        ahead = {"queued_min_messages": self.records_a_s}
        return ahead | {"max_partition_fetch_bytes": max(FETCH_BYTES_MIN, self.records_a_s * RECORD_BYTES)}


class Source:
    """One topic that is followed; paced once all is read that was there at the beginning."""

    def __init__(self, topic: Topic, reader: TopicReader, pacing: Pacing | None) -> None:
        self.topic, self.reader, self.pacing = topic, reader, pacing
        self.read = self.skipped = 0
        self._due = self._leaps_at = 0.0

    def poll(self, wait_s: float, *, current: bool) -> list[Raw]:
        """What is there, or is wanted of it."""
        if self.pacing is None or not current:
            return self.reader.poll(wait_s)
        now = monotonic()
        if now < self._due:
            return []
        if now >= self._leaps_at:  # not at every look: what was fetched for the last one may still be on its way
            self._leaps_at = now + LEAP_EVERY_S
            self.skipped += self.reader.leap(self.pacing.records_a_s)
        return self.reader.poll(wait_s, self.pacing.records_a_s)

    def took(self, raws: Sequence[Raw], cost_s: float) -> None:
        """These were taken in, which cost so much of the processor."""
        self.read += len(raws)
        if self.pacing is not None:
            rest_s = max(len(raws) / self.pacing.records_a_s, cost_s / self.pacing.share)
            self._due = monotonic() + rest_s


class Follow(threading.Thread):
    """Reads topics from their starts until told to stop. A broker that is away is waited for.

    Read the projections under `changed`. `failure` is what ended the thread, for whoever waits for it to raise.
    `current` is set once all is read that was there at the beginning. fold: a state of the log, which is read from
    there on. lasts: by suffix of a topic, of how many records of each partition it begins that were there before.
    pacing: of some topics, by suffix. poll_s: of all topics together.
    """

    def __init__(
        self,
        connection: Connection,
        job: str,
        topics: Sequence[Topic],
        *projections: Projection[Any],
        fold: Fold | None = None,
        lasts: Mapping[str, int] | None = None,
        pacing: Mapping[str, Pacing] | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        super().__init__(name=f"follow-{job}", daemon=True)
        self.connection, self.job, self.topics = connection, job, topics
        self.changed = threading.Condition()
        self.changes = 0  # how often something was taken in
        self.failure: BaseException | None = None
        self.current = threading.Event()
        self.sources: list[Source] = []
        self._feed, self._from = Feed(*projections, fold=fold), 0 if fold is None else fold.position.next_offset
        self._lasts, self._pacing, self._poll_s = lasts or {}, pacing or {}, poll_s
        self._halt = threading.Event()

    def run(self) -> None:
        try:
            with ExitStack() as opened:
                self.sources = [self._open(opened, topic) for topic in self.topics]
                while not self._halt.is_set():
                    for source in self.sources:
                        self._look(source)
                    if not self.current.is_set() and not any(source.reader.is_behind() for source in self.sources):
                        self.current.set()
        except BaseException as error:  # noqa: BLE001  whoever waits for this raises it
            self.failure = error

    def _open(self, opened: ExitStack, topic: Topic) -> Source:
        pacing = self._pacing.get(topic.suffix)
        over = {} if pacing is None else pacing.settings
        if self._poll_s > POLL_S:  # whoever is not in a hurry asks seldom, instead of for each record
            over |= {"fetch_wait_max_ms": int(1000 * self._poll_s), "fetch_min_bytes": FETCH_BYTES_MIN}
        reader = opened.enter_context(TopicReader(self.connection, self.job, topic, **over))
        behind = reader.ends()[0] - self._from if topic is SHARD_LOG else EVERYTHING
        reader.follow(self._lasts.get(topic.suffix, behind))
        return Source(topic, reader, pacing)

    def _look(self, source: Source) -> None:
        wait_s = (self._poll_s if self.current.is_set() else POLL_S) / len(self.sources)
        raws = source.poll(wait_s, current=self.current.is_set())
        if not raws:
            return
        began = thread_time()
        with self.changed:
            self._feed.take(source.topic, raws)
            self.changes += 1
            self.changed.notify_all()
        source.took(raws, thread_time() - began)

    def stop(self) -> None:
        self._halt.set()
        if self.is_alive():
            self.join(5)
