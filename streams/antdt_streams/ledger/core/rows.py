"""The state as rows: what the cache keeps and what the digest covers. The same events give the same bytes."""

from __future__ import annotations

import json
from binascii import b2a_hex
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from antdt_schemas import records
from antdt_schemas.batches import Cursor, Layouts, Piece
from antdt_schemas.space import Space

from antdt_streams.ledger.core.batches import Batches, Change, Clue, Suspicion
from antdt_streams.ledger.core.dealt import NOBODY, DealtShards, Part
from antdt_streams.ledger.core.holes import Appended, Exclusion, Holes
from antdt_streams.ledger.core.intervals import IntervalSet
from antdt_streams.ledger.core.line import Checkpoint, Step
from antdt_streams.ledger.core.members import Incarnation
from antdt_streams.ledger.core.samples import Epoch, Fault, Lease
from antdt_streams.ledger.core.shards import Evidence, Shards
from antdt_streams.ledger.core.state import State
from antdt_streams.storage.rows import json_encoder

_ENCODE = json_encoder(ensure_ascii=False)


def changes(state: State) -> dict[bytes, bytes | None]:
    """Rows that changed since the last call; None: the row is gone."""
    out = {_key(kind, name): _row(state, kind, name) for kind, name in state.dirty}
    state.dirty.clear()
    return out


def all_rows(state: State) -> Iterator[tuple[bytes, bytes]]:
    """Every row, in a fixed order."""
    for kind, name in _few(state):
        row = _row(state, kind, name)
        assert row is not None
        yield _key(kind, name), row
    for step in state.line.steps:
        yield _key("step", step.step), _row_of(step)


def _few(state: State) -> Iterator[tuple[str, Any]]:
    """(kind, name) of every row but those of steps."""
    names: tuple[tuple[str, Any], ...] = (
        ("checkpoints", (0,)),
        ("epoch", sorted(state.shards.epochs)),
        ("grant", (0,) if state.members.grant else ()),
        ("incarnation", sorted(state.members.incarnations)),
        ("lease", sorted(state.shards.leases)),
        ("meta", (0,)),
        ("requests", (0,) if state.requests_topic else ()),
        ("batches", (0,) if isinstance(state.shards, Batches) else ()),
        ("blamed", sorted(state.shards.blamed) if isinstance(state.shards, Shards) else ()),
        ("fault", sorted(state.shards.faults)),
        ("skipped", (0,) if state.line.skipped else ()),
        ("stop", (0,) if state.stop else ()),
        ("space", (0,) if state.shards.is_extended else ()),
        ("fenced", (0,) if state.members.fenced else ()),
        (
            "part",
            [n for n in sorted(state.shards.parts) if n or state.shards.parts[n].todo]
            if isinstance(state.shards, DealtShards)
            else (),
        ),
    )
    for kind, keys in names:
        for name in keys:
            yield kind, name


def digest(state: State) -> bytes:
    """Digest of the whole state, 16 bytes: each row with its key, lengths before both, in the order of `all_rows`."""
    parts = [_framed_row(state, kind, name) for kind, name in _few(state)]
    # A step never changes, so what it adds is made once: a digest covers thousands of them.
    parts += [step.framed or _frame(step) for step in state.line.steps]
    return blake2b(b"".join(parts), digest_size=16).digest()


def _framed_row(state: State, kind: str, name: Any) -> bytes:
    kept = KEPT.get(kind)
    if kept is not None:
        return kept(kind, name, tuple(_KINDS[kind][0](state, name)))
    row = _row(state, kind, name)
    assert row is not None
    return _framed(_key(kind, name), row)


def _framed_value(kind: str, name: Any, value: tuple[Any, ...]) -> bytes:
    return _framed(_key(kind, name), _ENCODE(value).encode())


# Rows of which most are what they were when the last digest was made, and how many are kept: some are long. What is in
# them now is looked at each time: a digest must not believe that a row is as it was written.
SMALL_KEPT, LARGE_KEPT = 1 << 13, 8
_small, _large = lru_cache(SMALL_KEPT)(_framed_value), lru_cache(LARGE_KEPT)(_framed_value)
KEPT = {"incarnation": _small, "lease": _small, "fault": _small, "grant": _large, "checkpoints": _large}


def _framed(key: bytes, row: bytes) -> bytes:
    return b"%b%b%b%b" % (len(key).to_bytes(4, "big"), key, len(row).to_bytes(4, "big"), row)


def _frame(step: Step) -> bytes:
    row = _row_of(step)
    step.framed = _FRAME % (step.step, len(row).to_bytes(4, "big"), row)
    return step.framed


# `_framed` of a step's key, of which all have one length, and of a row.
_FRAME = (len("step/") + 20).to_bytes(4, "big") + b"step/%020d%b%b"


def load(state: State, rows: Mapping[bytes, bytes]) -> State:
    """This state, which is empty, as the one that wrote these rows."""
    for key, row in sorted(rows.items()):
        kind, _, name = key.decode().partition("/")
        _KINDS[kind][1](state, name, json.loads(row))
    state.dirty.clear()
    return state


