"""Snapshots: the state of a service at a position of its input, in a compacted topic, to start from.

Owns how rows are packed, cut into records and put together again. Only ever a short cut: the input is the truth, an
older snapshot costs time and nothing else, so the topic may hold anything: half of a snapshot whose writer died, parts
of two writers mixed, an old one that a writer which was suspended wrote late. Knows no service.

A snapshot is cut into parts, the keys of which are `service/partition/slot/part`. Its writer takes two slots in turn,
so that what it writes, whole or torn, leaves the last whole one alone, also where compaction has been.
"""

from __future__ import annotations

import logging
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from time import monotonic
from typing import Any

from antdt_schemas import codec
from antdt_schemas.connection import Connection
from antdt_schemas.delivering import flush
from antdt_schemas.errors import Unavailable, Undecodable
from antdt_schemas.polling import Place, whole
from antdt_schemas.records import Snapshot
from antdt_schemas.topics import RECORD_BYTES_MAX, SNAPSHOTS

SLOTS = 2
PART_BYTES = 512 << 10
PACKED_BYTES_MAX = 512 << 20
LENGTHS = struct.Struct(">II")
COMPRESSION = 1
WRITE_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
SLICE_S = 0.1

log = logging.getLogger("antdt.snapshots")


@dataclass(frozen=True, slots=True)
class SnapshotFound:
    """A whole snapshot. `slot` is where it lies: the next one goes into another."""

    topic_id: str
    next_offset: int
    rows: Mapping[bytes, bytes]
    slot: int


# -- rows to parts


def pack(rows: Mapping[bytes, bytes]) -> bytes:
    """Rows as one run of bytes, in the order of their keys: equal rows give equal bytes."""
    out: list[bytes] = []
    for key in sorted(rows):
        row = rows[key]
        out += (LENGTHS.pack(len(key), len(row)), key, row)
    return b"".join(out)


def unpack(packed: bytes) -> dict[bytes, bytes]:
    rows, at = {}, 0
    while at < len(packed):
        key_bytes, row_bytes = LENGTHS.unpack_from(packed, at)
        key_at = at + LENGTHS.size
        row_at = key_at + key_bytes
        at = row_at + row_bytes
        rows[packed[key_at:row_at]] = packed[row_at:at]
    return rows


