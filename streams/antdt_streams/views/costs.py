"""What a job's topics cost: bytes of a day at the pace of their newest records, and what bounds what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

from antdt_schemas.connection import Connection
from antdt_schemas.errors import UnknownJob
from antdt_schemas.topics import DAY_MS, TOPICS, Topic

from antdt_streams.kafka.reader import Raw, TopicReader

LAST = 200
READ_S = 2.0
# A batch has a header of 61 bytes, a record about ten more; those that are sent at once are batches of one.
OVERHEAD_BYTES = 71


@dataclass(frozen=True, slots=True)
class Cost:
    """records: those that are there. bytes_a_day: None where fewer than two records tell no pace."""

    records: int
    bytes_a_day: int | None
    kept_ms: int | None
    kept_bytes: int | None

    def __str__(self) -> str:
        pace = "" if self.bytes_a_day is None else f", {size(self.bytes_a_day)} a day at their pace"
        kept = "for ever" if self.kept_ms is None else f"for {self.kept_ms / DAY_MS:g} days"
        most = "" if self.kept_bytes is None else f", at most {size(self.kept_bytes)}"
        return f"{self.records:,} records{pace}, kept {kept}{most}"


def read_costs(connection: Connection, job: str) -> dict[str, Cost]:
    """Suffix of a topic -> its Cost, without those that are missing."""
    found = {}
    for topic in TOPICS:
        with suppress(UnknownJob):
            found[topic.suffix] = _read(connection, job, topic)
    return found


def _read(connection: Connection, job: str, topic: Topic) -> Cost:
    newest: list[Raw] = []
    with TopicReader(connection, job, topic) as reader:
        reader.follow(None)
        held = sum(reader.ends()) - sum(reader.positions())
        reader.follow(LAST)
        until = monotonic() + READ_S
        while reader.is_behind() and monotonic() < until:
            newest += reader.poll(0.1)
    return cost(topic, held, newest)


def cost(topic: Topic, held: int, newest: Sequence[Raw]) -> Cost:
    """From the newest records of all partitions together."""
    settings = topic.settings()
    kept_ms, kept_bytes = int(settings["retention.ms"]), int(settings["retention.bytes"])
    a_day = None
    if len(newest) > 1:
        took_ms = max(raw.time_ms for raw in newest) - min(raw.time_ms for raw in newest)
        taken = sum(len(raw.key or b"") + len(raw.value) + OVERHEAD_BYTES for raw in newest)
        a_day = int(taken * DAY_MS / took_ms) if took_ms else None
    most = kept_bytes * topic.partitions if kept_bytes >= 0 else None
    return Cost(held, a_day, kept_ms if kept_ms >= 0 else None, most)


def size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
