"""Who may take the place of a worker, and what becomes of whoever had it."""

from __future__ import annotations

from dataclasses import replace

from antdt_schemas import records
from antdt_schemas.records import Status
from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.callers import TAKE_OVER_MS
from antdt_streams.ledger.core.state import State

from tests.helpers.ledger import SPEC, Bench
from tests.helpers.memory_ledger import MemoryLedger

ALONE = replace(SPEC, workers_min=1, max_attempts=1)


def occupied(place: str = "") -> Bench:
    """w0.0 of launch `first` is the only member, and has taken samples."""
    bench = Bench(ALONE)
    bench.say("w0.0", bench.a_join("first", place))
    held = bench.lease("w0.0", 20)
    bench.commit("w0.0", (*held[:4], 4))
    return bench


def beat(bench: Bench, who: str = "w0.0") -> records.Reply:
    bench.broker.now_ms += 500
    return bench.say(who, records.Heartbeat(bench.state.members.generation, 1))


def status(bench: Bench, who: str) -> str:
    return str(bench.state.members.incarnations[who].status)


def test_a_second_launch_is_told_who_runs_the_worker_and_changes_nothing() -> None:
    bench = occupied()
    first = bench.say("w0.second", bench.a_join("second"))
    assert first.status is Status.WAIT, "the occupant may be dead for all that is known"
    assert "user@first:1" in first.reason
    assert beat(bench).status is Status.OK
    second = bench.say("w0.second", bench.a_join("second"))
    assert second.status is Status.OCCUPIED
    assert "w0.0 of user@first:1" in second.reason and "--take-over" in second.reason
    assert (bench.state.members.generation, bench.state.line.committed, status(bench, "w0.0")) == (1, 1, "member")
    assert "w0.second" not in bench.state.members.incarnations


def test_what_was_said_before_the_newcomer_asked_is_no_sign_of_life() -> None:
    bench = occupied()
    for _ in range(5):
        beat(bench)
    for _ in range(8):
        bench.broker.now_ms += 500
        assert bench.say("w0.second", bench.a_join("second")).status is Status.WAIT
    for _ in range(12):
        bench.broker.now_ms += 500
        bench.say("w0.second", bench.a_join("second"))
    assert status(bench, "w0.0") == "lost"
    assert bench.state.members.group == ("w0.second",)


def test_a_new_leader_begins_anew_and_comes_to_the_same() -> None:
    bench = occupied()
    bench.say("w0.second", bench.a_join("second"))
    bench.ledger = MemoryLedger(bench.broker)
    beat(bench)
    assert bench.say("w0.second", bench.a_join("second")).status is Status.WAIT
    beat(bench)
    assert bench.say("w0.second", bench.a_join("second")).status is Status.OCCUPIED


def test_its_own_launcher_starts_a_worker_again_at_once() -> None:
    bench = occupied()
    assert bench.say("w0.1", bench.a_join("first")).status is Status.OK
    assert status(bench, "w0.0") == "displaced"
    assert bench.state.members.group == ("w0.1",)


def test_whoever_holds_the_place_of_a_former_launch_has_outlived_it() -> None:
    bench = occupied("host/boot/1:2")
    assert bench.say("w0.elsewhere", bench.a_join("second", "host/boot/1:3")).status is Status.WAIT
    assert bench.say("w0.here", bench.a_join("second", "host/boot/1:2")).status is Status.OK
    assert status(bench, "w0.0") == "displaced"


def test_workers_without_a_launch_never_pass_for_each_others_restart() -> None:
    bench = Bench(ALONE)
    bench.say("w0.0", bench.a_join(""))
    assert bench.say("w0.1", bench.a_join("")).status is Status.WAIT


