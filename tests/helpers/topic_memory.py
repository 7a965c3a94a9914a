"""A topic in memory: what a broker has of it, and what it answers to whoever reads."""

from __future__ import annotations

from antdt.connect.topics import RecordsLost
from antdt.data.records import Fetched, Record


class MemoryTopic:
    """Implements `Broker`. records: by partition and offset; what is not in them was compacted, or is a marker.

    most: records that one question is answered with. asked: every question, as (partition, offset, length).
    """

    def __init__(self, records: dict[int, dict[int, bytes]], ends: dict[int, int], *, most: int = 1000) -> None:
        self.records, self.ends, self.most = records, ends, most
        self.begins = dict.fromkeys(ends, 0)
        self.asked: list[tuple[int, int, int]] = []
        self.closed = False

    def bounds(self) -> dict[int, tuple[int, int]]:
        return {partition: (self.begins[partition], end) for partition, end in self.ends.items()}

    def identity(self) -> bytes:
        return b"memory"

    def fetch(self, partition: int, offset: int, length: int) -> Fetched:
        self.asked.append((partition, offset, length))
        if offset < self.begins[partition]:
            raise RecordsLost(f"Retention has removed memory/{partition}@{offset}.")
        there = self.records[partition]
        found = [Record("memory", partition, at, None, None, there[at]) for at in sorted(there) if at >= offset]
        some = [record for record in found if record.offset < offset + length][: self.most]
        behind = next((record.offset for record in found if not some or record.offset > some[-1].offset), None)
        return Fetched(some, behind if behind is not None else self.ends[partition])

    def close(self) -> None:
        self.closed = True


def full(partitions: int, records: int) -> MemoryTopic:
    """Each offset has its own number as its value."""
    there = {p: {at: str(p * records + at).encode() for at in range(records)} for p in range(partitions)}
    return MemoryTopic(there, dict.fromkeys(range(partitions), records))
