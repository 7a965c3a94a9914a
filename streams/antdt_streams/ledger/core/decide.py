"""What the ledger decides: one request in, events and answers out.

Rules (numbers of the exactly-once protocol)
  2   requests are level-triggered: every one may arrive again, at any time, and then changes nothing
  3   generations come only from here: closed and granted as the group's rules say (`groups`), or by an operator
  4   a lost incarnation is refused everything (`fences`); who takes whose place is decided when it joins (`joining`)
  6   whoever holds at least the committed step may be the source; nobody: roll back to the newest checkpoint (`groups`)
  7   steps, what they settle (8) and which files hold them (9): `committing`
  11  Done when nothing is left and the newest checkpoint holds it; looked at after every request
  12  Release names a lease that was never taken from (`leasing`)
  14  the batch size changes, and a job ends early, as `changing` says
  17  the end of a worker closes nothing where there are servers: the first of them is told whom to refuse (`turn`)
  --  what is dealt out ahead, and moved (`dealing`)
  18  the end of a server closes the generation, and all of them go back to one file (`groups`)
  20  an attempt counts against samples by evidence only (see `evidence`); whatever is in quarantine can be readmitted,
      also when the job is done, which it then is no longer; what holds for later epochs is said by `later`

Every request that is not carried out becomes a Refused event with its author.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from antdt_schemas import records
from antdt_schemas.batches import DROP, LASTS
from antdt_schemas.records import Status
from antdt_schemas.space import TOPIC, Space
from antdt_schemas.strategies import WATCHED, kind_of, servers_of

from antdt_streams.ledger.core import (
    changing,
    committing,
    dealing,
    dropping,
    evidence,
    joining,
    later,
    leasing,
    reading,
)
from antdt_streams.ledger.core.batches import Batches
from antdt_streams.ledger.core.groups import REASON_CHARS_MAX, RULES
from antdt_streams.ledger.core.turn import AUTHOR_CHARS_MAX, Refusal, Turn, close, refuse


def decide(turn: Turn, request: records.Request) -> None:
    """Decide one request; its events are in `turn.events` and applied, its answers in `turn.answers`."""
    state, body = turn.state, request.body
    try:
        if state.done is None or not _is_over(turn, request, state.done):
            _DECIDE[type(body)](turn, request, body)
    except Refusal as refusal:
        refuse(turn, request, str(refusal), refusal.status)
        if isinstance(body, records.Join) and refusal.status is Status.REFUSED:
            turn.callers.refuse(request.worker, str(refusal))
    if state.done is None:
        if not state.members.open:
            turn.carry_out(turn.rules.grant(state)[0])
        if state.line.checkpoints[-1].step == state.line.committed and state.finished:
            turn.emit(records.Done(state.line.checkpoints[-1].file))
            turn.tell_members(Status.END, evidence.in_quarantine(state))


def _is_over(turn: Turn, request: records.Request, done: str) -> bool:
    """Whether all that is to be said to this request is that the job is done."""
    state, body = turn.state, request.body
    if isinstance(body, records.Rollback) or (isinstance(body, records.Resize) and not body.plan):
        what = "nothing of it is undone" if isinstance(body, records.Rollback) else "no step is left to be resized"
        raise Refusal(f"The job is done, its model is {done}: {what}. Start a new job.")
    who = state.members.incarnations.get(request.incarnation)
    # Who was given up is told so, also when all is done without it: it may hang, and has to be ended.
    given_up = who is not None and who.gone and isinstance(body, records.Heartbeat)
    if given_up or isinstance(body, records.Leave | records.Readmit):
        return False
    other = changing.other_job(state, body.spec, over=True) if isinstance(body, records.Join) else ""
    missing = "" if isinstance(body, records.Join) else evidence.in_quarantine(state)
    turn.answer(request, Status.OVER if other else Status.END, other or missing)
    return True


def check_spec(spec: records.JobSpec) -> str | None:
    """What is wrong with a job, or None."""
    if spec.order == TOPIC:
        wrong = _wrong_topic(spec)
        if wrong:
            return wrong
    none = spec.growing or spec.strategy == WATCHED
    for name in ("samples", "epochs", "shard_size", "batch_size", "workers_min", "max_attempts"):
        least = 0 if name == "samples" and none else 1
        if getattr(spec, name) < least:
            return f"{name} is {getattr(spec, name)}: it must be at least {least}."
    if spec.strategy == WATCHED:
        return _wrong_watched(spec)
    if spec.samples < spec.workers_min and not spec.growing:
        return (
            f"The data set {spec.dataset!r} has {spec.samples} samples for {spec.workers_min} workers: "
            f"start at most {spec.samples} workers, or take more data."
        )
    if spec.batch_size < spec.workers_min:
        return (
            f"The global batch of {spec.batch_size} is smaller than the {spec.workers_min} workers: raise batch_size."
        )
    if spec.batches and spec.batches not in LASTS:
        return f"batches is {spec.batches!r}: this ledger knows {', '.join(LASTS)}."
    if spec.batches == DROP and spec.samples < spec.batch_size:
        return (
            f"last='drop' leaves nothing of {spec.samples} samples in batches of {spec.batch_size}: lower batch_size."
        )
    if kind_of(spec.strategy) not in RULES:
        return f"The strategy {spec.strategy!r} is not known to this ledger: it knows {', '.join(sorted(RULES))}."
    if servers_of(spec.strategy) and spec.batches:
        return (
            f"Under {spec.strategy} samples are leased, in no steps of a fixed size: leave last={spec.batches!r} out."
        )
    return None


def _wrong_watched(spec: records.JobSpec) -> str | None:
    """What it states must not look like an account of samples."""
    if spec.samples or spec.batches or spec.steps or spec.order == TOPIC:
        return "a job that is only watched has no samples, no steps and no topic of its own to account for."
    return None


def _wrong_topic(spec: records.JobSpec) -> str | None:
    flat = spec.blocks
    if len(flat) % 3 or any(flat[i + 1] > flat[i + 2] for i in range(0, len(flat), 3)):
        return "blocks of a topic are triples of a partition and the begin and end of its offsets."
    if spec.batches:
        return "a topic is read in one go: its steps have no fixed size."
    if spec.growing and spec.epochs != 1:
        return f"a topic that grows has one epoch, not {spec.epochs}: it has no end to begin again from."
    if Space.of(flat, closed=True).length != spec.samples:
        return f"the blocks of the topic do not have {spec.samples} positions."
    return None


def _rollback(turn: Turn, request: records.Request, body: records.Rollback) -> None:
    """An operator's wish; `author` is unique to it, so that the same request never undoes anything twice."""
    state, author = turn.state, body.author[:AUTHOR_CHARS_MAX]
    if not author:
        raise Refusal("A roll-back names its author.")
    if state.spec.strategy == WATCHED:
        raise Refusal("This job is only watched: go back to a checkpoint of the framework that trains it.")
    if author not in state.authors:
        steps = sorted({0, *(c.step for c in state.line.checkpoints)})
        step = steps[-1] if body.step < 0 else body.step
        if step not in steps:
            raise Refusal(f"No checkpoint of step {step} is kept: choose one of {', '.join(map(str, steps))}.")
        if state.members.open:
            close(turn, f"{author} rolls back to step {step}")
        turn.emit(records.RolledBack(step, body.reason[:REASON_CHARS_MAX], author))
    turn.answer(request, Status.OK)


