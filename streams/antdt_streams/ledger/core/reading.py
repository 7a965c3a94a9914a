"""Deciding what is in a topic: what its readers have found at positions that they hold, and where it ends.

Rules
  Only whoever holds a position says what is there, and before it is in a step: so what is committed is known.
  A position without a sample (compacted, the marker of a transaction, aborted) stays in its lease, and is committed
  with its neighbours. A record that cannot be decoded goes into quarantine, which ends its lease there.
  A topic that grows gets new positions behind all others. It ends when somebody says so, with what is known by then.
"""

from __future__ import annotations

from antdt_schemas import records
from antdt_schemas.records import Status
from antdt_schemas.space import Block

from antdt_streams.ledger.core.evidence import TEXT_CHARS_MAX
from antdt_streams.ledger.core.fences import open_member
from antdt_streams.ledger.core.groups import REASON_CHARS_MAX
from antdt_streams.ledger.core.leasing import leased
from antdt_streams.ledger.core.shards import Shards
from antdt_streams.ledger.core.turn import AUTHOR_CHARS_MAX, Refusal, Turn


def examined(turn: Turn, request: records.Request, body: records.Examined) -> None:
    """What is not held any more was found by somebody else, or will be: it is passed over."""
    open_member(turn, request, body.generation)
    shards = leased(turn.state)
    if len(body.vacant) % 2 or not len(body.faulty) == len(body.keys) == len(body.reasons):
        raise Refusal("What was found are pairs of start and length; and faulty ones, each with a key and a reason.")
    lease = shards.leases.get(body.lease)
    if lease is not None and lease.incarnation == request.incarnation and lease.token == body.token:
        _vacant(turn, shards, body)
        found = zip(body.faulty, body.keys, body.reasons, strict=True)
        for at, key, reason in sorted(found, reverse=True):  # each ends the lease: from the end on
            if body.lease in shards.leases and lease.front <= at < lease.end:
                said = key[:TEXT_CHARS_MAX], reason[:TEXT_CHARS_MAX]
                turn.emit(records.SetAside(body.lease, lease.epoch, at, 1, *said))
    turn.answer(request, Status.OK, leases=True)


def _vacant(turn: Turn, shards: Shards, body: records.Examined) -> None:
    lease, places, values = shards.leases[body.lease], list[int](), iter(body.vacant)
    for start, length in zip(values, values, strict=True):
        low, high = max(start, lease.front), min(start + length, lease.end)
        if low < high:
            places += (low, high - low)
    if places:
        turn.emit(records.Vacant(body.lease, lease.epoch, tuple(places)))


def grown(turn: Turn, request: records.Request, body: records.Grown) -> None:
    """New offsets, as a member has heard of the broker."""
    open_member(turn, request, body.generation)
    space = leased(turn.state).space
    if not turn.state.spec.growing or len(body.ends) % 2:
        raise Refusal("The data of this job do not grow, or the ends are no pairs of a partition and an offset.")
    if not space.closed:
        known, values = _ends(turn), iter(body.ends)
        # Those of the begin are known: one that is not was added since, and belongs to the job from offset 0 on.
        new = [Block(p, known.get(p, 0), end) for p, end in zip(values, values, strict=True) if known.get(p, 0) < end]
        if new:
            flat = tuple(number for block in new for number in block)
            turn.emit(records.Extended(flat, False, "", ""))
    turn.answer(request, Status.OK)


def _ends(turn: Turn) -> dict[int, int]:
    """The next offset of each partition, also of those that have had no block yet."""
    begun = turn.state.spec.blocks
    return {begun[i]: begun[i + 2] for i in range(0, len(begun), 3)} | leased(turn.state).space.ends


def end(turn: Turn, request: records.Request, body: records.End) -> None:
    """A wish may arrive again: what has ended stays as it is."""
    state, author = turn.state, body.author[:AUTHOR_CHARS_MAX]
    if not state.spec.growing:
        raise Refusal("The data of this job do not grow: they end by themselves.")
    if not author:
        raise Refusal("Whoever ends a topic is named.")
    if not leased(state).space.closed:
        turn.emit(records.Extended((), True, author, body.reason[:REASON_CHARS_MAX]))
    turn.answer(request, Status.OK)
