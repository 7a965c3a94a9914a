"""A worker's session, one message at a time: what it asks for, and which answers count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from antdt.connect.client import renew
from antdt.worker.session import Composition, Phase, Session, SessionOptions, Where
from antdt_schemas import records
from antdt_schemas.records import Status

SPEC = records.JobSpec("d", 1000, bytes(16), "sequential", 1, 0, 4, 128, 4, 4, "allreduce")


def reply(number: int, status: Status = Status.OK, leases: Sequence[int] = (), **more: object) -> records.Reply:
    """To worker w0 in generation 1."""
    found = {"reason": "", "generation": 1, "committed": 0, "finished": False, "grant": None, "file": ""} | more
    return records.Reply(worker="w0", incarnation="w0.0", number=number, status=status, leases=tuple(leases), **found)


GRANT = records.Grant("run", 1, (records.Member("w0.0", "w0", "h", 1),), None, None, 0, "init")


@pytest.fixture
def session() -> Session:
    """The only member of generation 1; nothing was asked for yet."""
    made = Session("w0", "w0.0", SPEC, Where("h", 1), SessionOptions(prefetch_steps=3))
    made.tick(0.0)
    made.on_reply(reply(-1, grant=GRANT))
    made.begin([], b"")
    return made


def asked(session: Session, now_s: float, kind: type) -> list[records.Request]:
    return [r for r in session.tick(now_s) if isinstance(r.body, kind)]


def samples(session: Session, now_s: float) -> list[int]:
    """Samples that are asked for at this time."""
    return [r.body.samples for r in asked(session, now_s, records.Lease) if isinstance(r.body, records.Lease)]


def answer(session: Session, start: int, length: int, lease: int) -> None:
    """The newest request is answered with one more lease."""
    session.on_reply(reply(session.outbox.number, leases=(lease, 7, 0, start, length)))


def test_the_first_request_is_for_whole_steps(session: Session) -> None:
    assert samples(session, 1.0) == [3 * 32]
    assert samples(session, 1.1) == [], "patience while it is not answered"
    assert samples(session, 1.6) == [3 * 32]


def test_where_members_average_a_step_is_a_whole_period_of_each() -> None:
    spec = replace(SPEC, samples=100_000, strategy="local-sgd/every=8")
    session = Session("w0", "w0.0", spec, Where("h", 1), SessionOptions(prefetch_steps=3))
    session.tick(0.0)
    session.on_reply(reply(-1, grant=GRANT))
    session.begin([], b"")
    assert samples(session, 1.0) == [3 * 8 * 32]


def test_an_answer_lets_the_next_question_follow_at_once_and_a_wait_does_not(session: Session) -> None:
    samples(session, 1.0)
    answer(session, 0, 96, lease=1)
    assert samples(session, 1.01) == [], "enough is held"
    session.leases.take(64, 8)
    assert samples(session, 1.02) == [64 + 96]
    session.on_reply(reply(session.outbox.number, leases=(1, 7, 0, 0, 96)))
    assert samples(session, 1.03) == [], "it brought nothing new"
    assert samples(session, 1.15) == [64 + 96]


def test_less_is_held_towards_the_end(session: Session) -> None:
    samples(session, 1.0)
    answer(session, 700, 96, lease=1)
    session.leases.take(96, 8)
    left = 1000 - 796
    assert samples(session, 1.1) == [96 + max(32, left * 32 // (2 * 128))]


def test_a_grant_that_is_told_twice_settles_nothing(session: Session) -> None:
    session.on_reply(reply(-1, grant=GRANT))
    session.proven(0)
    assert len(asked(session, 1.0, records.Commit)) == 1, "the first commit of a generation, though it is empty"


def test_a_repeated_answer_to_the_last_checkpoint_is_none_to_the_next(session: Session) -> None:
    session.applied(Composition(1, (1, 7, 0, 0, 4), b"", 0))
    session.files.newest = records.Checkpoint(1, 0, bytes(16), "first")
    (first,) = asked(session, 1.0, records.Checkpoint)
    session.on_reply(reply(first.number))
    assert session.files.newest is None
    session.files.newest = records.Checkpoint(1, 1, bytes(16), "second")
    session.on_reply(reply(first.number, committed=1))
    assert session.files.newest is not None
    assert len(asked(session, 2.0, records.Checkpoint)) == 1


def test_when_somebody_runs_out_what_is_held_for_later_goes_back(session: Session) -> None:
    samples(session, 1.0)
    leases = [v for n in range(1, 6) for v in (n, 7, 0, 96 * (n - 1), 96)]
    session.on_reply(reply(session.outbox.number, leases=leases))
    session.leases.take(32, 8)
    session.leases.observe(128, 128)
    assert session.leases.untaken == 448, "nobody ran out"
    session.leases.observe(96, 128)
    assert session.leases.untaken == 64, "two steps are kept"
    (gone,) = asked(session, 1.1, records.Release)
    assert gone.body == records.Release(1, 5, 7, (4, 7, 3, 7, 2, 7)), "all of it in one request"
    assert asked(session, 1.2, records.Release) == [], "patience while it is not answered"
    (again,) = asked(session, 1.7, records.Release)
    session.on_reply(reply(gone.number, leases=leases[:5]))
    session.on_reply(reply(again.number, leases=leases[:5]))
    assert asked(session, 9.0, records.Release) == []


def test_a_ledger_that_is_away_for_an_hour_leaves_no_heap_of_releases(session: Session) -> None:
    """Nor is anybody ended by what it says of one that was asked for long ago."""
    samples(session, 1.0)
    leases = [v for n in range(1, 200) for v in (n, 7, 0, 32 * (n - 1), 32)]
    session.on_reply(reply(session.outbox.number, leases=leases))
    session.leases.take(32, 8)
    session.leases.observe(96, 128)
    gone = [r for s in range(1, 3600) for r in asked(session, float(s), records.Release)]
    assert len(gone) <= 1810, "one at a time, however many leases there are"
    assert len(session.leases._offered) <= 64
    for request in (gone[0], gone[900], gone[-1], *gone[-3:]):
        session.on_reply(reply(request.number))
    assert session.phase is Phase.MEMBER
    assert asked(session, 3700.0, records.Release) == []


def test_a_newcomer_says_who_it_is_and_whom_it_waits_for() -> None:
    session = Session("w0", "w0.9", SPEC, Where("h", 1, "n", "", 0, "launch", "me@h:1", "here", take_over=True))
    (join,) = asked(session, 0.0, records.Join)
    body = join.body
    assert isinstance(body, records.Join)
    assert (body.launch, body.launcher, body.place, body.take_over) == ("launch", "me@h:1", "here", True)
    session.on_reply(replace(reply(1, Status.WAIT, reason="w0.0 of you@h:2 has it"), incarnation="w0.9"))
    assert (session.phase, session.reason) == (Phase.JOINING, "w0.0 of you@h:2 has it")
    assert len(asked(session, 1.0, records.Join)) == 1, "it asks again"
    session.on_reply(replace(reply(2, Status.OCCUPIED, reason="you@h:2 has it"), incarnation="w0.9"))
    assert (session.phase, session.reason) == (Phase.OUSTED, "you@h:2 has it")
    assert session.tick(9.0) == []
    assert not renew(session, "w0.10").where.take_over, "once"


def test_who_is_displaced_is_somebody_else_now_and_who_is_lost_may_come_back(session: Session) -> None:
    other = Session("w0", "w0.0", SPEC, Where("h", 1))
    other.on_reply(reply(-1, grant=GRANT))
    session.on_reply(reply(1, Status.DISPLACED, reason="w0.1 has taken its place"))
    other.on_reply(reply(1, Status.LOST))
    assert (session.phase, other.phase) == (Phase.OUSTED, Phase.LOST)
    session.regroup(0, b"")
    session.on_reply(reply(-1, grant=GRANT))
    assert (session.phase, session.tick(9.0)) == (Phase.OUSTED, []), "nothing brings it back"


def test_of_what_is_for_all_only_a_grant_that_names_this_incarnation_is_taken() -> None:
    one, another = (Session("w0", name, SPEC, Where("h", 1)) for name in ("w0.0", "w0.1"))
    for session in (one, another):
        session.on_reply(replace(reply(-1, grant=GRANT), incarnation=""))
        session.on_reply(replace(reply(1, Status.REFUSED), incarnation=""))  # to somebody without a name
    assert (one.phase, one.rank, another.phase) == (Phase.MEMBER, 0, Phase.JOINING)
    one.on_reply(replace(reply(-1, Status.CLOSED, grant=GRANT), incarnation=""))
    assert one.phase is Phase.CLOSED, "it was told again, and is over"


@pytest.mark.parametrize(("status", "joined", "phase"), [
    (Status.REJOIN, False, Phase.JOINING), (Status.REJOIN, True, Phase.LOST),
    (Status.LOST, False, Phase.LOST), (Status.LOST, True, Phase.LOST),
])  # fmt: skip
def test_the_status_alone_says_whether_an_incarnation_is_over(status: Status, joined: bool, phase: Phase) -> None:
    """Whoever is not known and did not join yet joins; words for people change nothing."""
    for reason in ("", "lost and left"):
        one = Session("w0", "w0.0", SPEC, Where("h", 1))
        if joined:
            one.on_reply(reply(-1, grant=GRANT))
        one.on_reply(reply(1, status, reason=reason))
        assert one.phase is phase


def test_who_is_asked_to_leave_is_a_member_until_it_has(session: Session) -> None:
    session.on_reply(reply(-1, Status.LEAVE, reason="you@h:2 takes over w0."))
    assert (session.phase, session.told) == (Phase.MEMBER, "you@h:2 takes over w0.")
    assert samples(session, 1.0) == [3 * 32]


def commits(session: Session, now_s: float) -> list[list[int]]:
    """The steps of each commit that is sent now."""
    bodies = [r.body for r in asked(session, now_s, records.Commit)]
    return [list(range(b.first_step, b.first_step + len(b.plans))) for b in bodies if isinstance(b, records.Commit)]


def made(session: Session, step: int) -> None:
    session.applied(Composition(step, (1, 7, 0, 32 * step, 32), b"%016d" % step, 0))
    session.proven(step)


def test_steps_are_reported_together_unless_somebody_waits_for_the_ledger(session: Session) -> None:
    made(session, 1)
    assert commits(session, 1.0) == [[1]], "the first of a generation settles what those who are gone had"
    session.on_reply(reply(session.outbox.number, committed=1))
    for step, now_s in ((2, 1.1), (3, 1.2), (4, 1.3), (5, 1.4)):
        made(session, step)
        assert commits(session, now_s) == []
    assert commits(session, 1.5) == [[2, 3, 4, 5]]
    session.on_reply(reply(session.outbox.number, committed=5))
    made(session, 6)
    with session.waiting():
        assert commits(session, 1.54) == []
        assert commits(session, 1.56) == [[6]]
    session.on_reply(reply(session.outbox.number, committed=6))
    made(session, 7)
    session.leaving = True
    assert commits(session, 1.62) == [[7]]


def test_what_a_file_waits_for_is_reported_at_once(session: Session) -> None:
    made(session, 1)
    commits(session, 1.0)
    session.on_reply(reply(session.outbox.number, committed=1))
    made(session, 2)
    assert commits(session, 1.1) == []
    session.files.wrote(records.Checkpoint(1, 2, b"2" * 16, "file", b"h" * 32))
    assert commits(session, 1.11) == [[2]]


def test_a_process_that_ends_reports_what_it_has_made_answered_or_not(session: Session) -> None:
    made(session, 1)
    assert commits(session, 1.0) == [[1]]
    made(session, 2)
    session.applied(Composition(3, (1, 7, 0, 96, 32), b"3" * 16, 0))
    last = [r.body for r in session.last_words(1.01)]
    assert [b.first_step + len(b.plans) - 1 for b in last if isinstance(b, records.Commit)] == [2], "3 is not proven"
    assert session.last_words(1.02) == []


def test_many_fast_steps_do_not_wait_for_their_time(session: Session) -> None:
    made(session, 1)
    commits(session, 1.0)
    session.on_reply(reply(session.outbox.number, committed=1))
    for step in range(2, 2 + session.options.commit_steps_max + 1):
        made(session, step)
    assert len(commits(session, 1.01)[0]) == session.options.commit_steps_max
