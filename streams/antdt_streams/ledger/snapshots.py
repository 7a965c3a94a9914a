"""Snapshots of the ledger's state: what a ledger without a folder starts from. Written beside the cycles."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor

from antdt_schemas.connection import Connection
from antdt_schemas.errors import Unavailable
from antdt_schemas.topics import RECORD_BYTES_MAX

from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.stored import Identity, whole
from antdt_streams.storage.snapshots import SnapshotFound, SnapshotWriter, newest

SERVICE = "ledger"

log = logging.getLogger("antdt.ledger")


class LedgerSnapshots:
    """Reads and writes them. A snapshot that cannot be written costs time at some later start, and nothing else."""

    def __init__(
        self,
        connection: Connection,
        identity: Identity,
        every_entries: int,
        every_events: int,
        record_bytes_max: int = RECORD_BYTES_MAX,
    ) -> None:
        self.connection, self.identity, self.record_bytes_max = connection, identity, record_bytes_max
        self.every_entries, self.every_events = every_entries, every_events
        self._writer: SnapshotWriter | None = None
        self._worker = ThreadPoolExecutor(1, "antdt-snapshot")
        self._running: Future[None] | None = None
        self._written_at: int | None = None
        self._written_events = 0

    def newest(self) -> SnapshotFound | None:
        """The newest one of this job, of whatever topic and position."""
        return newest(self.connection, self.identity.job, SERVICE)

    def offer(self, fold: Fold, leader_epoch: int | None) -> None:
        position = fold.position.next_offset
        if self._written_at is None:
            self._written_at = position - position % self.every_entries
        self._written_events = min(self._written_events, fold.events)  # less than before: a new fold
        due = position - self._written_at >= self.every_entries
        due = due or fold.events - self._written_events >= self.every_events
        if due and (self._running is None or self._running.done()):
            self._submit(fold, leader_epoch)

    def write(self, fold: Fold, leader_epoch: int | None) -> None:
        """Write one now, and wait for it: at the end of an office."""
        if fold.state is not None and fold.position.next_offset != self._written_at:
            self._submit(fold, leader_epoch)
        if self._running is not None:
            self._running.result()

    def _submit(self, fold: Fold, leader_epoch: int | None) -> None:
        # The rows are taken here, between two cycles; packing and sending them is the other thread's.
        stored, position = whole(fold, self.identity, leader_epoch), fold.position.next_offset
        self._written_at, self._written_events = position, fold.events
        self._running = self._worker.submit(self._write, stored, position)

    def _write(self, stored: dict[bytes, bytes], position: int) -> None:
        try:
            if self._writer is None:
                whose, most = (self.connection, self.identity.job, SERVICE, 0), self.record_bytes_max
                self._writer = SnapshotWriter(*whose, self.newest(), record_bytes_max=most)
            self._writer.write(self.identity.topic_id, position, stored)
        except Unavailable as error:
            log.warning("event=snapshot-not-written reason=%r", str(error))

    def close(self) -> None:
        self._worker.shutdown()
        if self._writer is not None:
            self._writer.close()
