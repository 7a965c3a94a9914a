"""Follows the topics of a job while they are written, and keeps projections of them up to date."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from antdt_schemas.connection import Connection
from antdt_schemas.topics import SHARD_LOG, Topic

from antdt_streams.kafka.reader import TopicReader
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.views.projection import Feed, Projection

POLL_S = 0.02  # for all topics together
EVERYTHING = 1 << 40


class Follow(threading.Thread):
    """Reads topics from their starts until told to stop. A broker that is away is waited for.

    Read the projections under `changed`. `failure` is what ended the thread, for whoever waits for it to raise.
    `current` is set once all is read that was there at the beginning. fold: a state of the log, which is read from
    there on. lasts: by suffix of a topic, of how many records of each partition it begins that were there before.
    """

    def __init__(
        self,
        connection: Connection,
        job: str,
        topics: Sequence[Topic],
        *projections: Projection[Any],
        fold: Fold | None = None,
        lasts: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(name=f"follow-{job}", daemon=True)
        self.connection, self.job, self.topics = connection, job, topics
        self.changed = threading.Condition()
        self.failure: BaseException | None = None
        self.current = threading.Event()
        self._feed, self._from = Feed(*projections, fold=fold), 0 if fold is None else fold.position.next_offset
        self._lasts = lasts or {}
        self._halt = threading.Event()

    def run(self) -> None:
        try:
            with ExitStack() as opened:
                readers = [(t, opened.enter_context(TopicReader(self.connection, self.job, t))) for t in self.topics]
                for topic, reader in readers:
                    behind = reader.ends()[0] - self._from if topic is SHARD_LOG else EVERYTHING
                    reader.follow(self._lasts.get(topic.suffix, behind))
                while not self._halt.is_set():
                    for topic, reader in readers:
                        if raws := reader.poll(POLL_S / len(readers)):
                            with self.changed:
                                self._feed.take(topic, raws)
                                self.changed.notify_all()
                    if not self.current.is_set() and not any(reader.is_behind() for _, reader in readers):
                        self.current.set()
        except BaseException as error:  # noqa: BLE001  whoever waits for this raises it
            self.failure = error

    def stop(self) -> None:
        self._halt.set()
        if self.is_alive():
            self.join(5)
