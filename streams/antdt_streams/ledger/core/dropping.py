"""Deciding what a worker throws away that was too late: its samples are in no model, and the log says so.

It is the classic form of backup workers, for comparison: a job of this kind is not exactly once. What is dropped is in
quarantine, with the reason, so that an audit names it, and an operator may readmit it.
"""

from __future__ import annotations

from antdt_schemas import records
from antdt_schemas.records import Status
from antdt_schemas.strategies import drops

from antdt_streams.ledger.core.fences import open_member
from antdt_streams.ledger.core.leasing import leased
from antdt_streams.ledger.core.turn import Refusal, Turn

REASON = "a late contribution, dropped"


def drop(turn: Turn, request: records.Request, body: records.Drop) -> None:
    """Samples go from the front of their leases into quarantine, all of a request or none. What is in front of them
    must be committed first: until then it is to be asked again. What is gone from there was dropped before.
    """
    open_member(turn, request, body.generation)
    if not drops(turn.state.spec.strategy):
        raise Refusal("Nothing is dropped in this job: what is late is computed anew, and never lost.")
    if len(body.ranges) % 5:
        raise Refusal(f"{len(body.ranges)} numbers, not quintuples.")
    due, shards = list[records.Returned](), leased(turn.state)
    fronts = dict[int, int]()
    for i in range(0, len(body.ranges), 5):
        number, token, epoch, start, length = body.ranges[i : i + 5]
        lease = shards.leases.get(number)
        if lease is None or lease.token != token or lease.incarnation != request.incarnation or start < lease.front:
            continue
        front = fronts.get(number, lease.front)
        if lease.epoch != epoch or length < 1 or start + length > lease.end:
            raise Refusal(f"Lease {number} does not hold [{start}, {start + length}) of epoch {epoch}.")
        if start != front:
            turn.answer(request, Status.WAIT, f"Lease {number} is committed up to {front} only.")
            return
        fronts[number] = start + length
        due.append(records.Returned(number, epoch, start, length, False, True))
    for event in due:
        turn.emit(records.Blamed(request.incarnation, event.epoch, event.start, event.length, "", REASON))
        turn.emit(event)
    turn.answer(request, Status.OK)
