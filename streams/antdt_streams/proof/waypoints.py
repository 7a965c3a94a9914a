"""Waypoints: what a reader of a log knew at some of its entries, in a file beside an exported log.

With them the parts between can be proven at once. Nobody trusts them: who proves the part behind a waypoint assumes
it, and who proves the part before must arrive at it, byte for byte. If all parts hold, the log holds, as if it had been
read from its first entry to its last; wrong waypoints can only make a proof start over. Owns the file and where a
waypoint may stand. Knows no processes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import fastavro
from antdt_schemas import codec
from antdt_schemas.container import LogEntry
from antdt_schemas.errors import AntdtError, Undecodable
from fastavro.write import Writer

from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.stored import Identity, fold_of, whole
from antdt_streams.proof.walker import CHUNK_ENTRIES, Walker, chunks
from antdt_streams.storage.snapshots import pack, unpack

SUFFIX = ".waypoints"
EVERY_EVENTS = 100_000  # a second or two of a core's work, megabytes of log; a waypoint has some 100 kB
ROWS_BYTES_MAX = 512 << 20
COMPRESSION = 1

_SCHEMA = fastavro.parse_schema(
    {
        "type": "record",
        "name": "Waypoint",
        "namespace": codec.NAMESPACE,
        "doc": "What a reader of a shard log knows when it has read all entries before an offset.",
        "fields": [
            {"name": "next_offset", "type": "long", "doc": "The first entry behind it."},
            {"name": "proven", "type": "long", "doc": "The newest entry that a later one, which counts, has named."},
            {"name": "rows", "type": "bytes", "doc": "The rows of its state as a snapshot packs them, zlib."},
        ],
    },
    named_schemas={},
)


class Waypoint(NamedTuple):
    """What is known ahead of the entry at `next_offset`; `rows` are packed and compressed."""

    next_offset: int
    proven: int
    rows: bytes

    @classmethod
    def of(cls, fold: Fold, identity: Identity) -> Waypoint:
        """The waypoint where this fold stands."""
        assert stands(fold)
        return cls(fold.position.next_offset, fold.proven, zlib.compress(packed(fold, identity), COMPRESSION))

    def unpacked(self) -> bytes:
        """The packed rows.

        Raises:
            Undecodable: they are none, or more than any state has.
        """
        inflate = zlib.decompressobj()
        try:
            rows = inflate.decompress(self.rows, ROWS_BYTES_MAX)
        except zlib.error as error:
            raise Undecodable(f"The waypoint at offset {self.next_offset} is damaged: {error}.") from error
        if not inflate.eof:
            raise Undecodable(f"The waypoint at offset {self.next_offset} is cut, or larger than any state.")
        return rows

    def fold(self, identity: Identity) -> Fold:
        """A reader that knows this. Errors are those of `unpacked` and of a snapshot's rows."""
        fold, _ = fold_of(unpack(self.unpacked()), identity, f"the waypoint at offset {self.next_offset}")
        fold.proven, fold.trusted = self.proven, -1
        return fold


def stands(fold: Fold) -> bool:
    """Whether rows tell all of what this fold knows: there is a job, its last entry counts, and there is no doubt."""
    return fold.state is not None and len(fold.recent) == 1 and not fold.doubts


def packed(fold: Fold, identity: Identity) -> bytes:
    """The rows of a fold: equal ones have read equal logs."""
    return pack(whole(fold, identity, None))


def marked(
    entries: Iterable[LogEntry], identity: Identity, keep: Callable[[Waypoint], Any], every_events: int = EVERY_EVENTS
) -> Iterator[LogEntry]:
    """Pass entries on, and hand a waypoint to `keep` whenever so many events have passed. A log that breaks gets no
    more of them: it is passed on as it is.
    """
    fold, due = Fold(), every_events
    walker, broken = Walker(fold), False
    for chunk in chunks(entries, most=min(CHUNK_ENTRIES, every_events)):
        if fold.events >= due and not broken and stands(fold):
            keep(Waypoint.of(fold, identity))
            due = fold.events + every_events
        yield from chunk
        try:
            if not broken:
                walker.read(chunk)
        except AntdtError:
            broken = True


def beside(log: Path) -> Path:
    """Where the waypoints of an exported log are."""
    return log.with_name(log.name + SUFFIX)


@contextmanager
def writing(log: Path) -> Iterator[Callable[[Waypoint], None]]:
    """Write the waypoints of a log that is being exported: whole, or, if that fails, not at all."""
    path = beside(log)
    partial = path.with_name(path.name + ".partial")
    path.unlink(missing_ok=True)  # those of a log that was here before
    try:
        with partial.open("wb") as file:
            writer = Writer(file, _SCHEMA)
            yield lambda waypoint: writer.write(waypoint._asdict())
            writer.flush()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def reading(log: Path) -> Iterator[Waypoint]:
    """The waypoints of an exported log, in the order of their offsets; none where there is no file of them.

    Raises:
        Undecodable: the file is not one of `writing`.
    """
    path = beside(log)
    if not path.exists():
        return
    before = 0
    try:
        with path.open("rb") as file:
            for found in fastavro.reader(file, _SCHEMA):
                waypoint = Waypoint(**found)  # type: ignore[arg-type]
                if waypoint.next_offset <= before:
                    raise ValueError(f"offset {waypoint.next_offset} follows {before}")
                before = waypoint.next_offset
                yield waypoint
    except Exception as error:
        raise Undecodable(f"{path} is not a file of waypoints: {type(error).__name__} {error}.") from error
