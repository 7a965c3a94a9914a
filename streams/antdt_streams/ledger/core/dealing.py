"""Deciding who is dealt what, ahead of being leased it; and whether a worker may take over from another one.

Rules
    Whatever is nobody's is dealt evenly, in whole shards, among all workers that are there, when one of them asks for
    samples: an epoch that begins, the part of a worker that is gone, what came back of one, and what was undone.
    A worker leases from its own part, the first epoch first, and at most half of it at once.
    even: who comes in the middle of an epoch is dealt its share of all that nobody has begun. Who is done with its part
    goes on to the next epoch.
    colony: an epoch is dealt when all of the one before is begun. Who has nothing to begin asks for what another one
    has not begun: it chooses what and from whom, here it is only looked at whether that is so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from antdt_schemas import records
from antdt_schemas.records import Status
from antdt_schemas.strategies import COLONY, EVEN

from antdt_streams.ledger.core.dealt import NOBODY, DealtShards
from antdt_streams.ledger.core.fences import open_member
from antdt_streams.ledger.core.groups import natural
from antdt_streams.ledger.core.intervals import IntervalSet
from antdt_streams.ledger.core.state import State
from antdt_streams.ledger.core.turn import Refusal, Turn

LOADS_PER_REPLY_MAX = 32


def own(turn: Turn, shards: DealtShards, who: str) -> tuple[int, IntervalSet]:
    """The first epoch of which a worker has something to begin, and what; whatever is nobody's there is dealt before.
    Of no epoch: nothing.
    """
    for number in range(shards.first_epoch_with_work, shards.spec.epochs):
        _deal(turn, shards, number, who)
        mine = shards.todo(who, number)
        if mine:
            return number, mine
        epoch = shards.epochs.get(number)
        if shards.sharding == COLONY and epoch is not None and epoch.returned:
            break  # there is something of this epoch to be taken over
    return 0, IntervalSet()


def half_of(mine: IntervalSet, shard_size: int) -> int:
    """Samples that are leased of a part at once: what is leased can neither be dealt again nor be taken over."""
    return max(shard_size, -(-mine.total // 2))


def _deal(turn: Turn, shards: DealtShards, number: int, who: str) -> None:
    epoch = shards.epochs.get(number)
    never = 0 if epoch is None else epoch.cursor
    begins = [(never, shards.samples)] if never < shards.samples else []
    part = shards.parts.get(who)
    comes = shards.sharding == EVEN and (part is None or number not in part.todo)
    unstarted = epoch.returned if comes and epoch is not None else shards.todo(NOBODY, number)
    pieces = [*unstarted, *begins]
    if not pieces:
        return
    anew = comes and epoch is not None
    attached = turn.state.members.attached
    loads = dict.fromkeys(attached, 0) if anew else {n: shards.todo(n, number).total for n in attached}
    order = sorted(attached, key=lambda n: (loads[n], natural(turn.state.members.incarnations[n].worker), n))
    flat = (number for piece in evenly(pieces, len(order), shards.spec.shard_size) for number in piece)
    turn.emit(records.Dealt(number, tuple(order), tuple(flat), anew))


def evenly(pieces: Iterable[tuple[int, int]], parts: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(part, start, length): intervals in order, cut between shards of so many samples, so that each part has as many
    shards as another one, or one less; it is the last ones that have less.
    """
    pieces = list(pieces)
    each, more = divmod(sum(-(-end // size) - start // size for start, end in pieces), parts)
    part, left = 0, each + (more > 0)
    for start, end in pieces:
        at = start
        while at < end:
            until = min(end, (at // size + left) * size)
            yield part, at, until - at
            left -= -(-until // size) - at // size
            at = until
            if not left:
                part += 1
                left = each + (part < more)


def move(turn: Turn, request: records.Request, body: records.Move) -> None:
    """A worker takes over what another one has not begun. A request that comes again finds it done, or begun."""
    open_member(turn, request, body.generation)
    refused = turn.rules.may_take(turn.state, request.incarnation)
    if refused is not None:
        raise Refusal(refused)
    shards, who, end = turn.state.shards, request.incarnation, body.start + body.length
    if not isinstance(shards, DealtShards) or shards.sharding != COLONY:
        raise Refusal("Nobody takes over samples in this job: its strategy names no sharding of a colony.")
    if body.length < 1 or body.source == who:
        raise Refusal(f"{body.length} samples of {body.source} are nothing that {who} can take over.")
    if not shards.has(who, body.epoch, body.start, end):
        if body.source == NOBODY or not shards.has(body.source, body.epoch, body.start, end):
            said = f"[{body.start}, {end}) of epoch {body.epoch}"
            raise Refusal(f"{said} is not, or not any more, what {body.source} has not begun.", Status.WAIT)
        turn.emit(records.Moved(body.source, who, body.epoch, body.start, body.length))
    turn.answer(request, Status.OK)


def loads(state: State, asker: str) -> tuple[records.Load, ...]:
    """What the others have not begun, for one that chooses from whom it takes over: the most of it first."""
    shards = state.shards
    if not isinstance(shards, DealtShards) or shards.sharding != COLONY:
        return ()
    found = []
    for name, part in shards.parts.items():
        last = max((epoch for epoch, inside in part.todo.items() if inside), default=-1)
        if last < 0 or name in (NOBODY, asker):
            continue
        held = sum(x.end - x.front for x in (shards.leases[n] for n in shards.held.get(name, ())))
        left = part.unstarted + held
        *_, (start, end) = part.todo[last]
        found.append((part.unstarted, records.Load(name, left, part.dealt - left, last, start, end - start)))
    found.sort(key=lambda one: (-one[0], one[1].incarnation))
    return tuple(load for _, load in found[:LOADS_PER_REPLY_MAX])
