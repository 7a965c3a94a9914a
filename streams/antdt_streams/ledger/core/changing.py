"""Deciding what may change while a job runs: its global batch, and that it ends before all is trained.

Rules
  1. Another batch size counts for what is executed from the next generation on (`batches`). An open one is closed: all
     members derive steps alike, and no step is of two sizes.
  2. All scripts of a job state one batch size. Where nobody works any more, whoever launches it may state another one;
     while somebody does, that is refused. A plan and an operator change the size and not what is stated: a worker that
     is started again takes nothing back.
  3. A plan that is not newer than the newest that was carried out changes nothing, nor does an author twice.
  4. A stop names a step behind which no member of the open generation makes another one. It is never taken back.
"""

from __future__ import annotations

from dataclasses import replace

from antdt_schemas import records
from antdt_schemas.batches import DROP
from antdt_schemas.records import Status
from antdt_schemas.strategies import unit_of

from antdt_streams.ledger.core.batches import Batches
from antdt_streams.ledger.core.callers import Room
from antdt_streams.ledger.core.fences import member, named, open_member
from antdt_streams.ledger.core.groups import REASON_CHARS_MAX
from antdt_streams.ledger.core.others import difference
from antdt_streams.ledger.core.state import State
from antdt_streams.ledger.core.turn import AUTHOR_CHARS_MAX, Refusal, Turn, close, lose

RESIZES_MAX = 1024
HEARD = "a script has called agent.stop"


def other_job(state: State, spec: records.JobSpec, *, over: bool = False) -> str:
    """In what a worker wants another job than this one. over: it is done, and no other batch size can be had either."""
    if not isinstance(state.shards, Batches):
        return difference(state.spec, spec)
    stated = replace(state.spec, batch_size=state.shards.stated)
    return difference(stated, spec if over else replace(spec, batch_size=stated.batch_size))


def unfit(spec: records.JobSpec, batch_size: int, workers: int) -> str:
    """Why this job cannot have a global batch of this size, in a sentence; empty where it can."""
    unit = unit_of(spec.strategy)
    if batch_size < 1:
        return f"batch_size={batch_size}: the global batch needs at least one sample."
    if batch_size < workers * spec.local_batch_min:
        least = f" of at least {spec.local_batch_min} samples each" if spec.local_batch_min > 1 else ""
        return f"The global batch of {batch_size} is too small for {workers} workers{least}: raise batch_size."
    if spec.batches == DROP and spec.samples < batch_size:
        return f"last='drop' leaves nothing of {spec.samples} samples in batches of {batch_size}: lower batch_size."
    if unit and batch_size % unit:
        return (
            f"deterministic='bitwise': units of {unit} samples do not fit into a global batch of {batch_size}: take "
            f"{max(1, batch_size // unit) * unit}, or another multiple of {unit}."
        )
    return ""


def may_state(turn: Turn, request: records.Request, body: records.Join) -> bool:
    """Whether a newcomer's batch size is the one that all state, or nobody is left who states another; if somebody may
    be, it is told to wait.
    """
    shards, wanted = turn.state.shards, body.spec.batch_size
    if not isinstance(shards, Batches) or wanted == shards.stated:
        return True
    _check(turn.state, wanted, body.spec.workers_min)
    incarnations, over = turn.state.members.incarnations, list[str]()
    for name in [n for n, i in incarnations.items() if not i.gone and i.worker != request.worker]:
        who = incarnations[name]
        together = body.launch != "" and body.launch == who.launch
        if not together and body.place != "" and body.place == who.place:
            over.append(name)  # a place is held by one launch at a time, and its workers end with it
            continue
        room = Room.OCCUPIED if together else turn.callers.room(request.incarnation, name, take_over=False)
        if room is Room.OCCUPIED:
            turn.callers.forget(request.incarnation)
            raise Refusal(
                f"batch_size={wanted}: {named(name, who)} trains, and its script states {shards.stated}. End all "
                "workers and launch them with one batch_size, or change it for all by `antdt resize`."
            )
        said = f"batch_size={wanted}: the scripts of this job state {shards.stated}"
        turn.answer(request, Status.WAIT, f"{said}: waiting until {named(name, who)} has ended.")
        return False
    for name in over:
        lose(turn, name, f"{request.incarnation} has its place", request.incarnation)
    return True


def state_another(turn: Turn, request: records.Request, body: records.Join) -> None:
    """The newcomer, which has joined, states another batch size than the scripts before: from now on it counts."""
    shards, wanted = turn.state.shards, body.spec.batch_size
    if isinstance(shards, Batches) and wanted != shards.stated:
        author, reason = request.incarnation[:AUTHOR_CHARS_MAX], f"launched with batch_size={wanted}"
        turn.emit(records.Resized(turn.state.members.generation + 1, wanted, wanted, author, reason))


def resize(turn: Turn, request: records.Request, body: records.Resize) -> None:
    """A plan's or an operator's wish."""
    state, author = turn.state, body.author[:AUTHOR_CHARS_MAX]
    shards, members = state.shards, state.members
    if not author:
        raise Refusal("A change of the batch size names its author.")
    if body.plan:
        member(turn, request)
    if not isinstance(shards, Batches):
        said = "In this job samples are leased: the global batch is what the plan's shares add up to"
        raise Refusal(f"{said}. Take steps of a fixed size (AgentOptions.order).", _status(body))
    same = not body.plan and body.batch_size == shards.layout.batch_size
    known = any(change.author == author for change in shards.changes)
    if not (same or known or 0 < body.plan <= shards.plan):
        living = sum(not i.gone for i in members.incarnations.values())
        try:
            _check(state, body.batch_size, max(1, living))
        except Refusal as refusal:
            raise Refusal(str(refusal), _status(body)) from refusal
        if members.open:
            close(turn, f"{author} changes the global batch to {body.batch_size}")
        reason = body.reason[:REASON_CHARS_MAX]
        what = members.generation + 1, body.batch_size, shards.stated
        turn.emit(records.Resized(*what, author, reason, body.plan))
    turn.answer(request, Status.OK)


def _status(body: records.Resize) -> Status:
    """Of a refusal: a worker that passes on a plan has done nothing wrong, and goes on."""
    return Status.OK if body.plan else Status.REFUSED


def _check(state: State, batch_size: int, workers: int) -> None:
    """Raises Refusal for a size that cannot be."""
    assert isinstance(state.shards, Batches)
    wrong = unfit(state.spec, batch_size, workers)
    if not wrong and len(state.shards.layouts.changes) >= RESIZES_MAX:
        wrong = f"The batch size was changed {RESIZES_MAX} times: start a new job."
    if wrong:
        raise Refusal(wrong)


def stop(turn: Turn, request: records.Request, body: records.Stop) -> None:
    """A member reports that its script ends the training of all."""
    state = turn.state
    open_member(turn, request, body.generation)
    if state.stop is None:
        if body.step < max(1, state.line.committed):
            raise Refusal(f"Stopped behind step {body.step}; committed are {state.line.committed}.", Status.OK)
        turn.emit(records.Stopped(body.step, request.worker[:64], (body.reason or HEARD)[:REASON_CHARS_MAX]))
    turn.answer(request, Status.OK)
