"""The ledger's rules where samples are dealt out ahead, and in a colony, whose workers take over from each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
from antdt_schemas import codec, records
from antdt_schemas.records import Status
from antdt_schemas.strategies import kind_of, servers_of, sharding_of
from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.dealing import LOADS_PER_REPLY_MAX, evenly, loads
from antdt_streams.ledger.core.dealt import NOBODY, DealtShards
from antdt_streams.ledger.core.groups import RULES
from antdt_streams.ledger.core.state import State

from tests.helpers.servers import PS, Servers
from tests.simulation.judge import checked

EVEN = replace(PS, strategy="ps-asp/even/servers=2")
COLONY = replace(PS, strategy="ps-asp/colony/servers=2")


def todo(bench: Servers, who: str, epoch: int = 0) -> list[tuple[int, int]]:
    """What of its part a worker has not begun."""
    shards = bench.state.shards
    assert isinstance(shards, DealtShards)
    return list(shards.todo(who, epoch))


def leased(bench: Servers, who: str) -> int:
    """Samples that it is leased in the end, asking again and again."""
    for _ in range(20):
        held = bench.lease(who, 10_000)
    return sum(held[4::5])


@pytest.mark.parametrize("name", ["ps-bsp/even/servers=1", "ps-asp/colony/servers=12", "ps-ssp=3/even/servers=2"])
def test_a_name_says_how_samples_are_dealt(name: str) -> None:
    assert kind_of(name) in RULES
    assert servers_of(name) and sharding_of(name) in name


@pytest.mark.parametrize("name", ["ps-asp/odd/servers=1", "allreduce/even", "ps-asp/even", "ps-asp/servers=2/even"])
def test_what_is_no_name_of_a_sharding_has_no_rules(name: str) -> None:
    assert kind_of(name) not in RULES
    assert sharding_of(name) == ""


def test_pieces_are_cut_between_shards_and_nobody_gets_much_more() -> None:
    assert list(evenly([(0, 100)], 3, 8)) == [(0, 0, 40), (1, 40, 32), (2, 72, 28)]
    assert list(evenly([(3, 5), (7, 30)], 4, 8)) == [(0, 3, 2), (0, 7, 1), (1, 8, 8), (2, 16, 8), (3, 24, 6)]
    assert list(evenly([(0, 8)], 3, 8)) == [(0, 0, 8)]


def test_an_epoch_is_dealt_evenly_and_nobody_begins_with_another_ones_part() -> None:
    bench = Servers(EVEN).formed()
    assert leased(bench, "w1.0") == 50
    assert todo(bench, "w0.0") == [(0, 50)]
    assert leased(bench, "w0.0") == 50
    assert bench.say("w0.0", records.Lease(1, 10_000)).status is Status.OK
    bench.state.check()


def test_at_most_half_of_a_part_is_leased_at_once() -> None:
    bench = Servers(EVEN).formed()
    assert sum(bench.lease("w0.0", 10_000)[4::5]) == 30  # of 50, in whole shards of 10
    assert todo(bench, "w0.0") == [(30, 50)]


def test_the_part_of_a_worker_that_is_gone_goes_to_the_others_at_once_and_its_leases_when_it_is_refused() -> None:
    bench = Servers(EVEN).formed()
    bench.lease("w0.0", 10)
    bench.exited("w0.0")
    assert todo(bench, NOBODY) == [(10, 50)]
    assert leased(bench, "w1.0") == 90
    bench.obey(1)
    assert leased(bench, "w1.0") == 100
    bench.state.check()


def test_who_comes_in_the_middle_of_an_epoch_is_dealt_its_share_of_what_nobody_has_begun() -> None:
    bench = Servers(EVEN).formed()
    bench.lease("w0.0", 10)
    bench.join("w2.0")
    bench.lease("w2.0", 10)
    shares = [sum(end - start for start, end in todo(bench, who)) for who in ("w0.0", "w1.0", "w2.0")]
    assert shares == [30, 30, 20]  # one shard of it is leased already
    assert [e.anew for e in bench.events() if isinstance(e, records.Dealt)] == [False, True]


def test_whoever_is_done_goes_on_to_the_next_epoch_and_in_a_colony_not_before_all_is_begun() -> None:
    bench = Servers(replace(EVEN, epochs=2)).formed()
    assert leased(bench, "w0.0") == 100
    assert todo(bench, "w1.0") == todo(bench, "w1.0", 1) == [(50, 100)]
    colony = Servers(replace(COLONY, epochs=2)).formed()
    assert leased(colony, "w0.0") == 50
    leased(colony, "w1.0")
    assert leased(colony, "w0.0") == 100


def test_what_a_worker_gives_back_is_still_its_own() -> None:
    bench = Servers(EVEN).formed()
    held = bench.lease("w0.0", 10)
    bench.say("w0.0", records.Release(1, held[0], held[1]))
    assert todo(bench, "w0.0") == [(0, 50)]


def test_what_goes_into_quarantine_is_nobodys_part() -> None:
    bench = Servers(EVEN).formed()
    number, _, epoch, front, length = bench.lease("w0.0", 10)[:5]
    bench.state.apply(records.Returned(number, epoch, front, length, False, True))
    assert todo(bench, "w0.0") == [(10, 50)] and todo(bench, NOBODY) == []
    bench.state.check()


def test_what_a_lost_server_undoes_is_dealt_again() -> None:
    bench = Servers(EVEN).formed()
    held = bench.lease("w0.0", 10)
    bench.commit("s0.0", held[:5])
    bench.exited("s1.0")
    bench.join("s1.1")
    bench.again("s0.0")
    bench.begun_anew()
    bench.obey(0)
    assert todo(bench, NOBODY) == [(0, 10)]
    bench.state.check()
    assert leased(bench, "w1.0") + leased(bench, "w0.0") == 100


def test_what_comes_back_goes_to_who_has_least_first() -> None:
    bench = Servers(EVEN)
    bench.join("w2.0")
    bench.formed()
    leased(bench, "w1.0")
    bench.lease("w2.0", 10)
    bench.exited("w0.0")
    bench.lease("w2.0", 20)
    dealt = [e for e in bench.events() if isinstance(e, records.Dealt)][-1]
    assert dealt.incarnations == ("w1.0", "w2.0") and dealt.pieces[0] == 0


def test_who_was_dealt_nothing_has_nothing_and_is_not_dealt_anew() -> None:
    bench = Servers(replace(EVEN, samples=8)).formed()
    for who in ("w1.0", "w0.0", "w1.0", "w0.0"):
        bench.lease(who, 10)
    assert len([e for e in bench.events() if isinstance(e, records.Dealt)]) == 1


def test_parts_of_what_is_begun_whole_are_forgotten() -> None:
    bench = Servers(replace(COLONY, epochs=2)).formed()
    for who in ("w0.0", "w1.0", "w0.0"):
        leased(bench, who)
    shards = bench.state.shards
    assert isinstance(shards, DealtShards)
    assert [sorted(part.todo) for name, part in sorted(shards.parts.items()) if name != NOBODY] == [[1], [1]]


# -- a colony


def test_who_has_nothing_to_begin_is_told_what_others_have_not_begun_and_nobody_else_is() -> None:
    bench = Servers(COLONY).formed()
    assert not bench.say("w0.0", records.Lease(1, 10)).loads
    leased(bench, "w0.0")
    held = bench.lease("w1.0", 10)
    bench.commit("s0.0", (*held[:4], 4))
    told = bench.say("w0.0", records.Lease(1, 10_000))
    assert told.loads == (records.Load("w1.0", 46, 4, 0, 60, 40),)
    assert not Servers(EVEN).formed().say("w0.0", records.Lease(1, 10_000)).loads


def test_what_is_not_begun_is_moved_to_who_asks_for_it_and_asking_again_changes_nothing() -> None:
    bench = Servers(COLONY).formed()
    leased(bench, "w0.0")
    move = records.Move(1, "w1.0", 0, 80, 20)
    assert bench.say("w0.0", move).status is Status.OK
    assert bench.say("w0.0", move).status is Status.OK
    assert [e for e in bench.events() if isinstance(e, records.Moved)] == [records.Moved("w1.0", "w0.0", 0, 80, 20)]
    assert (todo(bench, "w0.0"), todo(bench, "w1.0")) == ([(80, 100)], [(50, 80)])
    assert leased(bench, "w0.0") == 70
    bench.state.check()


@pytest.mark.parametrize(
    ("move", "status", "said"),
    [
        (records.Move(1, "w1.0", 0, 40, 20), Status.WAIT, "[40, 60) of epoch 0 is not, or not any more"),
        (records.Move(1, "w9.0", 0, 60, 20), Status.WAIT, "what w9.0 has not begun"),
        (records.Move(1, "", 0, 60, 20), Status.WAIT, "has not begun"),
        (records.Move(1, "w1.0", 7, 60, 20), Status.WAIT, "has not begun"),
        (records.Move(1, "w1.0", 0, 60, 0), Status.REFUSED, "nothing that w0.0 can take over"),
        (records.Move(1, "w0.0", 0, 60, 20), Status.REFUSED, "nothing that w0.0 can take over"),
        (records.Move(0, "w1.0", 0, 60, 20), Status.OK, "Generation 0 is closed"),
    ],
)
def test_what_is_no_move_is_refused_and_recorded(move: records.Move, status: Status, said: str) -> None:
    bench = Servers(COLONY).formed()
    leased(bench, "w0.0")
    bench.lease("w1.0", 10)
    reply = bench.say("w0.0", move)
    assert reply.status is status
    assert bench.refused()[-1].kind == "Move"
    assert said in bench.refused()[-1].reason


def test_what_is_nobodys_is_dealt_and_not_taken_over() -> None:
    bench = Servers(COLONY).formed()
    bench.lease("w0.0", 10)
    bench.exited("w1.0")
    assert todo(bench, NOBODY) == [(50, 100)]
    reply = bench.say("w0.0", records.Move(1, NOBODY, 0, 60, 20))
    assert (reply.status, bench.refused()[-1].kind) == (Status.WAIT, "Move")


def test_what_is_moved_is_not_done_by_who_gives_it() -> None:
    bench = Servers(COLONY).formed()
    bench.lease("w0.0", 10)
    bench.say("w0.0", records.Move(1, "w1.0", 0, 80, 20))
    (told,) = loads(bench.state, "w0.0")
    assert (told.left, told.done) == (30, 0)


def test_nobody_hears_of_its_own_part_and_of_so_many_others_at_most() -> None:
    bench = Servers(replace(COLONY, samples=1_000))
    bench.join(*(f"w{number}.0" for number in range(2, 50)))
    bench.formed()
    bench.lease("w0.0", 10)
    told = loads(bench.state, "w1.0")
    assert "w1.0" not in [load.incarnation for load in told] and len(told) == LOADS_PER_REPLY_MAX
    even = Servers(EVEN).formed()
    even.lease("w0.0", 10)
    assert loads(even.state, "w1.0") == (), "where nobody may take over"


@pytest.mark.parametrize("spec", [EVEN, PS])
def test_nothing_is_moved_where_no_colony_is_meant(spec: records.JobSpec) -> None:
    bench = Servers(spec).formed()
    bench.lease("w0.0", 10)
    assert "names no sharding of a colony" in bench.say("w0.0", records.Move(1, "w1.0", 0, 60, 20)).reason


def test_servers_take_nothing_over() -> None:
    bench = Servers(COLONY).formed()
    bench.lease("w0.0", 10)
    reply = bench.say("s0.0", records.Move(1, "w1.0", 0, 60, 20))
    assert reply.status is Status.REFUSED and "samples are leased to workers" in reply.reason


def test_a_newcomer_of_a_colony_takes_over_its_part_itself() -> None:
    bench = Servers(COLONY).formed()
    bench.lease("w0.0", 10)
    bench.join("w2.0")
    told = bench.say("w2.0", records.Lease(1, 10))
    assert (told.status, [load.incarnation for load in told.loads]) == (Status.WAIT, ["w1.0", "w0.0"])
    assert bench.say("w2.0", records.Move(1, "w1.0", 0, 80, 20)).status is Status.OK
    assert leased(bench, "w2.0") == 20


# -- the state, its rows, and who reads the log without it


def test_rows_give_the_state_back_and_an_old_job_has_none_of_these() -> None:
    bench = Servers(COLONY).formed()
    bench.lease("w0.0", 10)
    bench.say("w0.0", records.Move(1, "w1.0", 0, 80, 20))
    bench.exited("w1.0")
    again = rows.load(State(COLONY), dict(rows.all_rows(bench.state)))
    assert rows.digest(again) == rows.digest(bench.state)
    again.check()
    plain = Servers().formed()
    plain.lease("w0.0", 10)
    assert not [key for key, _ in rows.all_rows(plain.state) if key.startswith(b"part/")]


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (records.Moved("w0.0", "w1.0", 0, 60, 10), "is not of w0.0, or was begun"),
        (records.Moved("w1.0", "w8.0", 0, 60, 10), "takes over samples of w1.0, and cannot"),
        (records.Dealt(0, ("w0.0",), (0, 60, 10), False), "is not nobody's, or was begun"),
        (records.Leased(100, 1, "w0.0", 1, 0, 90, 10), "is not of w0.0, or was begun"),
    ],
)
def test_a_checker_that_shares_no_code_finds_what_does_not_follow(event: records.Event, said: str) -> None:
    bench = Servers(COLONY).formed()
    bench.lease("w0.0", 10)
    assert checked(bench.broker.log)["broken"] is None
    with pytest.raises((AssertionError, LookupError)):
        rows.load(State(COLONY), dict(rows.all_rows(bench.state))).apply(event)
    assert said in checked([*bench.broker.log, following(bench, event)])["broken"]["message"]


def following(bench: Servers, event: records.Event) -> bytes:
    """The next entry of the leader, which says this."""
    fold = bench.ledger.office.fold
    office, at = fold.office, fold.position
    names = office.offset, office.hash, fold.state.sequence + 1, at.next_offset - 1, at.hash
    return codec.encode(records.Entry(records.Cycle(*names, fold.state.requests_next, fold.state.now_ms, (event,))))
