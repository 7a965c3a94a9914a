"""A job as its log and its topics show it: what `antdt status` and `antdt audit` say."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import Any

from antdt_schemas import codec
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ForeignState, LogTampered
from antdt_schemas.space import TOPIC
from antdt_schemas.strategies import WATCHED
from antdt_schemas.topics import DECISIONS, SHARD_LOG

from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.reader import TopicReader
from antdt_streams.ledger.core import evidence, rows
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.groups import rules_of
from antdt_streams.ledger.core.state import State
from antdt_streams.ledger.snapshots import SERVICE
from antdt_streams.ledger.stored import Identity, fold_of
from antdt_streams.proof.audit import audit as audit_log
from antdt_streams.proof.audit import resizes
from antdt_streams.proof.replay import behind
from antdt_streams.proof.source import open_topic
from antdt_streams.proof.walker import Entries, Walker, chunks
from antdt_streams.storage.snapshots import newest
from antdt_streams.views.control import Control
from antdt_streams.views.liveness import services_of
from antdt_streams.views.places import samples
from antdt_streams.views.projection import Feed
from antdt_streams.views.standings import standings


def audit_of(connection: Connection, job: str) -> dict[str, Any]:
    with open_topic(connection, job) as log:
        return audit_log(log)


def status_of(connection: Connection, job: str) -> dict[str, Any]:
    """What `antdt status` shows, ready for JSON."""
    fold, start = newest_state(connection, job)
    state, control = fold.state, Control()
    with TopicReader(connection, job, DECISIONS) as reader:
        Feed(control).take(DECISIONS, reader.to_end())
    members = state.members if state and not state.done else None
    living = list(members.everybody()) if members else []
    return standing_of(fold) | {
        "job": job,
        "read_from": start,
        "standings": standings(connection, job, living) if living else {},
        "decisions": [codec.to_json(decision) for decision in control.decisions],
        "services": services_of(connection, job),
    }


def standing_of(fold: Fold) -> dict[str, Any]:
    state, genesis, office, count = fold.state, fold.genesis, fold.office, samples(fold.state)
    return {
        "run_id": genesis.run_id if genesis else None,
        "watched": state is not None and state.spec.strategy == WATCHED,
        "samples_total": count["total"],
        "committed": count["committed"],
        "leased": count["leased"],
        "quarantined": count["quarantined"],
        "faults": evidence.faults(state) if state else [],
        "step": state.line.committed if state else 0,
        "skipped_steps": state.line.skipped if state else 0,
        "steps_asked": state.spec.steps if state else 0,
        "batch_sizes": resizes(state) if state else [],
        "stopped": state.why_stopped if state else "",
        "generation": state.members.generation if state else 0,
        "open": bool(state and state.members.open),
        "next_generation": rules_of(state.spec.strategy).grant(state)[1] if state else "",
        "members": _members(state) if state else [],
        "attached": [state.members.incarnations[m].worker for m in state.members.attached] if state else [],
        "plan": state.line.plan if state else 0,
        "file": state.done if state else None,
        "checkpoints": [{"step": c.step, "file": c.file} for c in state.line.checkpoints] if state else [],
        "topic": _topic(state) if state else None,
        "accepted_losses": len(state.accepted) if state else 0,
        "leader": office.owner if office else None,
        "entries": fold.position.entries,
        "void_entries": fold.void_entries,
        "refused_reports": state.refused if state else 0,
        "digest": rows.digest(state).hex() if state else None,
    }


def _members(state: State) -> list[str]:
    """Workers of the newest generation; of a job that is only watched, which has no end, those that live."""
    named = [state.members.incarnations[m] for m in state.members.group]
    return [who.worker for who in named if state.spec.strategy != WATCHED or not who.gone]


def _topic(state: State) -> dict[str, Any] | None:
    """Of a job that trains on one: up to which offset of each partition, and whether nothing is added any more."""
    if state.spec.order != TOPIC:
        return None
    space = state.shards.space
    return {"name": state.spec.dataset, "ends": dict(sorted(space.ends.items())), "ended": space.closed}


def newest_state(connection: Connection, job: str) -> tuple[Fold, int]:
    """What the log says at its end, and where reading it began: behind the newest snapshot that it agrees with."""
    return timed_state(connection, job)[:2]


def timed_state(connection: Connection, job: str) -> tuple[Fold, int, int]:
    """The same, and the broker's time of the newest entry, 0 where there is none."""
    time_ms = 0

    def entries(start: int) -> Entries:
        nonlocal time_ms
        for raw in reader.to_end(start):
            time_ms = raw.time_ms
            yield raw.offset, raw.value

    with TopicReader(connection, job, SHARD_LOG) as reader:
        # One that belongs to what the log has lost is no reason to show nothing.
        with suppress(LogTampered):
            if (fold := _of_snapshot(connection, job, reader)) is not None:
                start = fold.position.next_offset
                return _read(fold, behind(fold, entries(start - 1))), start, time_ms
        return _read(Fold(), entries(0)), 0, time_ms


def early_state(connection: Connection, job: str) -> Fold:
    """What the newest snapshot says, if the log agrees with it; nothing, where there is none. Whoever goes on reading
    from there is soon at the end, and has something to show meanwhile.
    """
    with TopicReader(connection, job, SHARD_LOG) as reader:
        with suppress(LogTampered):
            if (fold := _of_snapshot(connection, job, reader)) is not None:
                last = islice(reader.to_end(fold.position.next_offset - 1), 1)
                list(behind(fold, ((raw.offset, raw.value) for raw in last)))
                return fold
        return Fold(cached=False)


def _of_snapshot(connection: Connection, job: str, reader: TopicReader) -> Fold | None:
    """None, too, where the newest one belongs to other rules."""
    topic_id = topics_admin.topic_ids(connection, job)[SHARD_LOG.suffix]
    snapshot = newest(connection, job, SERVICE, topic_id=topic_id, at_most=reader.ends()[0])
    if snapshot is not None:
        with suppress(ForeignState):
            return fold_of(snapshot.rows, Identity(job, topic_id), "the newest snapshot")[0]
    return None


def _read(fold: Fold, entries: Entries) -> Fold:
    walker = Walker(fold)
    for chunk in chunks(entries):
        walker.read(chunk)
    fold.check_doubts()
    return fold
