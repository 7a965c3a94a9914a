"""Deciding who gets which samples: leases and releases.

Rules 2 and 12: an answer is all that the incarnation holds; what is released is named, and was never taken from.
"""

from __future__ import annotations

from antdt_schemas import records
from antdt_schemas.records import Status

from antdt_streams.ledger.core import dealing, evidence
from antdt_streams.ledger.core.dealt import DealtShards
from antdt_streams.ledger.core.fences import open_member
from antdt_streams.ledger.core.samples import Lease
from antdt_streams.ledger.core.shards import Shards
from antdt_streams.ledger.core.state import State
from antdt_streams.ledger.core.turn import Refusal, Turn

RANGES_PER_REPLY_MAX = 256
LEASES_AN_ANSWER = 32


def lease(turn: Turn, request: records.Request, body: records.Lease) -> None:
    """Top up what a member holds to so many samples."""
    open_member(turn, request, body.generation)
    refused = turn.rules.may_take(turn.state, request.incarnation)
    if refused is not None:
        raise Refusal(refused)
    state, shards, generation = turn.state, leased(turn.state), turn.state.members.generation
    missing = body.samples - shards.held_samples(request.incarnation, generation)
    room = RANGES_PER_REPLY_MAX - len(shards.held.get(request.incarnation, ()))
    missing = min(missing, _at_most(turn, shards, request.incarnation)) if state.stop is None and missing > 0 else 0
    # In pieces: what turns out to be too much is released by whole leases. A step takes a few of them at most.
    at_once = max(2 * state.spec.shard_size, state.spec.step_samples, missing // LEASES_AN_ANSWER)
    while missing > 0 and room > 0:
        piece = _next_piece(turn, shards, request.incarnation, min(missing, at_once))
        if piece is None:
            break
        epoch, start, end = piece
        suspects = evidence.suspects(shards, epoch, start, end)
        end = suspects or end
        touched = len(shards.between(start, end))
        event = records.Leased(shards.next_lease, touched, request.incarnation, generation, epoch, start, end - start)
        turn.emit(event)
        missing -= end - start
        room -= 1
        if suspects:
            break  # the others are for somebody else
    status = Status.OK if shards.held.get(request.incarnation) else Status.WAIT
    turn.answer(request, status, leases=True, loads=missing > 0)


def leased(state: State) -> Shards:
    """The samples of a job that leases them."""
    if not isinstance(state.shards, Shards):
        raise Refusal("Nothing is leased in this job: its steps have a fixed size.")
    return state.shards


def _at_most(turn: Turn, shards: Shards, who: str) -> int:
    """At the end of the data nobody takes what the others could do meanwhile; nor all of a part that is its own."""
    if isinstance(shards, DealtShards):
        return dealing.half_of(dealing.own(turn, shards, who)[1], shards.spec.shard_size)
    state, takers = turn.state, turn.rules.takers(turn.state)
    left = state.samples_total - state.shards.committed_total - state.shards.quarantined_total
    return max(state.spec.shard_size, -(-left // (2 * max(1, takers))))


def _next_piece(turn: Turn, shards: Shards, who: str, limit: int) -> tuple[int, int, int] | None:
    """The first samples that nobody holds: (epoch, start, end), whole shards where nothing came back. Where samples are
    dealt ahead, of this worker's part.
    """
    size, samples = shards.spec.shard_size, shards.samples
    if isinstance(shards, DealtShards):
        number, mine = dealing.own(turn, shards, who)
        start, end = mine.first() if mine else (0, 0)
        return (number, start, min(end, _shard_end(start, limit, size))) if mine else None
    for number in range(shards.first_epoch_with_work, shards.spec.epochs):
        epoch = shards.epochs.get(number)
        if epoch is not None and epoch.returned:
            start, end = epoch.returned.first()
            return number, start, min(end, _shard_end(start, limit, size))
        cursor = epoch.cursor if epoch is not None else 0
        if cursor < samples:
            return number, cursor, min(samples, _shard_end(cursor, limit, size))
    return None


def _shard_end(start: int, limit: int, size: int) -> int:
    """End of the last shard that a run of about `limit` samples from `start` touches."""
    return -(-(start + max(limit, 1)) // size) * size


def release(turn: Turn, request: records.Request, body: records.Release) -> None:
    """What is not held went back before: a request may arrive again, long after it was answered."""
    open_member(turn, request, body.generation)
    shards = leased(turn.state)
    if len(body.more) % 2:
        raise Refusal(f"{len(body.more)} numbers, not pairs of a lease and its token.")
    values = iter((body.lease, body.token, *body.more))
    held = dict[int, Lease]()
    for number, token in zip(values, values, strict=True):
        lease = shards.leases.get(number)
        if lease is None or lease.incarnation != request.incarnation or lease.token != token:
            continue
        if lease.front != lease.start:
            raise Refusal(f"Lease {number} was taken from.")
        held[number] = lease
    for number, lease in held.items():
        turn.emit(records.Returned(number, lease.epoch, lease.front, lease.end - lease.front, False, False))
    turn.answer(request, Status.OK, leases=True)
