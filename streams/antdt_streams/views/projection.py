"""Projections: what a job's topics come to, each for one purpose, all fed by one reader.

Owns what a projection is and who feeds it. What counts is said once, by the fold: a projection learns of a void entry
that it was there, and nothing of what it says.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from antdt_schemas.container import LogEntry
from antdt_schemas.topics import SHARD_LOG, Topic

from antdt_streams.kafka.reader import Raw, decoded
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.proof.walker import Entry, Observer, Read, Walker, chunks

V_co = TypeVar("V_co", covariant=True)


class Projection(Observer, Protocol[V_co]):
    """What some entries and records come to. One that needs only one of the two leaves the other as it is."""

    def on_entry(self, read: Read) -> None:
        """An entry of the shard log."""
        return

    def on_record(self, topic: Topic, record: Any, offset: int, time_ms: int = 0) -> None:
        """A record of another topic, decoded. time_ms: when the broker took it in."""
        return

    def view(self) -> V_co:
        """What came of it so far."""


class Feed:
    """One reader of the topics of a job that feeds many projections. fold: what was read before, if anything was."""

    def __init__(self, *projections: Projection[Any], fold: Fold | None = None) -> None:
        self._projections = projections
        self._walker = Walker(Fold(cached=False) if fold is None else fold, observers=projections)

    def entries(self, entries: Iterable[Entry]) -> None:
        """The next entries of the shard log.

        Raises:
            LogTampered, Mismatch: the log is not what it says it is.
        """
        for chunk in chunks(entries):
            self._walker.read(chunk)

    def take(self, topic: Topic, raws: Iterable[Raw]) -> None:
        """The next records of a topic. Errors are those of `entries`."""
        if topic is SHARD_LOG:
            self.entries(LogEntry(raw.offset, raw.time_ms, raw.value) for raw in raws)
            return
        kinds: tuple[type[Any], ...] = topic.kinds
        for raw, record in decoded(raws, *kinds):
            for projection in self._projections:
                projection.on_record(topic, record, raw.offset, raw.time_ms)
