"""A job that is only watched, in its ledger: workers are known, nothing is handed out, committed or proven."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from antdt.connect.settings import Settings
from antdt.watching.reporter import ROLE, spec_of
from antdt.worker.session import Phase, Session, Where
from antdt_schemas import records
from antdt_schemas.records import Status
from antdt_schemas.strategies import WATCHED, carries_out
from antdt_streams.ledger.core.decide import check_spec
from antdt_streams.proof.audit import audit

from tests.helpers.ledger import Bench
from tests.helpers.logs import export
from tools import verify_standalone

SPEC = spec_of(Settings.of({"ANTDT_JOB": "j", "WORLD_SIZE": "2", "RANK": "0"}))


def joined() -> Bench:
    bench = Bench(SPEC)
    for name in ("w0.0", "w1.0"):
        bench.say(name, records.Join(ROLE, "", 0, "n", "", 0, SPEC, "torchrun:1", "t", ""))
    return bench


def test_a_generation_is_who_takes_part() -> None:
    bench = joined()
    assert bench.state.members.open
    assert bench.state.members.group == ("w0.0", "w1.0")
    assert not bench.state.finished, "nobody says what there is to be trained"
    assert bench.state.done is None


def test_a_worker_that_comes_again_begins_another_generation() -> None:
    bench = joined()
    bench.say("w1.1", records.Join(ROLE, "", 0, "n", "", 1, SPEC, "torchrun:1", "t", ""))
    assert not bench.state.members.open, "those who are there meet again"
    bench.say("w0.0", records.Regroup(1, None, b"", "", 0))
    assert bench.state.members.generation == 2
    assert bench.state.members.group == ("w0.0", "w1.1")
    assert bench.state.members.incarnations["w1.0"].gone, "its launch has started it again"


def test_nothing_is_handed_out_committed_or_rolled_back() -> None:
    bench = joined()
    asked = bench.say("w0.0", records.Lease(1, 10))
    told = bench.say("w0.0", records.Commit(1, 1, ((0, 0, 0, 0, 1),), (0,), bytes(16), -1))
    back = bench.say("op.0", records.Rollback(0, "me", "why"))
    assert {reply.status for reply in (asked, told, back)} == {Status.REFUSED}
    assert all("only watched" in reply.reason for reply in (asked, told, back))


def test_what_another_job_states_is_refused_both_ways() -> None:
    bench = joined()
    other = replace(SPEC, strategy="allreduce", samples=10)
    assert bench.say("w2.0", records.Join("worker", "", 0, "n", "", 0, other)).status is Status.REFUSED
    trains = Bench()
    assert trains.say("w0.0", records.Join(ROLE, "", 0, "n", "", 0, SPEC)).status is Status.REFUSED


def test_a_watched_job_accounts_for_nothing() -> None:
    assert check_spec(SPEC) is None
    assert "no samples" in str(check_spec(replace(SPEC, samples=10)))
    assert "samples is 0" in str(check_spec(replace(SPEC, strategy="allreduce")))


def test_nobody_carries_out_what_a_policy_wants() -> None:
    assert not any(carries_out(WATCHED, action) for action in ("ADJUST_BS", "KILL_RESTART", "BACKUP_WORKERS"))
    assert carries_out(WATCHED, "NONE")


def test_the_audit_vouches_for_nothing() -> None:
    bench = joined()
    entries = list(enumerate(bench.broker.log))
    report = audit(entries)
    assert report["watched"]
    assert not report["exactly_once"]
    assert not report["finished"]
    assert report["broken"] is None
    assert report["verdict"].startswith("NOT VOUCHED FOR.")


def test_the_checker_of_auditors_vouches_for_nothing_either(tmp_path: Path) -> None:
    export(tmp_path / "log.avro", joined().broker.log)
    found = verify_standalone.verify(str(tmp_path / "log.avro"))
    assert (found["exactly_once"], found["broken"]) == (False, None)
    assert found["verdict"].startswith("NOT VOUCHED FOR")


def test_a_session_of_a_watched_worker_asks_for_no_samples() -> None:
    bench = Bench(SPEC)
    sessions = [Session(f"w{i}", f"w{i}.0", SPEC, Where("", 0, launch="one"), role=ROLE) for i in range(2)]
    said, now_s = list[records.Request](), 1.0
    for _ in range(200):
        now_s += 0.02
        bench.broker.now_ms = int(now_s * 1000)
        requests = [request for one in sessions for request in one.tick(now_s)]
        said += requests
        for reply in bench.ledger.run(requests):
            for one in sessions:
                one.on_reply(reply)
    assert all(one.phase is Phase.MEMBER and one.generation == 1 for one in sessions)
    assert {type(request.body) for request in said} == {records.Join, records.Heartbeat}
    sessions[0].regroup(None, b"")
    assert sessions[0].phase is Phase.REGROUPING
