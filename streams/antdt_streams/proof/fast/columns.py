"""Entries as columns: what plain entries say, many of them decoded at once.

An entry is plain if it is a Cycle of leases and commits only, as nearly all of a log are. Here is the second reader of
their bytes; the codec is the first, and the rule: whatever looks unusual (another schema, an array in several blocks, a
number of more than 55 bits, a byte too many) is not plain, and is left to it. Owns the layout of plain entries in Avro,
which is taken from the schemas and not assumed. Knows nothing of what may follow from what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from antdt_schemas import codec, lineage
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Bits = NDArray[np.uint64]
Where = NDArray[np.bool_]

FEWEST = 16  # entries that are walked at once: for fewer, the codec is as fast
EVENTS_OF_FEW = 32  # events of an entry that are walked for fewer of them, so that no run ends there
WORD = 8
EVENT_BITS = 32  # of an event's number in its entry: one of 8 MiB has no more
_PAD = bytes(4 * WORD)  # whoever walks past the end reads zeros, and is told so

_CYCLE = [
    ("epoch_offset", "long"),
    ("epoch_hash", "bytes"),
    ("sequence", "long"),
    ("previous_offset", "long"),
    ("previous_hash", "bytes"),
    ("requests_next", "long"),
    ("now_ms", "long"),
    ("events", "array"),
]
_COMMITTED = [("generation", "long"), ("step", "long"), ("ranges", "array"), ("lineage", "bytes"), ("plan", "long")]
_LEASED = [
    ("lease", "long"),
    ("shards", "int"),
    ("incarnation", "string"),
    ("generation", "long"),
    ("epoch", "int"),
    ("start", "long"),
    ("length", "long"),
]


class Layout(NamedTuple):
    """Which branches of their unions plain entries take, in the schema of one writer."""

    header: bytes
    cycle: int
    leased: int
    committed: int


@dataclass(frozen=True, slots=True)
class Cycles:
    """One row for each entry that was asked for; of those that are not plain, nothing but `plain` means anything.

    epoch_hash, previous_hash: two words each, see `words_of`. events: how many.
    """

    plain: Where
    epoch_offset: Numbers
    epoch_hash: Bits
    sequence: Numbers
    previous_offset: Numbers
    previous_hash: Bits
    requests_next: Numbers
    now_ms: Numbers
    events: Numbers


@dataclass(frozen=True, slots=True)
class Leases:
    """One row for each lease of a plain entry, in the order of the log. `place` grows from event to event."""

    entry: Numbers
    place: Numbers
    lease: Numbers
    shards: Numbers
    incarnation: list[str]
    generation: Numbers
    epoch: Numbers
    start: Numbers
    length: Numbers


@dataclass(frozen=True, slots=True)
class Commits:
    """One row for each commit of a plain entry, in the order of the log. Its ranges are the rows of `ranges` from
    `first` to `first + count`: lease, epoch, start, length.
    """

    entry: Numbers
    place: Numbers
    generation: Numbers
    step: Numbers
    plan: Numbers
    lineage: list[bytes]
    first: Numbers
    count: Numbers
    ranges: Numbers


@dataclass(frozen=True, slots=True)
class Columns:
    """What some entries say."""

    cycles: Cycles
    leases: Leases
    commits: Commits


def union(ranges: Numbers) -> list[tuple[int, int]] | None:
    """The positions of some ranges as few intervals, [start, end), in order; None if two of them overlap.

    ranges: shape (n, 2), start and length; no length is below 1.
    """
    starts = np.sort(ranges[:, 0])
    ends = np.sort(ranges[:, 0] + ranges[:, 1])
    # Disjoint ranges have their ends in the order of their starts; of others, a start comes before the end ahead of it.
    if (starts[1:] < ends[:-1]).any():
        return None
    first = np.flatnonzero(np.append(True, starts[1:] != ends[:-1]))
    lows, highs = starts[first], np.append(ends[first[1:] - 1], ends[-1:])
    return list(zip(lows.tolist(), highs.tolist(), strict=True))


def words_of(digests: Sequence[bytes]) -> Bits:
    """16-byte digests as two words each, to be compared with those of `Cycles`. Shape (n, 2)."""
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


def decode(payloads: Sequence[bytes]) -> Columns | None:
    """Plain entries of the schema that the first one is written in; None if there is nothing to gain."""
    layout = _layouts().get(payloads[0][: codec.HEADER_SIZE]) if len(payloads) >= FEWEST else None
    return None if layout is None else _Walk(payloads, layout).columns()


# -- which layout


@cache
def _layouts() -> dict[bytes, Layout]:
    """By the header of an entry: the layout of its writer's schema, if plain entries look in it as they do here."""
    found = {}
    for mark, schema in codec.writer_schemas("Entry").items():
        header = codec.MARKER + bytes.fromhex(mark)
        layout = _layout_of(header, schema)
        if layout is not None:
            found[header] = layout
    return found


