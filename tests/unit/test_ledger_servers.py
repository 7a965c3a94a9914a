"""The ledger's rules where the model lies on servers: who is a generation, who is attached, what a loss does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from antdt_schemas import codec, records
from antdt_schemas.records import Status
from antdt_schemas.strategies import kind_of, servers_of
from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.groups import RULES
from antdt_streams.ledger.core.state import State

from tests.helpers.servers import PS, Servers


@pytest.mark.parametrize(
    ("name", "kind", "servers"),
    [
        ("ps-bsp/servers=1", "ps-bsp/servers=N", 1),
        ("ps-asp/servers=12", "ps-asp/servers=N", 12),
        ("ps-ssp=3/servers=2", "ps-ssp=N/servers=N", 2),
        ("allreduce/unit=8", "allreduce/unit=N", 0),
        ("local-sgd/every=8", "local-sgd/every=N", 0),
    ],
)
def test_a_name_says_how_servers_work(name: str, kind: str, servers: int) -> None:
    assert (kind_of(name), servers_of(name)) == (kind, servers)
    assert kind in RULES


@pytest.mark.parametrize(
    "name", ["ps-bsp", "ps-ssp=0/servers=2", "ps-asp=3/servers=2", "ps-bsp/servers=02", "ps-x/servers=2"]
)
def test_what_is_no_name_of_a_strategy_has_no_rules(name: str) -> None:
    assert kind_of(name) not in RULES
    assert servers_of(name) == 0


def test_the_first_generation_waits_for_servers_and_workers() -> None:
    bench = Servers()
    bench.join("s1.0", "w0.0", "s0.0")
    assert not bench.state.members.open
    assert bench.say("w1.0", bench.a_join()).status is Status.OK
    assert bench.state.members.group == ("s0.0", "s1.0")
    grant = bench.ledger.replies.sent[-1].grant
    assert grant is not None
    assert [m.worker for m in grant.members] == ["s0", "s1"]


def test_who_waits_for_a_generation_is_told_which_server_is_missing() -> None:
    bench = Servers()
    bench.join("s1.0", "w0.0", "w1.0")
    said = bench.say("w0.0", bench.a_join()).reason
    assert said == "1 of 2 servers ask for it: s0 is not there"
    bench.join("s0.0")
    assert bench.say("w0.0", records.Heartbeat(1, 0, "computing")).reason == ""
    bench.exited("s1.0")
    assert bench.say("w0.0", records.Heartbeat(1, 0)).reason.endswith(": s0 did not yet, s1 is not there")
    assert bench.say("s0.0", records.Regroup(1, None, b"", "host", 1)).reason.endswith(": s1 is not there")


def test_everybody_hears_of_a_grant_and_of_its_end() -> None:
    bench = Servers().formed()
    told = {r.incarnation for r in bench.exited("s1.0") if r.status is Status.CLOSED}
    assert told == {"s0.0", "w0.0", "w1.0"}
    bench.join("s1.1")
    bench.again("s0.0")
    partitions = {r.worker for r in bench.ledger.replies.sent if r.grant is not None and r.grant.generation == 2}
    assert bench.state.members.open
    assert partitions  # one for each partition that one of them reads


def test_workers_come_and_go_without_an_end_of_the_generation() -> None:
    bench = Servers().formed()
    bench.join("w2.0")
    bench.exited("w0.0")
    bench.say("w2.0", records.Leave(1))
    assert (bench.state.members.generation, bench.state.members.open) == (1, True)
    assert list(bench.state.members.attached) == ["w1.0"]


def test_a_newcomer_leases_in_the_open_generation() -> None:
    bench = Servers().formed()
    bench.join("w2.0")
    assert bench.lease("w2.0", 10)


def test_servers_take_no_samples_and_workers_commit_no_steps() -> None:
    bench = Servers().formed()
    assert bench.say("s0.0", records.Lease(1, 10)).status is Status.REFUSED
    held = bench.lease("w0.0", 10)
    assert bench.commit("w0.0", held[:5]).status is Status.REFUSED
    assert bench.commit("s1.0", held[:5]).status is Status.REFUSED
    assert bench.commit("s0.0", held[:5]).status is Status.OK


def test_a_step_holds_leases_of_any_workers() -> None:
    bench = Servers().formed()
    one, two = bench.lease("w0.0", 10), bench.lease("w1.0", 10)
    assert bench.commit("s0.0", one[:5], two[:5]).status is Status.OK
    assert bench.state.shards.committed_total == one[4] + two[4]


@pytest.mark.parametrize(
    ("who", "said"),
    [("s2.0", "none of the servers of this job, which are s0, s1"), ("server.0", "none of the servers")],
)
def test_a_server_is_named_after_its_part(who: str, said: str) -> None:
    reply = Servers().say(who, Servers().a_join())
    assert reply.status is Status.REFUSED
    assert said in reply.reason


def test_a_worker_has_no_server_s_name_and_other_jobs_have_no_servers() -> None:
    bench = Servers()
    reply = bench.ledger.run([bench.request("s0.0", bench.a_join())])[0]
    assert "the name of a server" in reply.reason
    plain = Servers(replace(PS, strategy="allreduce"))
    assert "this job has none" in plain.say("s0.0", plain.a_join()).reason


def test_a_worker_that_asks_for_a_generation_ends_none() -> None:
    bench = Servers().formed()
    bench.again("w0.0")
    assert bench.state.members.open


def test_workers_share_what_is_left_however_many_servers_there_are() -> None:
    bench = Servers(replace(PS, strategy="ps-asp/servers=1", workers_min=4))
    bench.join("s0.0", "w0.0", "w1.0", "w2.0", "w3.0")
    held = bench.lease("w0.0", 1_000)
    assert sum(held[4::5]) <= 20  # an eighth of 100, in whole shards


# -- the loss of a worker


def test_what_a_lost_worker_holds_returns_when_the_first_server_refuses_it() -> None:
    bench = Servers().formed()
    held = bench.lease("w0.0", 10)
    told = bench.exited("w0.0")
    assert [(r.incarnation, r.losses) for r in told] == [("s0.0", (records.Loss(1, "w0.0"),))]
    assert bench.commit("s0.0", (*held[:4], 4)).status is Status.OK  # it was in this version before
    assert bench.state.shards.held["w0.0"]
    bench.obey(1)
    assert "w0.0" not in bench.state.shards.held
    assert list(bench.state.shards.epoch(0).returned) == [(4, 10)]
    bench.state.check()


def test_a_loss_is_told_to_the_first_server_until_it_obeys_and_to_nobody_else() -> None:
    bench = Servers().formed()
    bench.exited("w0.0")
    beat = records.Heartbeat(1, 0)
    assert [loss.incarnation for loss in bench.say("s0.0", beat).losses] == ["w0.0"]
    assert [loss.incarnation for loss in bench.say("s0.0", beat).losses] == ["w0.0"]
    assert not bench.say("s1.0", beat).losses
    assert not bench.say("w1.0", beat).losses
    assert not bench.obey(1).losses


def test_a_commit_that_has_not_seen_the_loss_returns_nothing() -> None:
    bench = Servers().formed()
    bench.lease("w0.0", 10), bench.lease("w1.0", 10)
    bench.exited("w0.0")
    bench.exited("w1.0")
    bench.obey(1)
    bench.obey(1)
    assert list(bench.state.shards.held) == ["w1.0"]


def test_only_losses_that_there_are_can_be_obeyed() -> None:
    """A number of a log that has lost its tail is as good as the newest there is."""
    bench = Servers().formed()
    bench.exited("w0.0")
    bench.obey(99)
    assert bench.state.members.fenced == 1
    bench.obey(99)
    assert [e for e in bench.events() if isinstance(e, records.Fenced)] == [records.Fenced(1, 1)]


def test_a_new_generation_hears_of_all_losses() -> None:
    """Who was lost before it may live, and ask the new servers for something: nobody must wait for it."""
    bench = Servers().formed()
    bench.exited("w0.0")
    bench.obey(1)
    bench.exited("s1.0")
    bench.join("s1.1")
    bench.again("s0.0")
    assert bench.say("s0.0", records.Heartbeat(2, 0)).losses == (records.Loss(1, "w0.0"),)


def test_who_is_lost_or_out_of_date_is_leased_nothing() -> None:
    bench = Servers().formed()
    bench.exited("w0.0")
    assert bench.say("w0.0", records.Lease(1, 10)).status is Status.LOST
    bench.exited("s1.0")
    assert bench.say("w1.0", records.Lease(1, 10)).status is Status.CLOSED
    bench.join("s1.1")
    bench.again("s0.0")
    assert bench.say("w1.0", records.Lease(1, 10)).status is Status.OK  # it has not heard of the grant
    assert not bench.state.shards.held
    assert bench.say("w1.0", records.Lease(2, 10)).leases


# -- the loss of a server


def test_all_servers_go_back_to_the_newest_file() -> None:
    bench = Servers().formed()
    held = bench.lease("w0.0", 10)
    bench.commit("s0.0", (*held[:4], 2))
    bench.say("s0.0", records.Checkpoint(1, 1, bench.lineage, "one"))
    bench.commit("s0.0", (held[0], held[1], 0, 2, 3))
    bench.exited("s0.0")
    bench.join("s0.1")
    bench.say("s1.0", records.Regroup(1, 2, bench.lineage, "h", 2))  # it holds step 2, which counts for nothing
    grant = bench.state.members.grant
    assert grant is not None
    assert (grant.members, grant.source, grant.committed, grant.restore_file) == (("s0.1", "s1.0"), None, 1, "one")
    assert list(bench.state.shards.epoch(0).returned) == [(2, 5)]
    bench.state.check()


def test_the_first_commit_of_a_generation_returns_what_older_ones_hold() -> None:
    bench = Servers().formed()
    bench.lease("w0.0", 10)
    bench.exited("s1.0")
    bench.join("s1.1")
    assert not bench.state.members.open
    bench.again("s0.0")
    assert bench.state.shards.held
    bench.begun_anew()
    bench.obey(0)
    assert not bench.state.shards.held


def test_a_server_that_did_not_ask_is_waited_for() -> None:
    bench = Servers().formed()
    bench.exited("s1.0")
    bench.join("s1.1")
    assert not bench.state.members.open
    bench.exited("s0.0")
    assert not bench.state.members.open
    bench.join("s0.1")
    assert bench.state.members.group == ("s0.1", "s1.1")


def test_the_end_is_told_to_servers_and_workers() -> None:
    bench = Servers(replace(PS, samples=10)).formed()
    held = bench.lease("w0.0", 10)
    bench.commit("s0.0", held[:5])
    replies = bench.ledger.run([bench.request("s0.0", records.Checkpoint(1, 1, bench.lineage, "end"))])
    assert {r.incarnation for r in replies if r.status is Status.END} == {"s0.0", "s1.0", "w0.0", "w1.0"}
    assert bench.say("s1.0", records.Heartbeat(1, 1)).status is Status.END


# -- evidence


def test_who_dies_alone_among_the_workers_accuses_its_samples() -> None:
    bench = Servers(replace(PS, max_attempts=1)).formed()
    bench.commit("s0.0", bench.lease("w1.0", 10)[:5])
    held = bench.lease("w0.0", 10)
    bench.exited("w0.0", *held[2:5])
    bench.obey(1)
    assert bench.state.shards.quarantined_total == held[4]


@pytest.mark.parametrize("other", ["w1.0", "s1.0"])
def test_who_dies_with_another_accuses_nobody(other: str) -> None:
    bench = Servers(replace(PS, max_attempts=1)).formed()
    held = bench.lease("w0.0", 10)
    bench.lease("w1.0", 10)
    bench.exited("w0.0", *held[2:5])
    bench.exited(other)
    if other == "s1.0":
        bench.join("s1.1")
        bench.again("s0.0")
        bench.begun_anew()
    bench.obey(2)
    assert bench.state.shards.quarantined_total == 0
    assert not bench.state.shards.blamed


# -- the state and its rows


def test_rows_give_the_state_back() -> None:
    bench = Servers().formed()
    bench.lease("w0.0", 10)
    bench.exited("w0.0")
    bench.join("w2.0")
    bench.say("w1.0", records.Leave(1))
    bench.obey(1)
    state = bench.state
    again = rows.load(State(PS), dict(rows.all_rows(state)))
    assert rows.digest(again) == rows.digest(state)
    assert (again.members.attached, again.members.losses, again.members.fenced) == (
        {"w2.0": None},
        {1: "w0.0", 2: "w1.0"},
        1,
    )


def test_the_same_log_gives_the_same_losses_wherever_it_is_read_from() -> None:
    """An accepted loss of the log ends everybody at once: whoever began with rows must number them alike."""
    bench = Servers()
    bench.join("s0.0", "s1.0", "w1.0", "w0.0")
    state, again = bench.state, rows.load(State(PS), dict(rows.all_rows(bench.state)))
    regressed = records.Regressed(5, 9, bytes(16), "run-1", 1_000, 1_000, "somebody", "the disk is gone")
    for one in (state, again):
        one.apply(regressed)
    assert state.members.losses == again.members.losses == {1: "w0.0", 2: "w1.0"}


def test_a_long_list_of_losses_is_told_in_pieces() -> None:
    bench = Servers().formed()
    for life in range(300):
        bench.join(f"w9.{life}")
    told = bench.say("s0.0", records.Heartbeat(1, 0)).losses
    assert [loss.number for loss in told] == list(range(1, 257))
    assert len(codec.encode(bench.say("s0.0", records.Heartbeat(1, 0)))) < 4_000
    assert [loss.number for loss in bench.obey(256).losses] == list(range(257, 300))