def _key(kind: str, name: Any) -> bytes:
    """Numbers are padded, so that the order of the keys is that of the numbers."""
    if isinstance(name, tuple):
        name = "-".join(f"{number:020d}" for number in name)
    return f"{kind}/{name:020d}".encode() if isinstance(name, int) else f"{kind}/{name}".encode()


def _row(state: State, kind: str, name: Any) -> bytes | None:
    value = _KINDS[kind][0](state, name)
    if value is None or type(value) is bytes:
        return value
    return _ENCODE(value).encode()


def _meta(s: State, _: int) -> Any:
    return [
        [s.members.generation, s.members.open, s.members.settled, s.line.committed, s.line.lineage.hex(), s.line.plan],
        [s.shards.next_lease, s.requests_next, s.sequence, s.now_ms, s.done],
        [s.shards.committed_total, s.shards.quarantined_total, s.refused],
        [s.members.restoring, s.authors, s.accepted],
    ]


def _load_meta(s: State, _: str, row: Any) -> None:
    where, counters, totals, (s.members.restoring, authors, accepted) = row
    s.authors, s.accepted = tuple(authors), tuple((run, offset) for run, offset in accepted)
    s.members.generation, s.members.open, s.members.settled, s.line.committed, lineage, s.line.plan = where
    s.line.lineage = bytes.fromhex(lineage)
    next_lease, s.requests_next, s.sequence, s.now_ms, s.done = counters
    if isinstance(s.shards, Shards):
        s.shards.next_lease = next_lease
    else:
        s.shards.made = s.line.committed
    s.shards.committed_total, s.shards.quarantined_total, s.refused = totals


def _skipped(s: State, _: int) -> Any:
    return [s.line.skipped] if s.line.skipped else None


def _load_skipped(s: State, _: str, row: Any) -> None:
    (s.line.skipped,) = row


def _fenced(s: State, _: int) -> Any:
    return [s.members.fenced] if s.members.fenced else None


def _load_fenced(s: State, _: str, row: Any) -> None:
    (s.members.fenced,) = row


def _grant(s: State, _: int) -> Any:
    g = s.members.grant
    return g and [g.generation, g.members, g.source, g.source_step, g.committed, g.restore_file]


def _load_grant(s: State, _: str, row: Any) -> None:
    s.members.grant = records.Granted(row[0], tuple(row[1]), *row[2:])
    s.members.group = s.members.grant.members


def _incarnation(s: State, name: str) -> Any:
    i = s.members.incarnations[name]
    row = [i.worker, i.role, i.host, i.port, i.node, i.hardware, i.restarts, i.status, i.claim]
    by = [i.launch, i.launcher, i.place]
    if i.loss:
        return [*row, *by, i.loss]
    return row + by if any(by) else row  # of logs from before this was said, rows are what they were


def _load_incarnation(s: State, name: str, row: Any) -> None:
    who = s.members.incarnations[name] = Incarnation(*row)
    if who.status == "attached":
        s.members.attached[name] = None
    elif who.loss:
        s.members.losses[who.loss] = name


def _epoch(s: State, number: int) -> Any:
    e = s.shards.epochs[number]
    return [e.cursor, list(e.returned), list(e.committed), list(e.quarantined), sorted(e.attempts.items())]


def _load_epoch(s: State, name: str, row: Any) -> None:
    cursor, returned, committed, quarantined, attempts = row
    sets = [IntervalSet((a, b) for a, b in part) for part in (returned, committed, quarantined)]
    s.shards.epochs[int(name)] = Epoch(cursor, sets[0], sets[1], sets[2], {shard: n for shard, n in attempts})  # noqa: C416


def _lease(s: State, number: int) -> Any:
    x = s.shards.leases.get(number) if isinstance(s.shards, Shards) else None
    return x and [x.shards, x.incarnation, x.generation, x.epoch, x.start, x.front, x.end, x.token]


def _load_lease(s: State, name: str, row: Any) -> None:
    assert isinstance(s.shards, Shards), name
    s.shards.hold(int(name), Lease(*row))


def _step(s: State, number: int) -> bytes | None:
    if not s.line.steps or not s.line.steps[0].step <= number <= s.line.steps[-1].step:
        return None
    return _row_of(s.line.steps[number - s.line.steps[0].step])


def _row_of(step: Step) -> bytes:
    # The JSON of [ranges, lineage], put together by hand: five times as fast, and there is one for every step.
    return _row_with(len(step.ranges)) % (*step.ranges, b2a_hex(step.lineage))


@lru_cache(maxsize=64)
def _row_with(numbers: int) -> bytes:
    return b'[[%b],"%%b"]' % b",".join([b"%d"] * numbers)


def _load_step(s: State, name: str, row: Any) -> None:
    s.line.steps.append(Step(int(name), tuple(row[0]), bytes.fromhex(row[1])))
    s.line.step_numbers += len(row[0])