def _layout_of(header: bytes, schema: dict[str, Any]) -> Layout | None:
    if [f["name"] for f in schema["fields"]] != ["body"]:
        return None
    bodies = {branch["name"]: (n, branch) for n, branch in enumerate(schema["fields"][0]["type"])}
    cycle, body = bodies["Cycle"]
    events = {branch["name"]: (n, branch) for n, branch in enumerate(body["fields"][-1]["type"]["items"])}
    (leased, lease), (committed, commit) = events["Leased"], events["Committed"]
    same = (_fields(body), _fields(lease), _fields(commit)) == (_CYCLE, _LEASED, _COMMITTED)
    return Layout(header, cycle, leased, committed) if same else None


def _fields(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [(f["name"], f["type"]["type"] if isinstance(f["type"], dict) else f["type"]) for f in record["fields"]]


# -- the walk


class _Walk:
    """A cursor for each entry, all of them moved by the same field at a time. `bad` are the entries that are not plain:
    their cursors go on, over whatever is there.
    """

    def __init__(self, payloads: Sequence[bytes], layout: Layout) -> None:
        self.layout, self.data = layout, b"".join((*payloads, _PAD))
        sizes = np.fromiter(map(len, payloads), np.int64, len(payloads))
        self.ends = np.cumsum(sizes)
        # Where a cursor stays that has passed the end of all: no entry ends there, so none of these is plain.
        self.beyond = len(self.data) - len(_PAD) + 1
        # The eight bytes from each byte on, and where the last byte of each variable-length number can be.
        self.words = np.ndarray((len(self.data) - WORD + 1,), "<u8", self.data, strides=(1,))
        self.stops = np.flatnonzero(np.frombuffer(self.data, np.uint8) < 0x80)
        self.at = self.ends - sizes
        self.bad = np.zeros(len(payloads), np.bool_)
        self.kept_leases: list[tuple[Any, ...]] = []
        self.kept_commits: list[tuple[Any, ...]] = []

    def columns(self) -> Columns:
        everyone = np.arange(len(self.at))
        self._expect(everyone, self.layout.header)
        self._expect_long(everyone, self.layout.cycle)
        epoch_offset, epoch_hash = self._long(everyone), self._digest(everyone)
        sequence, previous_offset, previous_hash = self._long(everyone), self._long(everyone), self._digest(everyone)
        requests_next, now_ms, events = (self._long(everyone) for _ in range(3))
        self.bad |= events < 0
        number, rows = 0, np.flatnonzero(~self.bad & (events > 0))
        while rows.size >= FEWEST or (rows.size and number < EVENTS_OF_FEW):
            self._event(rows, number)
            number += 1
            over = rows[events[rows] == number]
            self._expect_long(over, 0)  # the array's end
            rows = rows[~self.bad[rows] & (events[rows] > number)]
        self.bad[rows] = True
        self.bad |= self.at != self.ends
        leases, commits = self._leases(), self._commits()
        hashes = self._words_at(epoch_hash), self._words_at(previous_hash)
        return Columns(
            Cycles(
                ~self.bad, epoch_offset, hashes[0], sequence, previous_offset, hashes[1], requests_next, now_ms, events
            ),
            leases,
            commits,
        )

    def _event(self, rows: Numbers, number: int) -> None:
        branch = self._long(rows)
        commits, leases = branch == self.layout.committed, branch == self.layout.leased
        self.bad[rows[~(commits | leases)]] = True
        rows_of_commits, rows_of_leases = rows[commits], rows[leases]
        if rows_of_commits.size:
            self._committed(rows_of_commits, number)
        if rows_of_leases.size:
            self._leased(rows_of_leases, number)

    def _committed(self, rows: Numbers, number: int) -> None:
        generation, step, count = (self._long(rows) for _ in range(3))
        self.bad[rows[(count <= 0) | (count % 4 != 0)]] = True
        # Numbers lie side by side: the n-th one ends at the n-th stop.
        first = np.searchsorted(self.stops, self.at[rows])
        behind = first + np.where(self.bad[rows], 0, count)
        self.bad[rows[behind >= self.stops.size]] = True
        behind = np.minimum(behind, self.stops.size - 1)
        at = np.where(behind > first, self.stops[behind - 1] + 1, self.at[rows])
        self.at[rows] = np.minimum(at, self.beyond)
        self._expect_long(rows, 0)
        digest = self._digest(rows)
        self.kept_commits.append((rows, number, generation, step, self._long(rows), digest, first, count))

    def _leased(self, rows: Numbers, number: int) -> None:
        lease, shards, size = (self._long(rows) for _ in range(3))
        name = self.at[rows]
        self.bad[rows[size < 0]] = True
        self._move(rows, np.clip(size, 0, self.beyond))
        rest = tuple(self._long(rows) for _ in range(4))
        self.kept_leases.append((rows, number, lease, shards, *rest, name, size))

    def _leases(self) -> Leases:
        rows, place, columns = _ordered(self.kept_leases, self.bad)
        if not columns:
            none = np.zeros(0, np.int64)
            return Leases(rows, place, none, none, [], none, none, none, none)
        lease, shards, generation, epoch, start, length, name, size = columns
        names: dict[bytes, str | None] = {}
        found: list[str] = []
        kept = np.ones(rows.size, np.bool_)
        for n, (low, high) in enumerate(zip(name.tolist(), (name + size).tolist(), strict=True)):
            raw = self.data[low:high]
            if raw not in names:
                names[raw] = _text(raw)
            text = names[raw]
            if text is None:
                kept[n] = False
            found.append(text or "")
        if not kept.all():
            self.bad[rows[~kept]] = True
        return Leases(rows, place, lease, shards, found, generation, epoch, start, length)

    def _commits(self) -> Commits:
        rows, place, columns = _ordered(self.kept_commits, self.bad)
        if not columns:
            none = np.zeros(0, np.int64)
            return Commits(rows, place, none, none, none, [], none, none, none.reshape(0, 4))
        generation, step, plan, digest, stop, count = columns
        ends = np.cumsum(count)
        firsts = ends - count
        # The numbers of all ranges: each begins behind the stop before it.
        at = np.repeat(stop - firsts, count) + np.arange(int(ends[-1]) if ends.size else 0)
        values, sizes = self._numbers_at(self.stops[at - 1] + 1)
        long = sizes == 0
        if long.any():
            self.bad[np.repeat(rows, count)[long]] = True
        lineages = [self.data[low : low + lineage.DIGEST_SIZE] for low in digest.tolist()]
        ranges = values.reshape(-1, 4)
        return Commits(rows, place, generation, step, plan, lineages, firsts // 4, count // 4, ranges)

    # -- fields

    def _long(self, rows: Numbers) -> Numbers:
        """The number at the cursors of these rows."""
        values, sizes = self._numbers_at(self.at[rows])
        self.bad[rows[sizes == 0]] = True
        self._move(rows, sizes)
        return values

    def _expect_long(self, rows: Numbers, value: int) -> None:
        self.bad[rows[self._long(rows) != value]] = True

    def _digest(self, rows: Numbers) -> Numbers:
        """Where the digest at the cursors of these rows begins."""
        self._expect_long(rows, lineage.DIGEST_SIZE)
        begin = self.at[rows]
        self._move(rows, np.int64(lineage.DIGEST_SIZE))
        return begin

    def _expect(self, rows: Numbers, header: bytes) -> None:
        assert len(header) == WORD + 2, header
        low = self.words[self.at[rows]] == int.from_bytes(header[:WORD], "little")
        high = self.words[np.minimum(self.at[rows] + 2, self.beyond)] == int.from_bytes(header[2:], "little")
        self.bad[rows[~(low & high)]] = True
        self._move(rows, np.int64(len(header)))

    def _move(self, rows: Numbers, sizes: Numbers | np.int64) -> None:
        self.at[rows] = np.minimum(self.at[rows] + sizes, self.beyond)

    def _words_at(self, at: Numbers) -> Bits:
        """The 16 bytes at each place as two words."""
        return np.stack((self.words[at], self.words[at + WORD]), axis=1)

    def _numbers_at(self, at: Numbers) -> tuple[Numbers, Numbers]:
        """Avro's numbers at these places, and how many bytes each has: 0 where it is longer than seven."""
        word = self.words[at]
        low = word & np.uint64(0xFF)
        if (low < 0x80).all():  # as of most fields, in most logs
            return _signed(low), np.ones(at.size, np.int64)
        stop = ~word & np.uint64(0x8080808080808080)
        stop &= ~stop + np.uint64(1)  # the lowest of them
        mask = stop ^ (stop - np.uint64(1))  # up to and with it; all bits where there is none
        sizes = (np.bitwise_count(mask) >> 3).astype(np.int64)
        sizes[(stop == 0) | (sizes == WORD)] = 0
        word &= mask & np.uint64(0x7F7F7F7F7F7F7F7F)
        word = (word & np.uint64(0x007F007F007F007F)) | ((word & np.uint64(0x7F007F007F007F00)) >> np.uint64(1))
        word = (word & np.uint64(0x00003FFF00003FFF)) | ((word & np.uint64(0x3FFF00003FFF0000)) >> np.uint64(2))
        word = (word & np.uint64(0x000000000FFFFFFF)) | ((word & np.uint64(0x0FFFFFFF00000000)) >> np.uint64(4))
        return _signed(word), sizes


def _signed(word: Bits) -> Numbers:
    """Zigzag: the sign is the last bit."""
    signed = word.astype(np.int64)
    return (signed >> 1) ^ -(signed & 1)


def _ordered(kept: list[tuple[Any, ...]], bad: Where) -> tuple[Numbers, Numbers, list[Numbers]]:
    """Events of plain entries in the order of the log: their entries, their places, their columns."""
    if not kept:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), []
    rows = np.concatenate([part[0] for part in kept])
    place = (rows << EVENT_BITS) + np.concatenate([np.full(part[0].size, part[1]) for part in kept])
    order = np.argsort(place)
    order = order[~bad[rows[order]]]
    columns = [np.concatenate([part[n] for part in kept])[order] for n in range(2, len(kept[0]))]
    return rows[order], place[order], columns


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None