def _readmit(turn: Turn, request: records.Request, body: records.Readmit) -> None:
    state, author, said = turn.state, body.author[:AUTHOR_CHARS_MAX], ""
    if state.why_stopped:
        raise Refusal(f"The job {state.why_stopped}. What is in quarantine is not trained any more: start a new job.")
    if isinstance(state.shards, Batches):
        found = list(state.shards.readmittable())
        for piece in found:
            turn.emit(records.Readmitted(*piece, author))
        if found and state.members.open:  # all members must know of it at the same step
            close(turn, f"{author} readmits samples" if author else "samples are readmitted")
        ahead = state.shards.quarantined_total - (later.lifted(state.shards) if found else 0)
        if ahead:
            said = f"{ahead:,} samples are still ahead of the steps: ask again once these have left them out."
    else:
        for number in sorted(state.shards.epochs):
            for start, end in list(state.shards.epochs[number].quarantined):
                turn.emit(records.Readmitted(number, start, end - start, author))
    turn.answer(request, Status.OK, said)


_DECIDE: dict[type, Callable[[Turn, records.Request, Any], None]] = {
    records.Join: joining.join,
    records.Regroup: joining.regroup,
    records.Lease: leasing.lease,
    records.Release: leasing.release,
    records.Commit: committing.commit,
    records.Checkpoint: committing.checkpoint,
    records.Heartbeat: joining.heartbeat,
    records.Leave: joining.leave,
    records.Exited: joining.exited,
    records.Readmit: _readmit,
    records.Rollback: _rollback,
    records.Failed: joining.failed,
    records.Resize: changing.resize,
    records.Stop: changing.stop,
    records.Examined: reading.examined,
    records.Grown: reading.grown,
    records.End: reading.end,
    records.Move: dealing.move,
    records.Drop: dropping.drop,
}
