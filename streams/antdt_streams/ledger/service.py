"""The ledger beside a real broker: its `life` on Kafka, RocksDB and the clock of this machine."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from time import monotonic

from antdt_schemas import framing, records, topics
from antdt_schemas.connection import Connection
from antdt_schemas.exporting import Where, serving
from antdt_schemas.launch_locks import process_name

from antdt_streams.host.readiness import Readiness
from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.topics_watch import TopicsWatch
from antdt_streams.ledger.cache import Cache
from antdt_streams.ledger.figures import LedgerFigures
from antdt_streams.ledger.life import Life, through
from antdt_streams.ledger.log import Log
from antdt_streams.ledger.options import LedgerOptions
from antdt_streams.ledger.ports import Ports
from antdt_streams.ledger.replies import Replies
from antdt_streams.ledger.requests import Requests
from antdt_streams.ledger.snapshots import LedgerSnapshots
from antdt_streams.ledger.stored import Identity

WRITTEN = (topics.SHARD_LOG, topics.REPLIES, topics.DEAD_LETTERS)  # by one producer


class Ledger:
    """One ledger process of one job. Set `stopping` to end it. metrics: where they are served, if they are."""

    def __init__(self, connection: Connection, job: str, folder: Path, options: LedgerOptions | None = None) -> None:
        options = options or LedgerOptions()
        self.stopping, self.readiness, self.metrics = threading.Event(), Readiness(), Where()
        framing.begin()
        found = topics_admin.fit(connection, job)
        identity = Identity(job, found.ids[topics.SHARD_LOG.suffix])
        self.cache = Cache(folder, identity)
        self.log = Log(connection, job, options, found.record_bytes_max(*WRITTEN))
        every = options.snapshot_every, options.snapshot_events
        self.snapshots = LedgerSnapshots(connection, identity, *every, found.record_bytes_max(topics.SNAPSHOTS))
        self.requests, self.replies = Requests(connection, job), Replies(self.log, job)
        self.topics_watch = TopicsWatch(connection, job, options.identity_every_s, options.missing_s)
        ports = Ports(
            log=self.log,
            requests=self.requests,
            cache=self.cache,
            snapshots=self.snapshots,
            replies=self.replies,
            topic_ids=lambda: None if (found := self.topics_watch.look()) is None else found.ids,
            clock=monotonic,
            new_id=lambda: str(uuid.uuid4()),
            stopping=lambda: self.stopping.is_set(),  # noqa: PLW0108  these two may be set after this is made
            ready=lambda how: self.readiness.say(how),  # noqa: PLW0108
            owner=process_name(),
        )
        self.life = Life(job, identity.topic_id, ports, options)

    def run(self) -> None:
        """Lead, or stand by, until told to stop. Raises as `Life.run` does."""
        try:
            through(self.life.run()) if self.metrics.port is None else self._run_measured()
        finally:
            self.close()

    def _run_measured(self) -> None:
        measured = LedgerFigures(self.requests.known_end, lambda: self.replies.buried)
        with serving(self.metrics, self.life.job, "ledger", measured):
            for moment in self.life.run():
                measured.look(self.life, moment)

    def recover(self, reason: str) -> records.Regressed:
        """Accept that acknowledged entries are gone, and record it. Raises as `Life.recover` does."""
        try:
            return through(self.life.recover(reason))
        finally:
            self.close()

    def close(self) -> None:
        self.readiness.withdraw()
        self.snapshots.close()
        self.log.close()
        self.requests.close()
        self.cache.close()
