"""A log as a file: an Avro object container that holds every entry exactly as it lies in the topic.

Owns the layout: one record for each entry (offset, the broker's time, the entry's bytes), deflate, and metadata that
name the job, the topic, the number of entries, the rolling hash of the last one, and every schema that an entry may be
written with, so that a reader needs nothing but the file. Any Avro tool opens it; `Registry` framing is not involved.
Knows nothing of what entries mean. Blocks are read by our own code because a file from elsewhere may claim anything:
sizes are bounded before memory is taken.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import fastavro
from fastavro.write import Writer

from antdt_schemas import codec, lineage
from antdt_schemas.errors import LogTampered, Unavailable, UsageError

VERSION = "1"
MAGIC = b"Obj\x01"
SYNC_SIZE = 16
BLOCK_BYTES = 256 << 10
BLOCK_BYTES_MAX = 64 << 20
HEADER_BYTES_MAX = 4 << 20
COMPRESSION = 6
# What is known only at the end has its place in the header, of fixed width, and is written there last.
ENTRIES_LATER = b"N" * 20
HASH_LATER = b"H" * 32
HOLES_LATER = b"O" * 20

RECORD = {
    "type": "record",
    "name": "LogEntry",
    "namespace": codec.NAMESPACE,
    "doc": "An entry of a shard log, as it lies in its topic.",
    "fields": [
        {"name": "offset", "type": "long", "doc": "Offset in the topic: grows, with holes where there is no entry."},
        {"name": "timestamp_ms", "type": "long", "doc": "The broker's time, milliseconds since 1970."},
        {"name": "payload", "type": "bytes", "doc": "The entry, Avro single-object encoding: what the chain hashes."},
    ],
}
_RECORD = fastavro.parse_schema(RECORD, named_schemas={})
_RECORDS = fastavro.parse_schema({"type": "array", "items": RECORD}, named_schemas={})
_FIELDS = [
    {"name": "magic", "type": {"type": "fixed", "name": "magic", "size": 4}},
    {"name": "meta", "type": {"type": "map", "values": "bytes"}},
    {"name": "sync", "type": {"type": "fixed", "name": "sync", "size": SYNC_SIZE}},
]
_HEADER = fastavro.parse_schema({"type": "record", "name": "header", "fields": _FIELDS}, named_schemas={})


class LogEntry(NamedTuple):
    offset: int
    timestamp_ms: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself: `head_hash` is the rolling hash after its last entry.

    holes: offsets below that of the last entry at which there is none. A file that does not say has none.
    """

    job: str
    topic_id: str
    entries: int
    head_hash: bytes
    holes: int = 0

    @property
    def next_offset(self) -> int:
        return self.entries + self.holes

    @property
    def anchors(self) -> dict[int, bytes]:
        """The rolling hash that a reader must have after the last entry, if there is any."""
        return {self.next_offset - 1: self.head_hash} if self.entries else {}


# -- writing


