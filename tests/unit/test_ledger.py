"""The rules of the ledger, one at a time."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from antdt_schemas import auth, codec, lineage, records
from antdt_schemas.errors import LogTampered, Mismatch, Superseded
from antdt_schemas.records import Status
from antdt_schemas.topics import REPLIES, replies_partition
from antdt_streams.ledger.core import leader, rows
from antdt_streams.ledger.core.decide import check_spec
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.leader import InOffice
from antdt_streams.ledger.core.line import Bounds
from antdt_streams.ledger.core.state import State
from antdt_streams.ledger.core.turn import Turn
from antdt_streams.ledger.core.versions import FOLD_VERSION
from antdt_streams.ledger.stored import GENESIS, POSITION
from antdt_streams.proof.audit import audit

from tests.helpers.ledger import SPEC, Bench
from tests.helpers.memory_ledger import MemoryBroker, MemoryLedger


def test_first_grant_waits_for_all_workers() -> None:
    bench = Bench()
    bench.join("w0.0")
    assert bench.state.members.generation == 0
    bench.join("w1.0")
    assert bench.state.members.generation == 1
    assert bench.state.members.group == ("w0.0", "w1.0")


def test_lease_is_topped_up_and_the_whole_list_is_told_again() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    first = bench.lease("w0.0", 15)
    assert first[2:] == (0, 0, 20), "whole shards"
    assert bench.lease("w0.0", 15) == first, "the same request changes nothing"
    assert bench.lease("w0.0", 30)[:5] == first


def test_commit_takes_from_the_front_only() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    number, token, epoch, _, _ = bench.lease("w0.0", 20)
    assert bench.commit("w0.0", (number, token, epoch, 4, 4)).status is Status.REFUSED
    assert bench.commit("w0.0", (number, token, epoch, 0, 4)).status is Status.OK
    assert bench.commit("w0.0", (number, token, epoch, 0, 4)).status is Status.REFUSED
    assert bench.state.shards.committed_total == 4
    assert len(bench.refused()) == 2


def test_a_commit_with_another_token_is_refused_and_recorded() -> None:
    """A lost tail hands out the same lease numbers again, under another token."""
    bench = Bench()
    bench.join("w0.0", "w1.0")
    number, token, epoch, start, _ = bench.lease("w0.0", 20)
    reply = bench.commit("w0.0", (number, token + 1, epoch, start, 4))
    assert reply.status is Status.REFUSED
    assert "token" in bench.refused()[0].reason
    assert bench.refused()[0].incarnation == "w0.0"


def test_only_the_first_member_commits() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    held = bench.lease("w1.0", 10)
    assert bench.commit("w1.0", (*held[:4], 4)).status is Status.REFUSED


def test_a_gap_and_a_wrong_lineage_are_refused() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    held = bench.lease("w0.0", 10)
    flat = (*held[:4], 4)
    gap = records.Commit(1, 2, (flat,), (0,), b"", -1)
    assert "gap" in bench.say("w0.0", gap).reason
    wrong = records.Commit(1, 1, (flat,), (0,), bytes(16), -1)
    assert "lineage" in bench.say("w0.0", wrong).reason
    assert bench.state.line.committed == 0


def test_a_step_that_is_committed_is_not_committed_again() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    held = bench.lease("w0.0", 10)
    bench.commit("w0.0", (*held[:4], 4))
    again = records.Commit(1, 1, ((*held[:4], 4),), (0,), bench.lineage, -1)
    assert bench.say("w0.0", again).status is Status.OK
    assert bench.state.shards.committed_total == 4


def test_a_skipped_step_is_committed_and_said_to_be_skipped() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    held = bench.lease("w0.0", 12)
    before = dict(rows.all_rows(bench.state))
    assert not [key for key in before if key.startswith(b"skipped")], "no row where it does not occur"
    flats = [(*held[:3], start, 4) for start in (0, 4, 8)]
    skipped = (records.Skip(1, ("w1",)), records.Skip(3, ()))
    body = records.Commit(1, 1, tuple(flats), (0, 0, 0), b"", -1, skipped)
    assert bench.say("w0.0", body).status is Status.OK
    assert bench.say("w0.0", body).status is Status.OK, "repeated"
    assert bench.state.shards.committed_total == 12, "its samples count"
    said = [e for e in bench.events() if isinstance(e, records.Committed | records.StepSkipped)]
    assert [(type(e).__name__, e.step) for e in said] == [
        ("Committed", 1),
        ("StepSkipped", 1),
        ("Committed", 2),
        ("Committed", 3),
        ("StepSkipped", 3),
    ]
    assert [e.authors for e in said if isinstance(e, records.StepSkipped)] == [("w1",), ()]
    stored = dict(rows.all_rows(bench.state))
    assert stored[b"skipped/" + b"0" * 20] == b"[2]"
    assert rows.load(State(SPEC), stored).line.skipped == 2
    report = audit(enumerate(bench.broker.log))
    assert report["skipped_steps"] == 2
    assert report["broken"] is None


def test_a_step_that_is_not_committed_is_not_skipped() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    held = bench.lease("w0.0", 10)
    for step in (0, 2):
        body = records.Commit(1, 1, ((*held[:4], 4),), (0,), b"", -1, (records.Skip(step, ("w0",)),))
        assert f"Step {step} is said to be skipped" in bench.say("w0.0", body).reason
    assert bench.state.line.committed == 0


def test_leases_of_the_lost_wait_for_the_first_commit_of_the_next_generation() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    mine, lost = bench.lease("w0.0", 10), bench.lease("w1.0", 10)
    bench.say("w1.0", records.Exited(-9, "killed"))
    assert bench.state.shards.epoch(0).returned.total == 0, "in limbo: it may be in the model"
    bench.say("w0.0", records.Regroup(1, 1, b"", "h", 1))
    bench.lineage = lineage.ROOT
    bench.commit("w0.0", (*mine[:4], 4), (*lost[:4], 4))
    assert bench.state.shards.committed_total == 8, "what the survivor had applied is committed, also of the lost one"
    assert sorted(bench.state.shards.epoch(0).returned) == [(4, 10), (14, 20)]


def test_leases_stay_in_limbo_until_every_step_of_the_source_is_committed() -> None:
    """A broker that was away leaves more steps to report than one commit holds."""
    bench = Bench()
    bench.join("w0.0", "w1.0")
    mine, lost = bench.lease("w0.0", 10), bench.lease("w1.0", 10)
    bench.say("w1.0", records.Exited(-9, "killed"))
    bench.say("w0.0", records.Regroup(1, 2, b"", "h", 1))
    bench.commit("w0.0", (*mine[:4], 4))
    assert bench.state.shards.epoch(0).returned.total == 0, "step 2 is in the model, and not reported yet"
    assert bench.commit("w0.0", (*lost[:4], 4)).status is Status.OK
    assert sorted(bench.state.shards.epoch(0).returned) == [(4, 10), (14, 20)]


def test_a_lost_incarnation_is_refused_everything() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    held = bench.lease("w1.0", 10)
    bench.say("w1.0", records.Exited(1, ""))
    for body in (
        records.Lease(1, 10),
        records.Commit(1, 1, (held,), (0,), b"", -1),
        records.Release(1, held[0], held[1]),
        records.Regroup(1, 0, b"", "h", 1),
        records.Join("worker", "h", 1, "n", "", 0, SPEC),
    ):
        assert bench.say("w1.0", body).status is Status.LOST, body
    assert len(bench.refused()) == 5


def test_a_grant_that_was_never_heard_of_does_not_stop_the_next_one() -> None:
    """Its reply was lost, and the generation closed before the worker asked again."""
    bench = Bench()
    bench.join("w0.0", "w1.0", "w2.0")
    assert not bench.state.members.open
    for who in ("w1.0", "w0.0"):  # they read the same partition, and another one
        join = bench.request(who, records.Join("worker", "h", 1, "n", "", 0, SPEC))
        answer, news = bench.ledger.run([join])
        assert (answer.incarnation, answer.status, answer.grant) == (who, Status.CLOSED, None)
        assert (news.incarnation, news.number) == ("", -1)
        assert news.status is Status.CLOSED, "it closed before it was heard of"
        assert replies_partition(news.worker) == replies_partition(answer.worker)
        assert news.grant is not None
        assert [m.incarnation for m in news.grant.members] == ["w0.0", "w1.0"]


CROWD = 4_096
GRANT_BYTES_MAX = 1_000_000


def test_a_grant_to_thousands_is_published_once_and_not_to_each_of_them() -> None:
    bench = Bench(replace(SPEC, samples=10**6, batch_size=CROWD, workers_min=CROWD))
    where, some = ("10.104.212.117", 40_000), 500
    names = [f"w{n}.0.9c4018c3f2a1" for n in range(CROWD)]
    facts: list[records.Event]
    facts = [records.Joined(n, n.split(".")[0], "worker", *where, "", "", 0) for n in names[:-some]]
    granted(bench, facts, [bench.request(n, bench.a_join()) for n in names[-some:]])
    ready = [records.Ready(n, 0, *where) for n in names[:-some]]
    asked = [bench.request(n, records.Regroup(1, 0, bench.lineage, *where)) for n in names[-some:]]
    granted(bench, [records.Closed(1, "w0 is lost"), *ready], asked)
    again = bench.ledger.run([bench.request(names[0], records.Heartbeat(1, 0)) for _ in range(100)])
    assert sum(reply.grant is not None for reply in again) == 1, "who has not heard of it asks, as often as it likes"


def granted(bench: Bench, facts: list[records.Event], requests: list[records.Request]) -> None:
    """After these facts, some of the members ask; measures what is said in the cycle that grants."""
    for first in range(0, len(facts), some := 500):
        bench.broker.log.append(bench.ledger.office.propose([], tuple(facts[first : first + some]))[0])
        bench.ledger.read_back()
    replies = bench.ledger.run(requests)
    news = [reply for reply in replies if reply.grant is not None]
    assert {replies_partition(reply.worker) for reply in news} == set(range(REPLIES.partitions))
    assert len(news) == REPLIES.partitions
    assert all(len(reply.grant.members) == CROWD for reply in news if reply.grant is not None)
    assert sum(len(codec.encode(reply)) for reply in replies) < GRANT_BYTES_MAX


def test_nobody_holds_what_is_committed_so_the_ledger_rolls_back() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    held = bench.lease("w0.0", 20)
    bench.commit("w0.0", (*held[:4], 4))
    file = records.Checkpoint(1, 1, bench.lineage, "one.pt")
    assert bench.say("w0.0", file).status is Status.OK
    bench.commit("w0.0", (held[0], held[1], 0, 4, 6))
    bench.join("w0.1", "w1.1")
    grant = bench.state.members.grant
    assert grant is not None
    assert grant.restore_file == "one.pt"
    assert (bench.state.line.committed, bench.state.shards.committed_total) == (1, 4)
    assert list(bench.state.shards.epoch(0).committed) == [(0, 4)]


def test_a_checkpoint_of_another_branch_is_refused() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    held = bench.lease("w0.0", 10)
    bench.commit("w0.0", (*held[:4], 4))
    assert bench.say("w0.0", records.Checkpoint(1, 1, bytes(16), "x.pt")).status is Status.REFUSED
    assert bench.say("w0.0", records.Checkpoint(1, 2, bench.lineage, "x.pt")).status is Status.REFUSED


def test_end_only_when_a_durable_file_holds_everything() -> None:
    bench = Bench(replace(SPEC, samples=8, shard_size=4, workers_min=1))
    bench.join("w0.0")
    held = bench.lease("w0.0", 100)
    bench.commit("w0.0", held[:5])
    held = bench.lease("w0.0", 100)
    if held:
        bench.commit("w0.0", held[:5])
    reply = bench.say("w0.0", records.Lease(1, 100))
    assert (reply.status, reply.finished) == (Status.WAIT, True)
    bench.say("w0.0", records.Checkpoint(1, bench.step, bench.lineage, "final.pt"))
    reply = bench.say("w0.0", records.Lease(1, 100))
    assert (reply.status, reply.file) == (Status.END, "final.pt")


def test_a_later_launch_may_have_another_number_of_workers() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    other = replace(SPEC, workers_min=7, shard_size=3)
    bench.say("w2.0", records.Join("worker", "h", 1, "n", "", 0, other))
    assert bench.state.members.incarnations["w2.0"].status == "waiting"
    assert (bench.state.spec.workers_min, bench.state.spec.shard_size) == (2, 10)


def test_release_returns_a_lease_that_was_never_taken_from() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    number, token, *_ = bench.lease("w0.0", 10)
    for stranger in (records.Release(1, number, token + 1), records.Release(1, number + 1, token)):
        reply = bench.say("w0.0", stranger)
        assert (reply.status, reply.leases[:2]) == (Status.OK, (number, token)), "what is not held is not given back"
    assert bench.say("w0.0", records.Release(1, number, token)).leases == ()
    assert bench.state.shards.epoch(0).returned.total == 10
    again = bench.say("w0.0", records.Release(1, number, token))
    assert (again.status, len(bench.refused())) == (Status.OK, 0), "a request may arrive again, however late"


def test_one_release_gives_back_many_leases_or_none() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    bench.lease("w0.0", 10)
    held = bench.lease("w0.0", 20)
    (first, token), (second, other) = held[:2], held[5:7]
    bench.commit("w0.0", (second, other, *held[7:9], 2))
    assert bench.say("w0.0", records.Release(1, first, token, (second, other))).status is Status.REFUSED
    assert bench.state.shards.epoch(0).returned.total == 0
    assert bench.say("w0.0", records.Release(1, first, token, (77, 1))).status is Status.OK
    assert bench.state.shards.epoch(0).returned.total == held[4]


def test_other_data_is_refused_with_both_values() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    other = replace(SPEC, samples=99, dataset_digest=b"x" * 16)
    reply = bench.say("w2.0", records.Join("worker", "h", 1, "n", "", 0, other))
    assert reply.status is Status.REFUSED
    for value in ("100", "99", bytes(16).hex(), (b"x" * 16).hex()):
        assert value in reply.reason


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"samples": 1}, "samples"),
        ({"batch_size": 0}, "batch_size"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 1}, "batch"),
        ({"shard_size": 0}, "shard_size"),
        (
            {"strategy": "gossip"},
            "'gossip' is not known to this ledger: it knows allreduce, allreduce/unit=N, local-sgd/every=N, ps-",
        ),
        ({"strategy": "local-sgd/every=0"}, "'local-sgd/every=0' is not known"),
        ({"strategy": "allreduce/every=2"}, "'allreduce/every=2' is not known"),
        ({"strategy": "ps-asp/servers=0"}, "'ps-asp/servers=0' is not known"),
        ({"strategy": "ps-ssp/servers=2"}, "'ps-ssp/servers=2' is not known"),
        ({"strategy": "ps-bsp/servers=2", "batches": "even"}, "no steps of a fixed size"),
    ],
)
def test_a_job_that_cannot_work_says_why(change: dict[str, int | str], word: str) -> None:
    wrong = check_spec(replace(SPEC, **change))
    assert wrong is not None
    assert word in wrong
    assert check_spec(SPEC) is None


def test_requests_without_the_secret_are_refused() -> None:
    bench = Bench(secret=b"s3cret")
    join = bench.request("w0.0", records.Join("worker", "h", 1, "n", "", 0, SPEC))
    assert bench.ledger.run([join])[0].status is Status.REFUSED
    assert bench.ledger.run([auth.sign(join, b"guess")])[0].status is Status.REFUSED
    assert bench.ledger.run([auth.sign(join, b"s3cret")])[0].status is Status.OK
    assert [r.kind for r in bench.refused()] == ["Join", "Join"]


def test_an_undecodable_request_is_recorded_and_passed_over() -> None:
    bench = Bench()
    for payload in (b"", b"garbage", codec.encode(bench.request("w0.0", records.Leave(1)))[:-3]):
        bench.broker.send(payload)
    bench.ledger.run()
    assert [r.kind for r in bench.refused()] == ["undecodable"] * 3
    bench.join("w0.0", "w1.0")
    assert bench.state.members.generation == 1


def test_silence_is_noticed_by_the_brokers_time_and_a_common_pause_costs_nobody() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    for _ in range(20):
        bench.broker.now_ms += 60_000
        bench.say("w0.0", records.Heartbeat(1, 0))
        bench.say("w1.0", records.Heartbeat(1, 0))
    assert bench.state.members.open
    for _ in range(9):
        bench.broker.now_ms += 900
        bench.say("w0.0", records.Heartbeat(1, 0))
    assert bench.state.members.incarnations["w1.0"].status == "lost"


def test_every_reader_reaches_the_same_state_and_rows() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    held = bench.lease("w0.0", 30)
    bench.commit("w0.0", (*held[:4], 5))
    fold = bench.broker.fold()
    assert fold.state is not None
    assert rows.digest(fold.state) == rows.digest(bench.state)
    stored = dict(rows.all_rows(fold.state))
    assert dict(rows.all_rows(rows.load(State(SPEC), stored))) == stored


def test_changed_rows_add_up_to_all_rows() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    held = bench.lease("w0.0", 30)
    for start in range(0, 30, 5):
        bench.commit("w0.0", (held[0], held[1], 0, start, 5))
        stored = dict(bench.ledger.cache.store.rows(b""))
        assert stored.pop(POSITION) and stored.pop(GENESIS)
        assert stored == dict(rows.all_rows(bench.state))


def test_a_zombies_entry_is_void_and_it_notices() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    zombie = bench.ledger
    bench.broker.send(bench.request("w0.0", records.Lease(1, 10)))
    bench.ledger = MemoryLedger(bench.broker)
    assert zombie.append()
    with pytest.raises(Superseded):
        zombie.read_back()
    assert bench.ledger.run()[0].leases[4] == 10
    fold = bench.broker.fold()
    assert fold.void_entries == 1
    assert fold.state is not None
    assert fold.state.shards.next_lease == 2, "leased once"


def _log_of_some_entries() -> list[bytes]:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    held = bench.lease("w0.0", 40)
    for start in range(0, 40, 2):
        bench.commit("w0.0", (held[0], held[1], 0, start, 5))
    return bench.broker.log


def _read(log: list[bytes]) -> Fold:
    fold = Fold()
    for offset, payload in enumerate(log):
        fold.read(offset, payload)
    fold.check_doubts()
    return fold


def test_a_reader_without_a_cache_keeps_no_changes_and_reaches_the_same_state() -> None:
    log, reader = _log_of_some_entries(), Fold(cached=False)
    for offset, payload in enumerate(log):
        reader.read(offset, payload)
    ledger = _read(log)
    assert reader.state is not None and ledger.state is not None
    assert rows.digest(reader.state) == rows.digest(ledger.state)
    assert not reader.state.dirty
    assert rows.changes(ledger.state).keys() >= dict(rows.all_rows(ledger.state)).keys()


def test_a_log_that_was_altered_cut_or_reordered_breaks_at_the_first_entry() -> None:
    log = _log_of_some_entries()
    cycles = [i for i, p in enumerate(log) if isinstance(codec.decode(p, records.Entry).body, records.Cycle)]
    at = cycles[3]
    _read(log)
    with pytest.raises(LogTampered):
        _read(log[:at] + log[at + 1 :])
    with pytest.raises(LogTampered):
        _read([*log[:at], log[at + 1], log[at], *log[at + 2 :]])
    body = codec.decode(log[at], records.Entry).body
    assert isinstance(body, records.Cycle)
    changed = codec.encode(records.Entry(replace(body, now_ms=body.now_ms + 1)))
    with pytest.raises(LogTampered, match="hash chain breaks"):
        _read([*log[:at], changed, *log[at + 1 :]])


def test_a_digest_that_the_replay_does_not_reach_stops_it() -> None:
    log = _log_of_some_entries()
    fold, at = Fold(), None
    for offset, payload in enumerate(log):
        body = codec.decode(payload, records.Entry).body
        if isinstance(body, records.Cycle) and any(isinstance(e, records.Digested) for e in body.events):
            at = offset
            break
        fold.read(offset, payload)
    assert at is not None
    assert fold.state is not None
    fold.state.refused += 1  # a fold that went another way
    with pytest.raises(LogTampered, match=f"offset {at}"):
        fold.read(at, log[at])


def test_newer_rules_stop_a_reader() -> None:
    log = _log_of_some_entries()
    fold = _read(log)
    newer = codec.encode(records.Entry(records.Leader("run-1", "x", "o", 99)))
    with pytest.raises(Mismatch, match="Upgrade"):
        fold.read(len(log), newer)


def test_a_second_genesis_is_void() -> None:
    log = _log_of_some_entries()
    fold = _read([log[0], log[0], *[]])
    assert fold.void_entries == 1


def test_a_billion_samples_cost_nothing() -> None:
    bench = Bench(replace(SPEC, samples=10**9, shard_size=1000, batch_size=10**6))
    bench.join("w0.0", "w1.0")
    for _ in range(50):
        held = bench.lease("w0.0", 10**6)
        bench.commit("w0.0", held[:5])
    assert bench.state.shards.committed_total == 50 * 10**6
    assert sum(len(key) + len(row) for key, row in rows.all_rows(bench.state)) < 20_000


def rollback(step: int, author: str = "ops@host#1") -> records.Rollback:
    return records.Rollback(step, author, "a bad batch")


def trained(bench: Bench, steps: int, checkpoint_at: int) -> None:
    """Steps of eight samples by a.0, with a durable file after one of them."""
    for step in range(bench.step + 1, bench.step + steps + 1):
        lease = bench.lease("a.0", 8)
        assert bench.commit("a.0", (*lease[:4], 8)).status is Status.OK
        if step == checkpoint_at:
            body = records.Checkpoint(bench.state.members.generation, step, bench.lineage, f"file-{step}", bytes(16))
            bench.say("a.0", body)


def test_an_operator_rolls_back_to_a_checkpoint_and_exactly_what_it_lacks_returns() -> None:
    bench = Bench(replace(SPEC, shard_size=8))
    bench.join("a.0", "b.0")
    trained(bench, steps=3, checkpoint_at=1)
    old = bench.lineage
    assert bench.say("ops.0", rollback(1)).status is records.Status.OK
    state = bench.state
    assert (state.line.committed, state.shards.committed_total, state.members.open) == (1, 8, False)
    state.check()
    # Both hold a model with undone steps: neither may be the source, whatever it claims.
    for who in ("a.0", "b.0"):
        bench.say(who, records.Regroup(1, 3, old, "h", 1))
    assert state.members.grant is not None
    assert (state.members.grant.generation, state.members.grant.source, state.members.grant.restore_file) == (
        2,
        None,
        "file-1",
    )


def test_a_rollback_request_that_arrives_again_changes_nothing() -> None:
    bench = Bench(replace(SPEC, shard_size=8))
    bench.join("a.0", "b.0")
    trained(bench, steps=2, checkpoint_at=1)
    bench.say("ops.0", rollback(1))
    for who in ("a.0", "b.0"):
        bench.say(who, records.Regroup(1, None, b"", "h", 1))
    assert bench.state.members.open
    assert bench.say("ops.0", rollback(1)).status is records.Status.OK
    assert bench.state.members.open, "undone twice"
    assert sum(isinstance(e, records.RolledBack) for e in bench.events()) == 1


def test_a_rollback_to_a_step_without_a_checkpoint_says_which_there_are() -> None:
    bench = Bench(replace(SPEC, shard_size=8))
    bench.join("a.0", "b.0")
    trained(bench, steps=2, checkpoint_at=1)
    reply = bench.say("ops.0", rollback(2))
    assert reply.status is records.Status.REFUSED
    assert "0, 1" in reply.reason
    assert bench.state.members.open


def test_a_claim_of_another_branch_is_no_claim() -> None:
    bench = Bench(replace(SPEC, shard_size=8))
    bench.join("a.0", "b.0")
    trained(bench, steps=2, checkpoint_at=0)
    bench.say("a.0", records.Regroup(1, 2, bytes(15) + b"x", "h", 1))
    bench.say("b.0", records.Regroup(1, 2, bench.lineage, "h", 1))
    assert bench.state.members.grant is not None
    assert bench.state.members.grant.source == "b.0"


def test_an_accepted_loss_takes_every_number_that_may_have_been_given_away() -> None:
    bench = Bench(replace(SPEC, shard_size=8))
    bench.join("a.0", "b.0")
    trained(bench, steps=2, checkpoint_at=1)
    fact = records.Regressed(9, 12, bytes(16), "run-1", 40, 1_000, "ops", "the disk of the broker")
    payload, _ = bench.ledger.office.propose([], (fact,))
    bench.broker.log.append(payload)
    bench.ledger.read_back()
    assert bench.say("a.0", records.Heartbeat(1, 2)).status is records.Status.LOST
    bench.join("a.1")
    grant = bench.state.members.grant
    assert grant is not None
    assert (grant.generation, grant.source, grant.restore_file) == (41, None, "file-1")
    assert bench.lease("a.1", 8)[0] >= 1_000
    bench.state.check()
    assert rows.digest(bench.broker.fold().state) == rows.digest(bench.state)  # type: ignore[arg-type]


def test_a_request_that_the_ledger_fails_on_is_refused_in_the_log_and_nothing_else_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    bench.join("a.0", "b.0")
    whole = leader.decide

    def fails_half_way(turn: Turn, request: records.Request) -> None:
        whole(turn, request)
        if isinstance(request.body, records.Lease) and request.body.samples == 13:
            raise KeyError("a bug")

    monkeypatch.setattr(leader, "decide", fails_half_way)
    good, bad = records.Lease(1, 8), records.Lease(1, 13)
    replies = bench.ledger.run([bench.request(who, body) for who, body in (("a.0", good), ("b.0", bad), ("a.0", good))])
    assert [r.status for r in replies if r.incarnation == "b.0"] == [Status.REFUSED]
    assert [len(r.leases) for r in replies if r.incarnation == "a.0"] == [5, 5]
    assert "KeyError" in bench.refused()[-1].reason
    bench.state.check()
    assert not bench.state.shards.held.get("b.0")
    monkeypatch.undo()
    assert rows.digest(bench.broker.fold().state) == rows.digest(bench.state)  # type: ignore[arg-type]


def test_a_request_too_large_for_one_entry_is_refused() -> None:
    bench = Bench()
    bench.join("a.0", "b.0")
    nonsense = tuple(range(5, 400_000))
    reply = bench.say("a.0", records.Commit(1, 1, (nonsense,), (0,), b"", -1))
    assert reply.status is Status.REFUSED
    bench.state.check()


def test_what_the_leader_of_a_former_topic_writes_into_a_new_one_is_void() -> None:
    log = _log_of_some_entries()
    stray = next(p for p in reversed(log) if isinstance(codec.decode(p, records.Entry).body, records.Cycle))
    fold = Fold()
    for offset, payload in enumerate([stray, log[0], log[1]]):
        fold.read(offset, payload)
    assert fold.void_entries == 1
    assert fold.state is not None
    assert fold.state.sequence == 0


def test_leases_given_back_in_any_order_leave_no_fragments_behind() -> None:
    """Shards of one sample: what came back is merged again, the state is as large as what is out."""
    bench = Bench(replace(SPEC, samples=10**9, shard_size=1, batch_size=1000))
    bench.join("w0.0", "w1.0")
    rng = random.Random(1)
    for _ in range(20):
        held = bench.lease("w0.0", 256 * 4)
        leases = [held[i : i + 2] for i in range(0, len(held), 5)]
        rng.shuffle(leases)
        bench.ledger.run(bench.request("w0.0", records.Release(1, *lease)) for lease in leases)
        bench.state.check()
    epoch = bench.state.shards.epoch(0)
    assert len(leases) > 1 and not bench.state.shards.leases
    assert list(epoch.returned) == [(0, epoch.cursor)]


def test_the_way_back_to_the_beginning_stays_open_when_its_checkpoint_is_long_past() -> None:
    bench = Bench(replace(SPEC, shard_size=8))
    bench.join("a.0", "b.0")
    for step in range(1, 8):
        trained(bench, steps=1, checkpoint_at=0)
        bench.say(
            "a.0", records.Checkpoint(bench.state.members.generation, step, bench.lineage, f"file-{step}", bytes(16))
        )
    assert bench.state.line.checkpoints[0].step > 0
    assert bench.say("ops.0", rollback(0)).status is Status.OK
    for who in ("a.0", "b.0"):
        bench.say(who, records.Regroup(1, 7, bench.lineage, "h", 1))
    assert bench.state.members.grant is not None
    assert (bench.state.members.grant.restore_file, bench.state.shards.committed_total) == ("init", 0)
    bench.state.check()
    bench.step, bench.lineage = 0, lineage.ROOT
    trained(bench, steps=1, checkpoint_at=0)
    report = audit(enumerate(bench.broker.log))
    assert (report["broken"], report["repeated"], report["committed"], report["rolled_back_steps"]) == (None, [], 8, 7)


def test_the_same_model_in_another_file_contains_the_same_however_long_ago_it_was() -> None:
    """Only so many steps are kept apart: what a later file of an old step holds cannot be worked out from them."""
    bench = Bench(replace(SPEC, shard_size=8))
    bench.ledger.office.state.line.bounds = Bounds(steps=3)
    bench.join("a.0", "b.0")
    trained(bench, steps=8, checkpoint_at=2)
    first = bench.state.line.checkpoints[-1]
    assert first.step == 2 and bench.state.line.steps[0].step > 3
    again = records.Checkpoint(bench.state.members.generation, 2, first.lineage, "file-2-again", bytes(16))
    assert bench.say("a.0", again).status is Status.OK
    assert [(c.file, c.committed) for c in bench.state.line.checkpoints[1:]] == [
        ("file-2", first.committed),
        ("file-2-again", first.committed),
    ]
    assert bench.say("ops.0", rollback(2)).status is Status.OK
    for who in ("a.0", "b.0"):
        bench.say(who, records.Regroup(1, 8, bench.lineage, "h", 1))
    assert bench.state.shards.committed_total == 16
    bench.state.check()


def _cycle_in_the_leaders_name(bench: Bench, **change: object) -> bytes:
    fold = bench.ledger.office.fold
    assert fold.office is not None and fold.state is not None
    body = records.Cycle(
        fold.office.offset,
        fold.office.hash,
        fold.state.sequence + 1,
        fold.position.next_offset - 1,
        bytes(16),
        0,
        1,
        (),
    )
    return codec.encode(records.Entry(replace(body, **change)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "payload",
    [
        b"{}",
        b"",
        b"\xc3\x01" + bytes(8) + b"of some day",
        codec.encode(records.Entry(records.Leader("run-2", "x", "o", 99))),
        codec.encode(records.Request("w0", "w0.0", 1, records.Leave(1), b"")),
    ],
)
def test_what_is_nothing_of_ours_is_void_and_the_leader_stays_in_office(payload: bytes) -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    for foreign in (payload, bench.broker.log[-1], bench.broker.log[1]):
        bench.broker.log.append(foreign)
    bench.lease("w0.0", 10)
    fold = _read(bench.broker.log)
    assert fold.void_entries == bench.ledger.office.fold.void_entries == 3
    assert fold.state is not None and rows.digest(fold.state) == rows.digest(bench.state)


def test_what_does_not_chain_breaks_the_log_until_the_same_leader_goes_on_over_it() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    at = len(bench.broker.log)
    bench.broker.log.append(_cycle_in_the_leaders_name(bench))
    report = audit(enumerate(bench.broker.log))
    assert (report["broken"]["offset"], report["broken"]["expected"]) == (at, bytes(16).hex())
    with pytest.raises(LogTampered, match=f"hash chain breaks at offset {at}"):
        _read(bench.broker.log)
    alone = list(bench.broker.log)
    bench.lease("w0.0", 10)  # decided before it was read: it names what was there before
    assert audit(enumerate(bench.broker.log))["broken"]["offset"] == at
    bench.lease("w0.0", 20)
    assert audit(enumerate(bench.broker.log))["broken"] is None
    assert not bench.ledger.office.fold.doubts
    # Another leader cannot know: it was not in office when that was written. So it takes no office, and if it did:
    bench.broker.log[:] = alone
    with pytest.raises(LogTampered, match=f"hash chain breaks at offset {at}"):
        MemoryLedger(bench.broker)
    assert bench.broker.log == alone
    bench.broker.append(codec.encode(records.Entry(records.Leader("run-1", "another", "o", FOLD_VERSION))))
    office = InOffice(bench.broker.fold())
    for _ in range(2):
        payload, _ = office.propose([])
        assert office.read_back(bench.broker.append(payload), payload) is not None
    assert audit(enumerate(bench.broker.log))["broken"]["offset"] == at


def test_an_entry_of_ours_that_is_missing_in_a_hole_is_named() -> None:
    log = list(enumerate(_log_of_some_entries()))
    report = audit([*log[:9], *log[10:]])
    assert [report["broken"][key] for key in ("offset", "expected", "found")] == [10, "9", "10"]
    moved = [(offset + 5, payload) for offset, payload in log]
    assert audit(moved)["broken"]["offset"] == 7, "the first entry that names another one"


def test_an_anchor_where_there_is_no_entry_is_not_met() -> None:
    bench = Bench()
    bench.join("w0.0")
    entries = [(offset, payload) for offset, payload in enumerate(bench.broker.log)]
    report = audit([*entries, (entries[-1][0] + 3, b"{}")], {entries[-1][0] + 1: bytes(16)})
    assert report["broken"]["found"] == "no such entry"


# -- entries are as large as the log takes

ROOM = 15_000


def crowd(count: int, node_bytes: int) -> list[records.Request]:
    """Workers that join, with names of machines of that length: their events are larger than anybody guesses."""
    bodies = (records.Join("worker", "h", 1, f"{i}".rjust(node_bytes, "n"), "", 0, SPEC) for i in range(count))
    return [records.Request(f"w{i}", f"w{i}.0", 1, body, b"") for i, body in enumerate(bodies)]


@pytest.mark.parametrize("node_bytes", [1, 300, 3_000, 12_000])
def test_entries_are_split_by_what_the_log_takes(node_bytes: int) -> None:
    broker = MemoryBroker.founded(SPEC)
    ledger = MemoryLedger(broker, record_bytes_max=ROOM)
    ledger.run(crowd(60, node_bytes))
    assert max(map(len, broker.log)) <= ROOM
    state = broker.fold().state
    assert state is not None
    assert state.refused == 0
    assert len(state.members.incarnations) == 60


def test_what_is_too_large_alone_is_refused_and_what_came_with_it_is_not() -> None:
    broker = MemoryBroker.founded(SPEC)
    requests = [*crowd(20, 300), *crowd(21, 2 * ROOM)[20:], *crowd(25, 300)[21:]]
    MemoryLedger(broker, record_bytes_max=ROOM).run(requests)
    assert max(map(len, broker.log)) <= ROOM
    state = broker.fold().state
    assert state is not None
    assert len(state.members.incarnations) == 24
    assert state.refused == 1
    refusals = [e for e in _events(broker) if isinstance(e, records.Refused)]
    assert f"and its topic takes {ROOM}" in refusals[0].reason


def test_who_makes_a_grant_too_large_for_its_topic_is_refused() -> None:
    """A grant that nobody can be told of is never in the log."""
    spec = replace(SPEC, samples=1_000, batch_size=90, workers_min=80)
    broker = MemoryBroker.founded(spec)
    ledger = MemoryLedger(broker, record_bytes_max=ROOM)
    joins = [records.Join("worker", "h" * (ROOM // 85), 1, "n", "", 0, spec) for _ in range(90)]
    replies = ledger.run(records.Request(f"w{i}", f"w{i}.0", 1, body, b"") for i, body in enumerate(joins))
    assert max(len(codec.encode(reply)) for reply in replies) <= ROOM
    refused = [reply for reply in replies if reply.status is Status.REFUSED]
    assert refused and all("it would make a grant of" in reply.reason for reply in refused)
    assert not any(isinstance(event, records.Granted) for event in _events(broker))


def _events(broker: MemoryBroker) -> list[records.Event]:
    bodies = (codec.decode(payload, records.Entry).body for payload in broker.log)
    return [e for body in bodies if isinstance(body, records.Cycle) for e in body.events]
