"""A log of leases and commits only, and what a faulty or hostile leader might have written into it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import count
from typing import Any

from antdt_schemas import codec, lineage, records
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.leader import InOffice
from antdt_streams.ledger.core.versions import FOLD_VERSION

WORKERS = ("w0.0", "w1.0", "w2.0")
FIRST = 4  # entries before the plain ones: genesis, leader, members, first leases
Log = tuple[bytes, ...]
Forgery = Callable[[records.Cycle], records.Cycle]


class Writer:
    """A leader in office, and its log: `offsets` are where the entries of `log` lie."""

    def __init__(self, epochs: int, seed: int, digest_every: int) -> None:
        self.rng, self.fold = random.Random(seed), Fold()
        self.offsets, self.next_offset = list[int](), 0
        spec = records.JobSpec("d", 400, bytes(16), "sequential", epochs, 0, 4, 8, 3, 3, "allreduce")
        self.log: list[bytes] = []
        genesis = records.Genesis("run-1", "plain", "test", spec, FOLD_VERSION, "none", digest_every, 5_000)
        for body in (genesis, records.Leader("run-1", "leader-1", "test", FOLD_VERSION)):
            payload = codec.encode(records.Entry(body))
            self.fold.read(self.append(payload), payload)
        self.office = InOffice(self.fold)
        self.state = self.office.state

    def append(self, payload: bytes) -> int:
        """It lies in the log; nobody has read it. Its offset."""
        self.log.append(payload)
        self.offsets.append(self.next_offset)
        self.next_offset += 1
        return self.offsets[-1]

    def write(self, *events: records.Event) -> None:
        """An entry of this leader."""
        payload, _ = self.office.propose([], events)
        self.meanwhile()
        assert self.office.read_back(self.append(payload), payload) is not None

    def meanwhile(self) -> None:
        """What happens between deciding an entry and its place in the log."""

    def plain(self) -> list[records.Event]:
        """Some leases and commits that follow; at times none."""
        out: list[records.Event] = []
        next_lease, cursors = self.state.shards.next_lease, {n: e.cursor for n, e in self.state.shards.epochs.items()}
        fronts = {n: [x.epoch, x.front, x.end] for n, x in self.state.shards.leases.items()}
        step, after, rng = self.state.line.committed, self.state.line.lineage, self.rng
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            if len(fronts) < 2 or rng.random() < 0.3:
                epoch = next(n for n in count() if cursors.get(n, 0) < 400)
                start = cursors.get(epoch, 0)
                length = min(rng.choice((4, 8, 60)), 400 - start)
                cursors[epoch] = start + length
                out.append(records.Leased(next_lease, -(-length // 4), rng.choice(WORKERS), 1, epoch, start, length))
                fronts[next_lease] = [epoch, start, start + length]
                next_lease += -(-length // 4)
                continue
            ranges: list[int] = []
            for number in rng.sample(sorted(fronts), rng.randint(1, min(3, len(fronts)))):
                epoch, front, end = fronts[number]
                length = rng.randint(1, end - front)
                ranges += (number, epoch, front, length)
                fronts[number][1] += length
                if front + length == end:
                    del fronts[number]
            step += 1
            after = lineage.next_lineage(after, step, ranges)
            out.append(records.Committed(1, step, tuple(ranges), after, rng.randint(0, 9)))
        return out


def plain_log(entries: int, seed: int, digest_every: int = 1_000) -> Log:
    """A log of so many entries, nearly all of them plain."""
    writer = Writer(max(entries // 8, 2), seed, digest_every)
    writer.write(
        *(records.Joined(w, w[:2], "worker", "h", 1, "n", "", 0) for w in WORKERS),
        records.Granted(1, WORKERS, None, None, 0, "init"),
    )
    writer.write(*(records.Leased(1 + n, 1, w, 1, 0, 4 * n, 4) for n, w in enumerate(WORKERS)), records.Settled(1))
    while len(writer.log) < entries:
        writer.write(*writer.plain())
    return tuple(writer.log)


def cycle_of(payload: bytes) -> records.Cycle:
    """What an entry says."""
    body = codec.decode(payload, records.Entry).body
    assert isinstance(body, records.Cycle)
    return body


def forged(log: Log, at: int, forgery: Forgery, *, lineages: bool = True) -> Log:
    """The log with another entry at `at`, and all hashes behind it made to fit: what the rules alone can tell.

    lineages: those of the commits as well.
    """
    rolling = lineage.chains(lineage.ROOT, 0, log[:at])
    out = list(log[:at])
    after = lineage.ROOT
    for payload in log[FIRST - 1 : at]:
        after = next((e.lineage for e in reversed(cycle_of(payload).events) if isinstance(e, records.Committed)), after)
    for offset in range(at, len(log)):
        body = cycle_of(log[offset])
        if body.previous_offset >= at:
            body = replace(body, previous_hash=rolling[body.previous_offset])
        if offset == at:
            body = forgery(body)
        events: list[records.Event] = []
        for event in body.events:
            if isinstance(event, records.Committed) and lineages and len(event.ranges) % 4 == 0:
                after = lineage.next_lineage(after, event.step, event.ranges)
                event = replace(event, lineage=after)
            events.append(event)
        out.append(codec.encode(records.Entry(replace(body, events=tuple(events)))))
        rolling.append(lineage.chain(rolling[-1], offset, out[-1]))
    return tuple(out)


def at_random(rng: random.Random) -> Forgery:
    """Changes one number, text or order, no matter which."""

    def forgery(body: records.Cycle) -> records.Cycle:
        if not body.events or rng.random() < 0.3:
            name = rng.choice([f.name for f in fields(body) if f.name != "events"])
            return replace(body, **{name: _other(rng, getattr(body, name))})
        events = list(body.events)
        if rng.random() < 0.2:
            rng.shuffle(events)
            return replace(body, events=tuple(events))
        n = rng.randrange(len(events))
        name = rng.choice([f.name for f in fields(events[n]) if f.name != "lineage"])
        events[n] = replace(events[n], **{name: _other(rng, getattr(events[n], name))})
        return replace(body, events=tuple(events))

    return forgery


def _other(rng: random.Random, value: Any) -> Any:
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, 0, -1, value + 4, -value, 1 << 40, 1 << 60))
    if isinstance(value, bytes):
        return rng.choice((bytes(16), b"", value[:-1], value[:-1] + bytes([value[-1] ^ 1])))
    if isinstance(value, str):
        return rng.choice(("", "w9.9", "w1.0", "ö"))
    assert isinstance(value, tuple)
    numbers = list(value)
    change = rng.randrange(5)
    if change == 0:
        return ()
    if change == 1:
        return tuple(numbers[:-1])
    if change == 2:
        return (*numbers, *numbers[-4:])
    at = rng.randrange(len(numbers))
    numbers[at] = _other(rng, numbers[at])
    return tuple(numbers)
