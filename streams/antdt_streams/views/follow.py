"""Follows the topics of a job while they are written, and keeps projections of them up to date."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from antdt_schemas.connection import Connection
from antdt_schemas.topics import Topic

from antdt_streams.kafka.reader import TopicReader
from antdt_streams.views.projection import Feed, Projection

POLL_S = 0.02  # for all topics together
EVERYTHING = 1 << 40


class Follow(threading.Thread):
    """Reads topics from their starts until told to stop. A broker that is away is waited for.

    Read the projections under `changed`. `failure` is what ended the thread, for whoever waits for it to raise.
    """

    def __init__(
        self, connection: Connection, job: str, topics: Sequence[Topic], *projections: Projection[Any]
    ) -> None:
        super().__init__(name=f"follow-{job}", daemon=True)
        self.connection, self.job, self.topics = connection, job, topics
        self.changed = threading.Condition()
        self.failure: BaseException | None = None
        self._feed = Feed(*projections)
        self._halt = threading.Event()

    def run(self) -> None:
        try:
            with ExitStack() as opened:
                readers = [(t, opened.enter_context(TopicReader(self.connection, self.job, t))) for t in self.topics]
                for _, reader in readers:
                    reader.follow(EVERYTHING)
                while not self._halt.is_set():
                    for topic, reader in readers:
                        if raws := reader.poll(POLL_S / len(readers)):
                            with self.changed:
                                self._feed.take(topic, raws)
                                self.changed.notify_all()
        except BaseException as error:  # noqa: BLE001  whoever waits for this raises it
            self.failure = error

    def stop(self) -> None:
        self._halt.set()
        if self.is_alive():
            self.join(5)
