"""Deciding what is in the model: commits, what they settle, and checkpoints.

Rules 7 to 9: steps are dense and lead to the lineage that the model has; leases of whoever is gone stay in limbo until
the next generation has reported what it began with; a checkpoint counts if its lineage is that of the ledger's chain.
Rule 17: where there are servers, leases of a lost worker stay in limbo until the first of them says that it refuses it.
Which member may commit, and what settles, is said by the group's rules (`groups`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy

from antdt_schemas import lineage, records
from antdt_schemas.limits import INIT_FILE
from antdt_schemas.records import Status

from antdt_streams.ledger.core import evidence
from antdt_streams.ledger.core.batches import Batches
from antdt_streams.ledger.core.fences import open_member
from antdt_streams.ledger.core.shards import Shards
from antdt_streams.ledger.core.state import State
from antdt_streams.ledger.core.turn import AUTHOR_CHARS_MAX, Refusal, Turn

AUTHORS_OF_SKIP_MAX = 64


def commit(turn: Turn, request: records.Request, body: records.Commit) -> None:
    """Steps are reported: those that are new are committed, all or none."""
    state = turn.state
    open_member(turn, request, body.generation)
    refused = turn.rules.may_commit(state, request.incarnation)
    if refused is not None:
        raise Refusal(refused)
    if len(body.plans) != len(body.compositions):
        raise Refusal(f"{len(body.compositions)} compositions and {len(body.plans)} plans.")
    new = range(max(body.first_step, state.line.committed + 1), body.first_step + len(body.compositions))
    if body.first_step > state.line.committed + 1:
        raise Refusal(f"Step {body.first_step} is committed before step {state.line.committed + 1}: a gap.")
    if state.stop is not None and new.stop - 1 > state.stop.step:
        raise Refusal(f"Step {new.stop - 1} is behind the end: the job {state.why_stopped}.")
    events = _validated(state, body, new)
    skipped = _skipped(body)
    for event in events:
        turn.emit(event)
        if event.step in skipped:
            turn.emit(skipped[event.step])
    if not state.members.settled and turn.rules.settles(state):
        _settle(turn)
    if min(body.log_seen, len(state.members.losses)) > state.members.fenced:
        _fence(turn, min(body.log_seen, len(state.members.losses)))
    turn.answer(request, Status.OK)


def _validated(state: State, body: records.Commit, new: range) -> list[records.Committed]:
    """Events of the steps that are new, or Refusal: all or nothing."""
    events: list[records.Committed] = []
    at = state.line.lineage
    ranges_of = _placed(state) if isinstance(state.shards, Batches) else _leased(state.shards)
    for step in new:
        flat = body.compositions[step - body.first_step]
        if len(flat) % 5:
            raise Refusal(f"The composition of step {step} has {len(flat)} numbers, not quintuples.")
        ranges = ranges_of(step, flat)
        at = lineage.next_lineage(at, step, ranges)
        plan, tells = body.plans[step - body.first_step], state.tells_each or step == new[-1]
        events.append(records.Committed(state.members.generation, step, ranges, at if tells else b"", plan))
    last = body.first_step + len(body.compositions) - 1
    if last >= state.line.committed and body.lineage and body.lineage != at:
        raise Refusal(f"After step {last} this model's lineage is {body.lineage.hex()}, the ledger's {at.hex()}.")
    return events


Ranges = Callable[[int, tuple[int, ...]], tuple[int, ...]]


def _placed(state: State) -> Ranges:
    """Steps of a fixed size: each is the next one, and nothing else is to be said of it."""
    trial = copy(state.shards)
    assert isinstance(trial, Batches)

    def ranges_of(step: int, flat: tuple[int, ...]) -> tuple[int, ...]:
        found = (*flat[:1], *flat[2:])
        wrong = trial.follows(found, state.members.generation)
        if wrong:
            raise Refusal(f"Step {step} is not the next one: {wrong}.")
        trial.pass_over(found)
        return found

    return ranges_of


def _leased(shards: Shards) -> Ranges:
    """Steps of what is leased: each takes from the front of live leases."""
    fronts = dict[int, int]()

    def ranges_of(step: int, flat: tuple[int, ...]) -> tuple[int, ...]:
        ranges: list[int] = []
        for i in range(0, len(flat), 5):
            number, token, epoch, start, length = flat[i : i + 5]
            lease = shards.leases.get(number)
            if lease is None or lease.token != token:
                raise Refusal(f"Step {step} names lease {number}, which is not live under that token.")
            front = fronts.get(number, lease.front)
            if lease.epoch != epoch or start != front or length < 1 or start + length > lease.end:
                raise Refusal(
                    f"Step {step} takes [{start}, {start + length}) of epoch {epoch} from lease {number}, "
                    f"which holds [{front}, {lease.end}) of epoch {lease.epoch}."
                )
            fronts[number] = start + length
            ranges += (number, epoch, start, length)
        return tuple(ranges)

    return ranges_of


def _skipped(body: records.Commit) -> dict[int, records.StepSkipped]:
    """Steps that were skipped because their gradient was not finite; the members know, nobody else can."""
    for skip in body.skipped:
        if not body.first_step <= skip.step < body.first_step + len(body.compositions):
            raise Refusal(f"Step {skip.step} is said to be skipped, but is not among those that are committed.")
    return {
        skip.step: records.StepSkipped(
            skip.step, tuple(a[:AUTHOR_CHARS_MAX] for a in skip.authors[:AUTHORS_OF_SKIP_MAX])
        )
        for skip in body.skipped
    }


def _settle(turn: Turn) -> None:
    """A generation has reported what it began with: what older generations still held is not in the model."""
    state, generation = turn.state, turn.state.members.generation
    turn.emit(records.Settled(generation))
    if isinstance(state.shards, Shards):
        _give_back(turn, [n for n, lease in state.shards.leases.items() if lease.generation < generation])


def _fence(turn: Turn, losses: int) -> None:
    """The first server takes nothing any more of who was lost up to here, and has reported what it took of them: what
    else they held is not in the model.
    """
    members, shards = turn.state.members, turn.state.shards
    before = members.fenced
    turn.emit(records.Fenced(members.generation, losses))
    assert isinstance(shards, Shards), "where there are servers, samples are leased"
    _give_back(turn, [n for loss in range(before + 1, losses + 1) for n in shards.held.get(members.losses[loss], ())])


def _give_back(turn: Turn, numbers: Iterable[int]) -> None:
    """What is left of these leases is to be done again. An attempt counts for those samples only against which there
    is evidence.
    """
    state = turn.state
    assert isinstance(state.shards, Shards)
    leases = state.shards.leases
    for number in sorted(numbers):
        lease = leases[number]
        epoch, at, end = lease.epoch, lease.front, lease.end
        for low, high in [*evidence.against(state.shards, number), (end, end)]:
            if at < low:
                turn.emit(records.Returned(number, epoch, at, low - at, False, False))
            for start, stop, out in _verdicts(state, epoch, low, high) if low < high else ():
                turn.emit(records.Returned(number, epoch, start, stop - start, True, out))
            at = high


def _verdicts(state: State, epoch: int, start: int, end: int) -> list[tuple[int, int, bool]]:
    """Cut [start, end), which counts, where the verdict changes: (start, end, quarantined)."""
    assert isinstance(state.shards, Shards)
    size, attempts, out = state.spec.shard_size, state.shards.epoch(epoch).attempts, list[tuple[int, int, bool]]()
    suffices = evidence.suffices(state, start, end)
    for shard in state.shards.between(start, end):
        low, high = max(start, shard * size), min(end, (shard + 1) * size)
        spent = suffices and attempts.get(shard, 0) + 1 >= state.spec.max_attempts
        if out and out[-1][2] == spent:
            out[-1] = (out[-1][0], high, spent)
        else:
            out.append((low, high, spent))
    return out


def checkpoint(turn: Turn, request: records.Request, body: records.Checkpoint) -> None:
    """A durable file is reported: it counts if its model is one of this line."""
    line = turn.state.line
    if line.lineage_at(body.step) != body.lineage:
        raise Refusal(f"The lineage of step {body.step} is not {body.lineage.hex()} in the ledger's chain.")
    known = any(c.file == body.file for c in line.checkpoints)
    if not known and body.file == INIT_FILE:
        raise Refusal(f"{INIT_FILE!r} is the model before any step.")
    if not known and body.step < line.checkpoints[0].step:
        raise Refusal(f"Step {body.step} is older than every checkpoint that is kept.")
    if not known:
        turn.emit(records.Checkpointed(body.step, body.lineage, body.file, body.digest[:16]))
    turn.answer(request, Status.OK)