def write(path: Path, job: str, topic_id: str, entries: Iterable[LogEntry]) -> Header:
    """Write a log to `path`, whole or not at all; memory does not grow with the log.

    Raises:
        LogTampered: the offsets do not grow.
        Unavailable: the file cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w+b") as file:
            header = _write(file, job, topic_id, entries)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.absolute().parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise Unavailable(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return header


def _write(file: BinaryIO, job: str, topic_id: str, entries: Iterable[LogEntry]) -> Header:
    metadata = {
        "antdt.version": VERSION,
        "antdt.job": job,
        "antdt.topic_id": topic_id,
        "antdt.entries": ENTRIES_LATER.decode(),
        "antdt.head_hash": HASH_LATER.decode(),
        "antdt.holes": HOLES_LATER.decode(),
        "antdt.schemas": json.dumps(codec.writer_schemas("Entry"), separators=(",", ":")),
    }
    writer = Writer(file, _RECORD, "deflate", BLOCK_BYTES, metadata, compression_level=COMPRESSION)
    end = file.tell()
    file.seek(0)
    head = file.read(end)
    file.seek(end)
    count, due, rolling = 0, 0, lineage.ROOT
    for offset, timestamp_ms, payload in entries:
        if offset < due:
            raise LogTampered("The next offset of the log", f"at least {due}", offset)
        writer.write({"offset": offset, "timestamp_ms": timestamp_ms, "payload": payload})
        rolling = lineage.chain(rolling, offset, payload)
        count, due = count + 1, offset + 1
    writer.flush()
    later = (ENTRIES_LATER, f"{count:020d}"), (HOLES_LATER, f"{due - count:020d}"), (HASH_LATER, rolling.hex())
    for mark, value in later:
        file.seek(head.index(mark))
        file.write(value.encode())
    return Header(job, topic_id, count, rolling, due - count)


# -- reading


class LogFile:
    """A file of `write`, read block by block.

    Raises:
        UsageError: there is no such file, or it is none of ours.
        LogTampered: it was cut or altered; the offset is named.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}. Name a file of `antdt export`.") from error
        self._size = os.fstat(self._file.fileno()).st_size
        try:
            self.header, self._sync, self._codec, self._start = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> LogFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[LogEntry]:
        return self.entries()

    def entries(self, start: int = 0) -> Iterator[LogEntry]:
        """The entries from offset `start` on. What is before it is not looked at."""
        for block in self.blocks(start):
            yield from block if block[0].offset >= start else (e for e in block if e.offset >= start)

    def blocks(self, start: int = 0) -> Iterator[list[LogEntry]]:
        """The entries in the portions that they were written in, but for those that end before offset `start`."""
        self._file.seek(self._start)
        read, holes = 0, self.header.holes
        expected = 0  # the least offset that the next entry may have
        while self._file.tell() < self._size:
            count, size = self._read_sizes(expected)
            if read + count + holes <= start:
                self._file.seek(size + SYNC_SIZE, os.SEEK_CUR)
                read += count
                expected = max(expected, read)
                continue
            block = self._read_block(count, size, expected)
            for entry in block:
                if entry.offset != expected and (entry.offset < expected or not holes):
                    raise LogTampered(f"The next offset in {self.path}", expected, entry.offset)
                expected = entry.offset + 1
            read += count
            yield block
        if read != self.header.entries:
            raise self._damaged(expected, f"the file ends there, and names {self.header.entries} entries")

    def _read_header(self) -> tuple[Header, bytes, str, int]:
        head = io.BytesIO(self._file.read(HEADER_BYTES_MAX))
        try:
            found: Any = fastavro.schemaless_reader(head, _HEADER, None)
            if found["magic"] != MAGIC:
                raise ValueError("it does not begin with the marker of an Avro container")
            meta: dict[str, bytes] = found["meta"]
            if meta["antdt.version"].decode() != VERSION:
                raise ValueError(f"its layout is {meta['antdt.version'].decode()}, not {VERSION}")
            if meta["avro.codec"] not in (b"deflate", b"null"):
                raise ValueError(f"it is compressed with {meta['avro.codec'].decode()}")
            whose, entries = (meta["antdt.job"].decode(), meta["antdt.topic_id"].decode()), int(meta["antdt.entries"])
            head_hash = bytes.fromhex(meta["antdt.head_hash"].decode())
            header = Header(*whose, entries, head_hash, int(meta.get("antdt.holes", b"0")))
            return header, found["sync"], meta["avro.codec"].decode(), head.tell()
        except Exception as error:
            reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
            raise UsageError(f"{self.path} is not a log of `antdt export`: {reason}.") from error

    def _read_sizes(self, expected: int) -> tuple[int, int]:
        """How many entries the block at hand has, in how many bytes."""
        try:
            count, size = self._read_long(), self._read_long()
            if not (0 < count <= BLOCK_BYTES_MAX and 0 < size <= BLOCK_BYTES_MAX):
                raise ValueError(f"a block of {count} entries in {size} bytes")
        except ValueError as error:
            raise self._damaged(expected, str(error)) from error
        return count, size

    def _read_block(self, count: int, size: int, expected: int) -> list[LogEntry]:
        try:
            data, sync = self._file.read(size), self._file.read(SYNC_SIZE)
            if len(data) + len(sync) < size + SYNC_SIZE:
                raise ValueError("the file ends inside a block")
            if sync != self._sync:
                raise ValueError("a block does not end with the file's marker")
            if self._codec == "deflate":
                inflate = zlib.decompressobj(-15)
                data = inflate.decompress(data, BLOCK_BYTES_MAX)
                if not inflate.eof:  # fastavro leaves part of zlib's checksum behind it (measured, 1.13.1)
                    raise ValueError("a block is not a deflate stream, or is larger than any that was written")
            # One call for the whole block: an array of its records.
            body = io.BytesIO(b"".join((_long(count), data, b"\0")))
            entries: Any = fastavro.schemaless_reader(body, _RECORDS, None)
            if body.tell() != len(body.getbuffer()):
                raise ValueError("bytes follow the entries of a block")
            return [LogEntry(e["offset"], e["timestamp_ms"], e["payload"]) for e in entries]
        except LogTampered:
            raise
        except Exception as error:
            raise self._damaged(expected, str(error) or type(error).__name__) from error

    def _damaged(self, expected: int, reason: str) -> LogTampered:
        return LogTampered(f"{self.path} from offset {expected} on", "entries as they were exported", reason)

    def _read_long(self) -> int:
        value = shift = 0
        while True:
            byte = self._file.read(1)
            if not byte or shift > 63:
                raise ValueError("the file ends inside a block" if not byte else "a length is no number")
            value |= (byte[0] & 0x7F) << shift
            shift += 7
            if byte[0] < 0x80:
                return (value >> 1) ^ -(value & 1)


def _long(value: int) -> bytes:
    """Avro's variable-length encoding of a number from 0 on."""
    value, out = value << 1, bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