def cut(
    service: str,
    topic_id: str,
    partition: int,
    next_offset: int,
    rows: Mapping[bytes, bytes],
    record_bytes_max: int = RECORD_BYTES_MAX,
) -> Iterator[Snapshot]:
    """The records of one snapshot, each well below what its topic takes."""
    packed = pack(rows)
    if len(packed) > PACKED_BYTES_MAX:
        raise Unavailable(f"The state of {service} has {len(packed)} bytes, too many for a snapshot.")
    digest = blake2b(packed, digest_size=16).digest()
    data = zlib.compress(packed, COMPRESSION)
    size = min(PART_BYTES, record_bytes_max // 2)
    parts = max(1, -(-len(data) // size))
    for part in range(parts):
        piece = data[part * size : (part + 1) * size]
        yield Snapshot(service, topic_id, partition, next_offset, part, parts, digest, piece)


def key_of(service: str, partition: int, slot: int, part: int) -> bytes:
    """The key of one part: compaction keeps the newest of each."""
    return f"{service}/{partition}/{slot}/{part}".encode()


# -- parts to rows


class Assembly:
    """Finds the newest whole snapshot of one service and partition among records in the order of their topic.

    Keeps the last record of each key, which is what compaction would keep, and the best whole snapshot so far: its
    memory is bounded by the size of the state, not by the length of the topic.
    """

    def __init__(self, service: str, partition: int, topic_id: str | None = None, at_most: int | None = None) -> None:
        self._key = re.compile(rb"%b/%d/(\d{1,9})/\d{1,9}" % (re.escape(service.encode()), partition))
        self._topic_id, self._at_most = topic_id, at_most
        self._slots: dict[int, dict[int, Snapshot]] = {}
        self._best: tuple[int, Snapshot, bytes] | None = None

    def concerns(self, key: bytes | None) -> bool:
        """Whether a record is of this service and partition; others need not be decoded."""
        return key is not None and self._key.fullmatch(key) is not None

    def add(self, key: bytes, snapshot: Snapshot) -> None:
        match = self._key.fullmatch(key)
        assert match is not None, key
        if not 0 <= snapshot.part < snapshot.parts:
            return  # no writer of ours wrote that
        slot = int(match[1])
        kept = self._slots.setdefault(slot, {})
        kept[snapshot.part] = snapshot
        if len(kept) < snapshot.parts:
            return
        same = [kept[n] for n in range(snapshot.parts) if n in kept and _identity(kept[n]) == _identity(snapshot)]
        if len(same) < snapshot.parts:
            return
        kept.clear()
        if self._wanted(snapshot):
            packed = _joined(same)
            if packed is None:
                log.warning("event=snapshot-damaged key=%s next_offset=%d", key.decode(), snapshot.next_offset)
            else:
                self._best = (slot, snapshot, packed)

    def _wanted(self, snapshot: Snapshot) -> bool:
        if self._topic_id not in (None, snapshot.topic_id):
            return False
        if self._at_most is not None and snapshot.next_offset > self._at_most:
            return False
        return self._best is None or snapshot.next_offset >= self._best[1].next_offset

    def found(self) -> SnapshotFound | None:
        if self._best is None:
            return None
        slot, snapshot, packed = self._best
        return SnapshotFound(snapshot.topic_id, snapshot.next_offset, unpack(packed), slot)


def _identity(snapshot: Snapshot) -> tuple[str, int, int, bytes]:
    return snapshot.topic_id, snapshot.next_offset, snapshot.parts, snapshot.digest


def _joined(parts: list[Snapshot]) -> bytes | None:
    """What was packed, or None if the bytes are not those that were."""
    try:
        packed = zlib.decompressobj().decompress(b"".join(part.rows for part in parts), PACKED_BYTES_MAX + 1)
    except zlib.error:
        return None
    return packed if blake2b(packed, digest_size=16).digest() == parts[0].digest else None


# -- the topic


def newest(
    connection: Connection,
    job: str,
    service: str,
    partition: int = 0,
    *,
    topic_id: str | None = None,
    at_most: int | None = None,
) -> SnapshotFound | None:
    """The whole snapshot with the highest position; None if there is none.

    topic_id: only one of this input topic; by default of any, for the caller to compare.
    at_most: only one that reflects no record from this offset on.

    Raises:
        Unavailable: the topic cannot be read to the end that it had when this began.
    """
    assembly = Assembly(service, partition, topic_id, at_most)
    for message in whole(connection, Place(SNAPSHOTS.name(job)), READ_TIMEOUT_S):
        key, value = message.key(), message.value()
        if not assembly.concerns(key) or value is None:
            continue
        try:
            assembly.add(key, codec.decode(value, Snapshot))
        except Undecodable as error:  # a short cut that this version cannot read is no reason to stop
            log.warning("event=snapshot-skipped key=%r reason=%r", key, str(error))
    return assembly.found()


class SnapshotWriter:
    """Writes the snapshots of one service and partition. One producer, made when it is first needed."""

    def __init__(
        self,
        connection: Connection,
        job: str,
        service: str,
        partition: int,
        last: SnapshotFound | None,
        timeout_s: float = WRITE_TIMEOUT_S,
        record_bytes_max: int = RECORD_BYTES_MAX,
    ) -> None:
        """`last` is what `newest` has found: it is never overwritten. A write takes at most `timeout_s`, a record
        at most `record_bytes_max`.
        """
        self._record_bytes_max = record_bytes_max
        self._connection, self._topic, self._timeout_s = connection, SNAPSHOTS.name(job), timeout_s
        self._service, self._partition = service, partition
        self._slot = 0 if last is None else (last.slot + 1) % SLOTS
        self._producer: Any = None
        self._failure = ""

    def write(
        self, topic_id: str, next_offset: int, rows: Mapping[bytes, bytes], timeout_s: float | None = None
    ) -> None:
        """Write one snapshot; returns when all of it is acknowledged. `timeout_s`: for this once.

        Raises:
            Unavailable: it was not acknowledged in time, or is too large. Nothing older was touched: call again later.
        """
        from confluent_kafka import KafkaException, Producer

        until_s, self._failure = monotonic() + (timeout_s or self._timeout_s), ""
        try:
            if self._producer is None:
                timeout_ms = int(self._timeout_s * 1000)
                self._producer = Producer(
                    self._connection.producer(self._record_bytes_max, message_timeout_ms=timeout_ms, linger_ms=0)
                )
            for part in cut(self._service, topic_id, self._partition, next_offset, rows, self._record_bytes_max):
                self._send(part, until_s)
            while flush(self._producer, SLICE_S):
                self._check(until_s)
        except KafkaException as error:
            raise self._unwritten(error.args[0].str()) from error
        self._check()
        self._slot = (self._slot + 1) % SLOTS

    def _send(self, part: Snapshot, until_s: float) -> None:
        key = key_of(self._service, self._partition, self._slot, part.part)
        while True:
            self._check(until_s)
            try:
                self._producer.produce(self._topic, codec.encode(part), key, 0, on_delivery=self._on_delivery)
                break
            except BufferError:
                self._producer.poll(SLICE_S)
        self._producer.poll(0)

    def _check(self, until_s: float | None = None) -> None:
        if self._failure:
            raise self._unwritten(self._failure)
        if until_s is not None and monotonic() >= until_s:
            raise self._unwritten("the broker did not acknowledge it in time")

    def _unwritten(self, why: str) -> Unavailable:
        """What is still queued of it is given up."""
        self.close()
        return Unavailable(f"A snapshot of {self._service} was not written: {why}.")

    def _on_delivery(self, error: Any, _: Any) -> None:
        if error is not None and not self._failure:
            self._failure = str(error.str())

    def close(self) -> None:
        from confluent_kafka import KafkaException

        if self._producer is not None:
            with suppress(KafkaException):  # one that has failed for good says so once more
                self._producer.purge()
                flush(self._producer, SLICE_S)
            self._producer = None


class TopicShelf:
    """The snapshots of every partition of one service: reads, and writes where it has read."""

    def __init__(
        self, connection: Connection, job: str, service: str, record_bytes_max: int = RECORD_BYTES_MAX
    ) -> None:
        self._connection, self._job, self._service = connection, job, service
        self._record_bytes_max = record_bytes_max
        self._writers: dict[int, SnapshotWriter] = {}

    def newest(self, partition: int) -> SnapshotFound | None:
        """The newest whole one; `write` leaves it alone from now on."""
        found = newest(self._connection, self._job, self._service, partition)
        if partition in self._writers:
            self._writers[partition].close()
        self._writers[partition] = SnapshotWriter(
            self._connection, self._job, self._service, partition, found, record_bytes_max=self._record_bytes_max
        )
        return found

    def write(
        self, partition: int, topic_id: str, next_offset: int, rows: Mapping[bytes, bytes], timeout_s: float | None
    ) -> None:
        """Write one. Raises Unavailable if it is not acknowledged in time."""
        self._writers[partition].write(topic_id, next_offset, rows, timeout_s)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
