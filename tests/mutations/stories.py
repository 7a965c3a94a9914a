"""Short scripted stories, for what random worlds meet too seldom: each is a check that passes while the rules hold."""

from __future__ import annotations

from dataclasses import replace

from antdt.worker.plans import Plans
from antdt.worker.session import Composition, Phase, Session, SessionOptions, Where
from antdt_schemas import lineage, records
from antdt_schemas.records import Status

from tests.helpers.ledger import SPEC, Bench
from tests.helpers.memory_ledger import MemoryLedger

OPTIONS = SessionOptions(prefetch_steps=2, prefetch_s=0.0)


def joined(spec: records.JobSpec = SPEC, *names: str) -> Bench:
    """A job in its first generation."""
    bench = Bench(spec)
    bench.join(*(names or ("w0.0", "w1.0")))
    assert bench.state.members.open
    return bench


def exited(bench: Bench, who: str, *at: int) -> None:
    """Its launcher says that it is dead, and what it was at; nobody need be answered."""
    bench.ledger.run([bench.request(who, records.Exited(-9, "killed", at))])


def regroup(bench: Bench, who: str, claim: int | None, at: bytes = b"") -> records.Reply:
    """A member asks for the next generation."""
    return bench.say(who, records.Regroup(bench.state.members.generation, claim, at, "h", 1))


# -- the ledger


def every_request_is_consumed_once() -> None:
    """The next leader goes on where the last one stopped."""
    bench = Bench()
    bench.broker.send(bench.request("w0.0", records.Join("worker", "h", 1, "n", "", 0, SPEC)))
    assert bench.ledger.append()
    bench.ledger.read_back()
    assert not MemoryLedger(bench.broker).append()


def an_answer_that_was_lost_is_told_again() -> None:
    """Whatever a worker holds is in every answer: nothing leaks when one is lost."""
    bench = joined()
    first = bench.lease("w0.0", 10)
    assert first
    assert bench.lease("w0.0", 10) == first


def nobody_is_granted_before_everybody_has_asked() -> None:
    """Who has not asked may still complete a step, and would be a step ahead of what is granted."""
    bench = joined(SPEC, "w0.0", "w1.0")
    regroup(bench, "w0.0", 0, lineage.ROOT)
    assert bench.state.members.generation == 1
    regroup(bench, "w1.0", 0, lineage.ROOT)
    assert bench.state.members.generation == 2


def a_closed_generation_commits_nothing() -> None:
    """The reporter of the old generation wakes up when the new one, with the same reporter, has its samples."""
    bench = joined()
    held = bench.lease("w0.0", 10)
    old = records.Commit(1, 1, ((*held[:4], 4),), (0,), b"", -1)
    exited(bench, "w1.0")
    assert bench.say("w0.0", old).status is Status.CLOSED
    regroup(bench, "w0.0", 0, lineage.ROOT)
    assert bench.state.members.generation == 2
    assert bench.say("w0.0", old).status is not Status.REFUSED
    assert bench.state.line.committed == 0


def a_source_holds_all_that_is_committed() -> None:
    """A member that is behind is no source: there is a file, or nothing."""
    bench = joined()
    held = bench.lease("w0.0", 20)
    bench.commit("w0.0", (*held[:4], 4))
    exited(bench, "w0.0")
    regroup(bench, "w1.0", 0, lineage.ROOT)
    assert bench.state.members.grant is not None
    assert bench.state.members.grant.source is None
    assert bench.state.line.committed == 0


def a_zombie_that_is_furthest_is_no_source() -> None:
    """It has applied a step, is stopped and given up; the others do the step anew and die; it wakes up as furthest."""
    bench = joined()
    mine = bench.lease("w0.0", 10)
    exited(bench, "w1.0")
    regroup(bench, "w0.0", 0, lineage.ROOT)
    bench.commit("w0.0", (*mine[:4], 4))
    exited(bench, "w0.0")
    assert regroup(bench, "w1.0", 7, b"another branch").status is Status.LOST
    bench.join("w1.1")
    assert bench.state.members.grant is not None
    assert bench.state.members.grant.source is None


def a_rollback_voids_the_claims_that_were_made() -> None:
    """A member has asked with its model's step when the operator rolls back: that model is of the branch undone."""
    bench = joined()
    held = bench.lease("w0.0", 20)
    bench.commit("w0.0", (*held[:4], 4))
    bench.say("w0.0", records.Checkpoint(1, 1, bench.lineage, "one.pt"))
    bench.commit("w0.0", (held[0], held[1], 0, 4, 6))
    regroup(bench, "w0.0", 2, bench.lineage)
    bench.say("operator", records.Rollback(1, "somebody", "the loss diverged"))
    regroup(bench, "w1.0", 2, bench.lineage)
    assert bench.state.members.grant is not None
    assert (bench.state.members.grant.source, bench.state.members.grant.restore_file) == (None, "one.pt")


def a_shard_in_the_model_is_never_quarantined() -> None:
    """Its holder is lost for the last time allowed, and the survivors have it in their model."""
    bench = joined(replace(SPEC, max_attempts=1))
    lost = bench.lease("w1.0", 10)
    exited(bench, "w1.0", *lost[2:])
    regroup(bench, "w0.0", 1, b"")
    assert bench.commit("w0.0", lost[:5]).status is Status.OK
    assert bench.state.shards.quarantined_total == 0
    assert bench.state.shards.committed_total == 10


def who_leaves_costs_no_attempt() -> None:
    """Drained on purpose: no sample is to blame."""
    bench = joined(replace(SPEC, max_attempts=1))
    bench.lease("w1.0", 10)
    bench.say("w1.0", records.Leave(1))
    regroup(bench, "w0.0", 0, lineage.ROOT)
    bench.say("w0.0", records.Commit(2, 1, (), (), b"", -1))
    assert (bench.state.shards.quarantined_total, list(bench.state.shards.epoch(0).returned)) == (0, [(0, 10)])