def test_a_displaced_one_is_told_so_whatever_it_asks_and_no_sample_is_to_blame() -> None:
    bench = occupied("here")
    bench.say("w0.new", bench.a_join("second", "here"))
    for body in (
        records.Heartbeat(1, 1),
        records.Lease(1, 10),
        records.Commit(1, 2, (), (), b"", -1),
        records.Regroup(1, 1, bench.lineage, "h", 1),
        bench.a_join("first", "here"),
    ):
        reply = bench.say("w0.0", body)
        assert reply.status is Status.DISPLACED, body
        assert "w0.new of user@second:1" in reply.reason
    bench.say("w0.new", records.Commit(bench.state.members.generation, 1, (), (), b"", -1))
    assert bench.state.members.settled
    assert (bench.state.shards.quarantined_total, bench.state.shards.epoch(0).attempts) == (0, {})


def test_two_launches_never_displace_each_other_for_ever() -> None:
    bench = occupied()
    asking = {"first": 0, "second": 0}
    for turn in range(40):
        launch = ("first", "second")[turn % 2]
        asking[launch] += 1
        beat(bench)
        bench.say(f"w0.{launch}{asking[launch]}", bench.a_join(f"{launch}{turn}"))
    assert [e for e in bench.events() if isinstance(e, records.Lost)] == []
    assert (bench.state.members.generation, bench.state.line.committed) == (1, 1)


def test_a_take_over_asks_the_occupant_to_leave_and_waits_until_it_has() -> None:
    bench = occupied()
    ask = bench.request("w0.new", bench.a_join("second", take_over=True))
    to_old, to_new = sorted(bench.ledger.run([ask]), key=lambda r: r.incarnation)
    assert (to_old.incarnation, to_old.status, to_new.status) == ("w0.0", Status.LEAVE, Status.WAIT)
    assert "user@second:1" in to_old.reason
    assert beat(bench).status is Status.OK, "it goes on to the end of its step"
    assert bench.say("w0.new", bench.a_join("second", take_over=True)).status is Status.WAIT
    file = records.Checkpoint(1, 1, bench.lineage, "one.pt")
    assert bench.say("w0.0", file).status is Status.OK
    bench.say("w0.0", records.Leave(1))
    assert bench.say("w0.new", bench.a_join("second", take_over=True)).status is Status.OK
    assert (status(bench, "w0.0"), bench.state.line.committed) == ("left", 1)
    grant = bench.state.members.grant
    assert grant is not None and grant.restore_file == "one.pt"


def test_an_occupant_that_does_not_leave_is_displaced_after_a_while() -> None:
    bench = occupied()
    for _ in range(TAKE_OVER_MS // 1_000):
        assert bench.say("w0.new", bench.a_join("second", take_over=True)).status is Status.WAIT
        beat(bench)
        bench.broker.now_ms += 500
    beat(bench)
    assert bench.say("w0.new", bench.a_join("second", take_over=True)).status is Status.OK
    assert status(bench, "w0.0") == "displaced"


def test_an_occupant_that_is_started_again_and_again_is_no_reason_to_wait_anew() -> None:
    bench = occupied()
    for life in range(TAKE_OVER_MS // 1_000):
        assert bench.say("w0.new", bench.a_join("second", take_over=True)).status is Status.WAIT
        bench.broker.now_ms += 500
        bench.say(f"w0.again{life}", bench.a_join("first"))
        bench.broker.now_ms += 500
    bench.broker.now_ms += 500
    assert bench.say("w0.new", bench.a_join("second", take_over=True)).status is Status.OK


def test_rows_say_who_launched_a_worker_and_older_ones_are_as_they_were() -> None:
    bench = occupied("here")
    bench.say("w0.new", bench.a_join("second", "here"))
    stored = dict(rows.all_rows(bench.state))
    assert dict(rows.all_rows(rows.load(State(ALONE), stored))) == stored
    assert rows.digest(bench.broker.fold().state) == rows.digest(bench.state)  # type: ignore[arg-type]
    old = Bench(ALONE)
    old.say("w0.0", records.Join("worker", "h", 1, "n", "", 0, ALONE))
    row = dict(rows.all_rows(old.state))[b"incarnation/w0.0"]
    assert row == b'["w0","worker","h",1,"n","",0,"member",null]'
