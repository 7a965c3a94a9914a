"""A Kafka topic as a data set: what a script says of it, and the samples that were read of it.

Owns decoding, what is kept of what was read, and what is said of positions without a sample. Must not know a Kafka
client (`Broker` is asked), nor who takes which positions (`session.reading`).
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from os import PathLike
from typing import Any

from antdt_schemas.errors import UsageError
from antdt_schemas.ranges import Range
from antdt_schemas.space import TOPIC, Space, record_name, striped

from antdt.data.pinning import Pinning
from antdt.data.records import Broker, Record
from antdt.data.streams import IterableSource
from antdt.worker.session.reading import Chunk, Faulty, Found

log = logging.getLogger("antdt")

RECORDS_MAX = 1024  # at a time
VACANT_MAX, FAULTY_MAX = 512, 8  # at a time: what is said of them goes into one request
FAULTS_IN_A_ROW = 16  # from the first record on: then it is the decoder that is wrong
RECORD_OVERHEAD = 256  # bytes of Python's own, of what is kept of a record, about
REASON_CHARS_MAX = 200


Decode = Callable[[Record], Any]


@dataclass(frozen=True)
class Topic:
    """A Kafka topic to train on: `Agent(model, optimizer, Topic("clicks", decode=of_json), batch_size=256)`.

    decode: makes a sample of a Record (value, key, headers, timestamp_ms, partition, offset); None where it is none, as
    of a tombstone. What it raises puts that record into quarantine, with partition and offset, and training goes on. It
    runs in a thread of its own, ahead of training: it must draw no random numbers.
    bounded: trained on is what the topic holds when the job begins, up to the last stable offsets, in each epoch. Or it
    grows, bounded=False: what comes later is trained on, too, until `antdt end JOB` (one epoch).
    properties: client properties, or the path of a `client.properties`, where its broker is not that of the job.
    cache_mb: bytes of records that a worker keeps ahead of training.

    Records are those of committed transactions. An offset without a record, as compaction and transactions leave them,
    is a position of the account with nothing in it. Positions are read in order: partitions take turns, and each worker
    reads what it leases. Where retention removes records before they were read the job ends with an error that names
    them. All workers read the topic by itself; none commits offsets to the broker, the ledger has them.
    """

    name: str
    decode: Decode
    bounded: bool = True
    properties: Mapping[str, str] | str | PathLike[str] | None = None
    cache_mb: int = 64
    broker: Broker | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.decode):
            raise UsageError("Topic(decode=…) is a function that makes a sample of an antdt.Record.")
        if self.cache_mb < 1:
            raise UsageError(f"Topic(cache_mb={self.cache_mb}): it needs 1 at least.")


@dataclass(slots=True)
class _Kept:
    """Samples of a chunk, at these positions."""

    start: int
    positions: list[int]
    samples: list[Any]
    size: int
    used: int = 0


class TopicSource(IterableSource):
    """Samples of a topic that were read: positions are only taken once they are here.

    blocks: where the positions are in the topic, as this worker found it; those of the job's first worker hold.
    """

    order = TOPIC
    has_names = True

    def __init__(self, topic: Topic, collate: Callable[[list[Any]], Any] | None, pinning: Pinning | None) -> None:
        assert topic.broker is not None, "the Agent says how it is reached"
        self.topic, self.broker = topic, topic.broker
        bounds = self.broker.bounds()
        begun = [number for partition, (begin, _) in sorted(bounds.items()) for number in (partition, begin, begin)]
        space = Space(striped(bounds))
        if topic.bounded and not space.length:
            raise UsageError(
                f"The topic {topic.name} has no records: write some, or say bounded=False and wait for them."
            )
        # Where each partition begins is said as well: one that is empty may grow.
        self.blocks = space.flat if topic.bounded else (*begun, *space.flat)
        self.digest = blake2b(f"{TOPIC}/{topic.name}/".encode() + self.broker.identity(), digest_size=16).digest()
        super().__init__(topic, space.length, collate, pinning)
        self._lock, self._kept, self.size_kept = threading.Lock(), dict[int, list[_Kept]](), 0
        self._names: dict[int, list[Chunk]] = {}
        self.has_decoded, self.faults = False, 0

    # -- the reader's thread

    @property
    def has_room(self) -> bool:
        """Whether more is to be kept."""
        return self.size_kept < self.topic.cache_mb << 20

    def read(self, chunk: Chunk) -> Found:
        """Fetch and decode a chunk, or its beginning, and keep what is there.

        Raises:
            UsageError: the decoder fails at whatever it gets.
        """
        got = self.broker.fetch(chunk.partition, chunk.offset, chunk.length)
        assert got.reached > chunk.offset, "somebody waited for nothing"
        shift, at = chunk.start - chunk.offset, chunk.start
        end = min(chunk.start + chunk.length, got.reached + shift)
        kept, vacant, faulty = _Kept(chunk.start, [], [], 0), list[tuple[int, int]](), list[Faulty]()
        for record in got.records:
            position = record.offset + shift
            if max(len(vacant) / VACANT_MAX, len(faulty) / FAULTY_MAX, len(kept.samples) / RECORDS_MAX) >= 1:
                end = position
                break
            if position > at:
                vacant.append((at, position - at))
            at = position + 1
            try:
                sample = self.topic.decode(record)
            except Exception as error:  # noqa: BLE001  whatever the script's function raises
                faulty.append(self._fault(record, position, error))
                continue
            self.has_decoded = True
            if sample is None:
                vacant.append((position, 1))
                continue
            kept.positions.append(position)
            kept.samples.append(sample)
            kept.size += RECORD_OVERHEAD + len(record.value or b"") + len(record.key or b"")
        if at < end:
            vacant.append((at, end - at))
        with self._lock:
            self._kept.setdefault(chunk.lease, []).append(kept)
            self._names.setdefault(chunk.lease, []).append(chunk)
            self.size_kept += kept.size
        return Found(end, vacant, faulty)

    def _fault(self, record: Record, position: int, error: Exception) -> Faulty:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:REASON_CHARS_MAX]
        self.faults += 1
        if not self.has_decoded and self.faults >= FAULTS_IN_A_ROW:
            raise UsageError(
                f"The decoder fails at each of the first {self.faults} records, at {record.name} with {reason}: is it "
                "of this topic? What was put into quarantine for it can be tried again: `antdt readmit JOB`."
            ) from error
        log.warning("%s cannot be decoded, and is put into quarantine: %s", record.name, reason)
        return Faulty(position, record.name, reason)

    def keep(self, leases: set[int]) -> None:
        """Forget what belongs to others: they are over, or void."""
        with self._lock:
            for lease in [lease for lease in self._kept if lease not in leases]:
                self.size_kept -= sum(kept.size for kept in self._kept.pop(lease))
                del self._names[lease]

    # -- the training thread

    def fetch(self, ranges: Sequence[Range]) -> Any:
        """The collated batch of these ranges, all of which were read."""
        with self._lock:
            return self.collate([sample for r in ranges for sample in self._take(r)])

    def peek(self, ranges: Sequence[Range]) -> Any:
        """A batch of what was read of these positions, whichever leases they are in; it stays here."""
        with self._lock:
            whole = [kept for kepts in self._kept.values() for kept in kepts]
            samples = [
                sample for r in ranges for kept in whole for sample in kept.samples[slice(*self._inside(kept, r))]
            ]
        return self.collate(samples)

    def _take(self, taken: Range) -> list[Any]:
        out, whole = list[Any](), self._kept.get(taken.lease, [])
        for kept in list(whole):
            first, last = self._inside(kept, taken)
            out += kept.samples[first:last]
            kept.used += last - first
            if kept.used == len(kept.samples) and kept.start < taken.start + taken.length:
                whole.remove(kept)
                self.size_kept -= kept.size
        return out

    def count(self, ranges: Sequence[Range]) -> int:
        """How many samples are there."""
        with self._lock:
            places = (self._inside(kept, r) for r in ranges for kept in self._kept.get(r.lease, []))
            return sum(last - first for first, last in places)

    def split(self, ranges: Sequence[Range], parts: int) -> list[list[Range]]:
        """Cut ranges into `parts` pieces of nearly equal numbers of samples, in order; never one without any."""
        places, begin = list[int](), 0  # of all samples, counted along the ranges
        with self._lock:
            for r in ranges:
                for kept in self._kept.get(r.lease, []):
                    first, last = self._inside(kept, r)
                    places += (begin + position - r.start for position in kept.positions[first:last])
                begin += r.length
        parts = min(parts, len(places))
        borders = [0, *(places[len(places) * part // parts] for part in range(1, parts)), begin]
        return [_slice(ranges, low, high) for low, high in pairwise(borders)]

    @staticmethod
    def _inside(kept: _Kept, r: Range) -> tuple[int, int]:
        return bisect_left(kept.positions, r.start), bisect_left(kept.positions, r.start + r.length)

    def name_of(self, epoch: int, position: int) -> str:
        """What the record at a position is called, while its lease is here."""
        with self._lock:
            chunks = [chunk for chunks in self._names.values() for chunk in chunks]
        for chunk in chunks:
            if chunk.epoch == epoch and chunk.start <= position < chunk.start + chunk.length:
                return record_name(self.topic.name, chunk.partition, chunk.offset + position - chunk.start)
        return ""


def _slice(ranges: Sequence[Range], low: int, high: int) -> list[Range]:
    """[low, high) of all positions, counted along the ranges."""
    out, begin = list[Range](), 0
    for r in ranges:
        first, last = max(low, begin), min(high, begin + r.length)
        if first < last:
            out.append(r._replace(start=r.start + first - begin, length=last - first))
        begin += r.length
    return out