def the_end_is_noticed_whatever_brings_it() -> None:
    """The last range is quarantined at a settlement, after the last checkpoint: nobody writes another one."""
    bench = joined(replace(SPEC, samples=20, max_attempts=1, batch_size=10))
    mine, lost = bench.lease("w0.0", 10), bench.lease("w1.0", 10)
    bench.commit("w0.0", mine[:5])
    bench.say("w0.0", records.Checkpoint(1, 1, bench.lineage, "one.pt"))
    exited(bench, "w1.0", *lost[2:])
    regroup(bench, "w0.0", 1, bench.lineage)
    bench.say("w0.0", records.Commit(2, 2, (), (), bench.lineage, -1))
    assert bench.state.shards.quarantined_total == 10
    assert bench.state.done == "one.pt"


def a_lease_that_was_taken_from_is_not_released() -> None:
    """Half of it is in the model."""
    bench = joined()
    held = bench.lease("w0.0", 10)
    bench.commit("w0.0", (*held[:4], 4))
    assert bench.say("w0.0", records.Release(1, held[0], held[1])).status is Status.REFUSED


# -- a worker's session


def member(rank: int = 0, restore_file: str | None = None) -> Session:
    """A session that was granted generation 1."""
    session = Session("w0", "w0.0", SPEC, Where("h", 1), OPTIONS)
    session.tick(1.0)
    session.on_reply(reply(grant=granted(1, rank, restore_file)))
    assert session.phase is Phase.MEMBER
    return session


def granted(generation: int, rank: int = 0, restore_file: str | None = None) -> records.Grant:
    """A grant of two members; w1.0 is the source where there is no file."""
    names = ("w0.0", "w1.0") if rank == 0 else ("w1.0", "w0.0")
    members = tuple(records.Member(n, n[:2], "h", 1) for n in names)
    source = None if restore_file is not None else "w1.0"
    return records.Grant("run", generation, members, source, None if source is None else 0, 0, restore_file)


def reply(
    number: int = -1, status: Status = Status.OK, grant: records.Grant | None = None, **other: int
) -> records.Reply:
    """A reply to w0.0."""
    generation = grant.generation if grant is not None else other.get("generation", 1)
    return records.Reply("w0", "w0.0", number, status, "", generation, other.get("committed", 0), False, (), grant, "")


def sent(session: Session, now_s: float, kind: type) -> records.Request | None:
    """What it sends now of this kind."""
    return next((r for r in session.tick(now_s) if isinstance(r.body, kind)), None)


def who_was_granted_a_file_claims_nothing_until_it_has_it() -> None:
    """After a roll-back its own model is at a later step, of a branch that is undone."""
    session = member(restore_file="step-3.pt")
    session.regroup(7, b"old branch")
    request = sent(session, 2.0, records.Regroup)
    assert request is not None and isinstance(request.body, records.Regroup)
    assert request.body.claim is None


def an_event_of_a_file_that_was_lost_is_sent_again() -> None:
    """Until it is answered."""
    session = member()
    session.files.wrote(records.Checkpoint(1, 0, lineage.ROOT, "zero.pt"))
    assert sent(session, 2.0, records.Checkpoint)
    assert sent(session, 9.0, records.Checkpoint)


def a_refused_file_makes_room_for_the_next() -> None:
    """Also where the refusal comes late, to a question that was asked twice, and where it comes twice."""
    session = member()
    session.files.wrote(records.Checkpoint(1, 0, lineage.ROOT, "zero.pt"))
    first, second = sent(session, 2.0, records.Checkpoint), sent(session, 9.0, records.Checkpoint)
    assert first is not None and second is not None
    session.on_reply(reply(first.number, Status.REFUSED))
    assert session.files.newest is None
    session.files.wrote(records.Checkpoint(1, 0, lineage.ROOT, "another.pt"))
    session.on_reply(reply(second.number, Status.REFUSED))
    assert session.phase is Phase.MEMBER
    assert session.files.newest is not None


def a_late_answer_to_an_older_file_is_none_to_the_next() -> None:
    """It comes again when the next file is there and not sent yet: that one would never be told of."""
    session = member()
    session.files.wrote(records.Checkpoint(1, 0, lineage.ROOT, "zero.pt"))
    first = sent(session, 2.0, records.Checkpoint)
    assert first is not None
    session.on_reply(reply(first.number))
    session.files.wrote(records.Checkpoint(1, 5, lineage.ROOT, "five.pt"))
    session.on_reply(reply(first.number))
    session.on_reply(reply(-1))
    assert session.files.newest is not None
    session.on_reply(reply(committed=5))
    assert sent(session, 12.0, records.Checkpoint)


def a_grant_that_was_not_asked_for_is_of_another_history() -> None:
    """The log has lost its tail, and an old Join was read once more: the model at hand may be of what is lost."""
    session = member()
    session.begin([Composition(1, (), b"", 0)], lineage.ROOT)
    session.on_reply(reply(grant=granted(9)))
    assert session.phase is Phase.LOST


# -- plans


def a_decision_counts_once() -> None:
    """A zombie writes an old one again, under a plan of its own numbering."""
    plans = Plans(8)
    cause = records.Cause(0, 5, 0)
    first = records.Decision(
        cause, 1, records.Action.ADJUST_BS, (records.Assignment("w0", 8, 1),), 1.0, 0, "", "p", 1, "", 0.0, 0, 0
    )
    assert plans.add(first)
    assert not plans.add(replace(first, plan=2))
    assert plans.newest == 1
