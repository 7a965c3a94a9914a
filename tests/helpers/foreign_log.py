"""A log into which others write, too, while its leader is in office: what they write, and where there is nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from antdt_schemas import codec, records
from antdt_schemas.container import LogEntry
from antdt_streams.ledger.core.versions import FOLD_VERSION

from tests.helpers.plain_log import WORKERS, Writer, plain_log

Junk = Callable[["DisturbedWriter", random.Random], bytes]


def _forged(writer: DisturbedWriter, rng: random.Random) -> bytes:
    """In the leader's name, with the number that is due, a later one or an old one, and a hash of nothing."""
    fold = writer.fold
    assert fold.office is not None and fold.state is not None
    body = records.Cycle(
        fold.office.offset, fold.office.hash, fold.state.sequence + rng.choice((1, 1, 5, -3)),
        writer.next_offset - rng.choice((-9, 0, 1, 2)), rng.randbytes(16), 0, 1, (),
    )  # fmt: skip
    return codec.encode(records.Entry(body))


def _of_another_log(writer: DisturbedWriter, rng: random.Random) -> bytes:
    return rng.choice(_another_log())


@cache
def _another_log() -> tuple[bytes, ...]:
    first = codec.decode(plain_log(60, 99)[0], records.Entry).body
    assert isinstance(first, records.Genesis)
    genesis = replace(first, run_id="run-2", job="other")
    leader = records.Leader("run-2", "leader-2", "test", FOLD_VERSION)
    rest = plain_log(60, 99)[2:]
    # Some of it as if its leader had come late: it names an office beyond what is proven here.
    late = [codec.decode(payload, records.Entry).body for payload in rest[:20]]
    moved = [replace(b, epoch_offset=b.epoch_offset + 1_000) for b in late if isinstance(b, records.Cycle)]
    return (*(codec.encode(records.Entry(body)) for body in (genesis, leader, *moved)), *rest)


JUNK: dict[str, Junk] = {
    "text": lambda writer, rng: b"{}",
    "nothing": lambda writer, rng: b"",
    "an unknown schema": lambda writer, rng: b"\xc3\x01" + rng.randbytes(8) + writer.log[-1][10:],
    "a copy": lambda writer, rng: rng.choice(writer.log),
    "genesis again": lambda writer, rng: writer.log[0],
    "the end of an entry is missing": lambda writer, rng: writer.log[-1][
        : rng.randint(10, max(len(writer.log[-1]), 11) - 1)
    ],
    "a request": lambda writer, rng: codec.encode(records.Request("w", "w.0", 1, records.Leave(1), b"")),
    "another log": _of_another_log,
    "in the leader's name": _forged,
}


class DisturbedWriter(Writer):
    """Whatever is foreign comes between any two entries. `foreign`: the offsets of it."""

    def __init__(self, seed: int, kinds: tuple[str, ...] = tuple(JUNK), share: float = 0.3) -> None:
        self.chance, self.kinds, self.share = random.Random(seed + 1_000), kinds, share
        self.foreign: list[int] = []
        self.written: set[str] = set()
        super().__init__(20, seed, 7)

    def meanwhile(self) -> None:
        while self.chance.random() < self.share:
            if self.chance.random() < 0.3:
                self.next_offset += self.chance.choice((1, 1, 2, 9))  # a marker, or what compaction has removed
            else:
                self.disturb(self.chance.choice(self.kinds))

    def disturb(self, kind: str) -> None:
        """Somebody writes; the leader reads it and stays in office."""
        payload = JUNK[kind](self, self.chance)
        self.foreign.append(self.append(payload))
        self.written.add(kind)
        assert self.office.read_back(self.foreign[-1], payload) is None

    def entries(self) -> list[tuple[int, bytes]]:
        """The log as it lies there."""
        return list(zip(self.offsets, self.log, strict=True))

    def lying(self) -> list[LogEntry]:
        """The same, for a file."""
        return [LogEntry(offset, 0, payload) for offset, payload in self.entries()]


def disturbed(
    seed: int, entries: int = 60, kinds: tuple[str, ...] = tuple(JUNK), share: float = 0.3
) -> DisturbedWriter:
    """A log with so many entries of its leader, the last of which comes behind everything foreign."""
    writer = DisturbedWriter(seed, kinds, share)
    writer.write(
        *(records.Joined(w, w[:2], "worker", "h", 1, "n", "", 0) for w in WORKERS),
        records.Granted(1, WORKERS, None, None, 0, "init"),
    )
    writer.write(*(records.Leased(1 + n, 1, w, 1, 0, 4 * n, 4) for n, w in enumerate(WORKERS)), records.Settled(1))
    while len(writer.log) - len(writer.foreign) < entries - 1:
        writer.write(*writer.plain())
    writer.share = 0.0
    writer.write()
    return writer