def _checkpoints(s: State, _: int) -> Any:
    return [(c.step, c.lineage.hex(), c.file, c.committed) for c in s.line.checkpoints]


def _load_checkpoints(s: State, _: str, row: Any) -> None:
    s.line.checkpoints = [
        Checkpoint(step, bytes.fromhex(h), file, tuple((e, tuple((a, b) for a, b in parts)) for e, parts in inside))
        for step, h, file, inside in row
    ]


def _stop(s: State, _: int) -> Any:
    return s.stop and [s.stop.step, s.stop.author, s.stop.reason]


def _load_stop(s: State, _: str, row: Any) -> None:
    s.stop = records.Stopped(*row)


def _requests(s: State, _: int) -> Any:
    return [s.requests_topic]


def _load_requests(s: State, _: str, row: Any) -> None:
    (s.requests_topic,) = row


def _batches(s: State, _: int) -> Any:
    b = s.shards
    assert isinstance(b, Batches)
    suspicions = [[x.pieces, [_clue(c) for c in x.failures]] for x in b.suspicions]
    holes = b.holes.exclusions, [found if found.since else found[:2] for found in b.holes.appended]
    row = [b.cursor, b.generation_of_steps, *holes, [_clue(c) for c in b.clues], suspicions]
    # As rows were before a batch size could change, where none did.
    return [*row, [b.changes, b.stated, b.plan]] if b.changes else row


def _load_batches(s: State, _: str, row: Any) -> None:
    b = s.shards
    assert isinstance(b, Batches)
    cursor, b.generation_of_steps, exclusions, appended, clues, suspicions, *resized = row
    for changes, b.stated, b.plan in resized:
        b.changes = tuple(Change(*change) for change in changes)
        b.layouts = Layouts(b.layouts.first, tuple((c.generation, c.batch_size) for c in b.changes))
    b.cursor = Cursor(*cursor)
    out = tuple(Exclusion(generation, Piece(*piece)) for generation, piece in exclusions)
    b.holes = Holes(s.spec.epochs, out, tuple(Appended(Piece(*piece), *known) for piece, *known in appended))
    b.clues = tuple(map(_clue_of, clues))
    b.suspicions = tuple(
        Suspicion(tuple(Piece(*piece) for piece in pieces), tuple(map(_clue_of, failures)))
        for pieces, failures in suspicions
    )


def _clue(c: Clue) -> Any:
    row = [c.incarnation, c.piece, c.step, c.key, c.reason, c.deadly]
    return row if c.counts else [*row, False]


def _clue_of(row: Any) -> Clue:
    incarnation, piece, *rest = row
    return Clue(incarnation, Piece(*piece), *rest)


def _blamed(s: State, number: int) -> Any:
    return s.shards.blamed.get(number) if isinstance(s.shards, Shards) else None


def _load_blamed(s: State, name: str, row: Any) -> None:
    assert isinstance(s.shards, Shards), name
    s.shards.blamed[int(name)] = tuple(Evidence(*found) for found in row)


def _space(s: State, _: int) -> Any:
    return [s.shards.space.flat, s.shards.space.closed] if s.shards.is_extended else None


def _load_space(s: State, _: str, row: Any) -> None:
    flat, closed = row
    s.shards.space = Space.of(flat, closed=closed)


def _fault(s: State, at: tuple[int, int]) -> Any:
    return s.shards.faults.get(at)


def _load_fault(s: State, name: str, row: Any) -> None:
    epoch, _, start = name.partition("-")
    s.shards.faults[int(epoch), int(start)] = Fault(*row)


def _part(s: State, name: str) -> Any:
    part = s.shards.parts.get(name) if isinstance(s.shards, DealtShards) else None
    if part is None or (name == NOBODY and not part.todo):
        return None
    return [part.dealt, [[epoch, list(inside)] for epoch, inside in sorted(part.todo.items())]]


def _load_part(s: State, name: str, row: Any) -> None:
    assert isinstance(s.shards, DealtShards), name
    dealt, todo = row
    s.shards.parts[name] = Part(dealt, {epoch: IntervalSet((a, b) for a, b in inside) for epoch, inside in todo})


_KINDS: dict[str, tuple[Callable[[State, Any], Any], Callable[[State, str, Any], None]]] = {
    "meta": (_meta, _load_meta),
    "grant": (_grant, _load_grant),
    "skipped": (_skipped, _load_skipped),
    "fenced": (_fenced, _load_fenced),
    "incarnation": (_incarnation, _load_incarnation),
    "epoch": (_epoch, _load_epoch),
    "lease": (_lease, _load_lease),
    "step": (_step, _load_step),
    "checkpoints": (_checkpoints, _load_checkpoints),
    "requests": (_requests, _load_requests),
    "stop": (_stop, _load_stop),
    "batches": (_batches, _load_batches),
    "blamed": (_blamed, _load_blamed),
    "fault": (_fault, _load_fault),
    "space": (_space, _load_space),
    "part": (_part, _load_part),
}
