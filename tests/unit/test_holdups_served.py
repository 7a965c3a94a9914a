"""Who is alive and gets nowhere where the model lies on servers: nobody hangs unnoticed, whatever it is at, and nobody
who only waits is given up. The ledger alone, in its own clock.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from antdt.host.whereabouts import Standing
from antdt.worker.session import SERVER, Phase, Session, Where
from antdt_schemas import records
from antdt_schemas.records import Status
from antdt_streams.ledger.options import LedgerOptions

from tests.helpers.ledger import SPEC, Bench
from tests.helpers.servers import PS
from tests.unit.test_holdups import Beats, beats
from tests.unit.test_session_servers import Desk
from tests.unit.test_topic_ledger import GROWING

STUCK_S = 20
SERVES, IDLE, READY = "serving", "idle", {"s0": "serving", "s1": "serving"}


class Said(Bench):
    """Two servers and two workers, which say each second what they are at. What is named without a digit was begun
    anew, as by whoever serves or looks for samples; `reducing-3` was begun 3 s ago in the first second, and goes on.
    Who `asks` is out of the closed generation.
    """

    def __init__(self, strategy: str = "ps-bsp/servers=2", spec: records.JobSpec = SPEC) -> None:
        spec = replace(spec, strategy=strategy)
        super().__init__(spec, options=LedgerOptions(stuck_ms=STUCK_S * 1000))
        for name in ("s0.0", "s1.0", "w0.0", "w1.0"):
            role = "server" if name.startswith("s") else "worker"
            self.say(name, records.Join(role, "h", 1, "", "", 0, self.spec, "one"))
        self.ends = {"s0": "s0.0", "s1": "s1.0", "w0": "w0.0", "w1": "w1.0"}
        self.generations: dict[str, int] = {}
        self.allowed_s: dict[str, float] = {}

    def pass_s(self, seconds: int, **phases: str) -> None:
        for second in range(seconds):
            self.broker.now_ms += 1_000
            for name, said in phases.items():
                if said == "asks":
                    self.ask(name)
                    continue
                phase, _, since = said.partition("-")
                phase_s = int(since) + second if since else 0.1
                generation = self.generations.get(name, self.state.members.generation)
                body = records.Heartbeat(generation, 0, phase, float(phase_s), self.allowed_s.get(name, 0.0))
                self.ledger.run([self.request(self.ends[name], body)])

    def ask(self, *names: str) -> None:
        """They are out of the closed generation."""
        for name in names:
            self.ledger.run([self.request(f"{name}.0", records.Regroup(1, None, b"", "h", 1))])

    def close(self) -> None:
        self.say("operator", records.Rollback(0, f"somebody-{self.broker.now_ms}", "the loss has diverged"))
        assert not self.state.members.open

    @property
    def lost(self) -> dict[str, str]:
        """Who was given up, and why."""
        return {e.incarnation: e.reason for e in self.events() if isinstance(e, records.Lost)}


# -- samples that nobody else can have


def test_a_worker_that_hangs_with_samples_holds_up_who_has_none_left() -> None:
    """Nobody else can have what it was leased, so the data would never end."""
    bench = Said()
    bench.lease("w0.0", 8)
    bench.pass_s(STUCK_S - 1, **READY, w0="computing-0", w1=IDLE)
    assert bench.lost == {}
    bench.pass_s(4, **READY, w0=f"computing-{STUCK_S - 1}", w1=IDLE)
    assert list(bench.lost) == ["w0.0"] and bench.lost["w0.0"].startswith("holds up 1 others: computing for ")
    assert bench.state.members.open


def test_so_does_one_that_hangs_with_a_part_that_was_dealt_to_it() -> None:
    bench = Said("ps-bsp/even/servers=2")
    bench.lease("w1.0", 8)  # all are dealt something now, and w0 has begun nothing
    assert bench.state.shards.parts["w0.0"].unstarted and not bench.state.shards.held.get("w0.0")
    bench.pass_s(STUCK_S + 3, **READY, w0="loading-0", w1=IDLE)
    assert list(bench.lost) == ["w0.0"]


def test_one_that_has_none_holds_up_nobody_who_waits_for_some() -> None:
    bench = Said()
    bench.pass_s(5 * STUCK_S, **READY, w0="computing-0", w1=IDLE)
    assert bench.lost == {} and bench.state.members.open


def test_one_that_gets_on_with_its_samples_may_take_all_the_time() -> None:
    bench = Said()
    bench.lease("w0.0", 8)
    for _ in range(6):
        bench.pass_s(STUCK_S - 2, **READY, w0="computing-0", w1=IDLE)
    bench.allowed_s["w0"] = 100.0
    bench.pass_s(90, **READY, w0="user-0", w1=IDLE)
    assert bench.lost == {} and bench.state.members.open


def test_where_more_may_come_nobody_waits_for_who_is_slow() -> None:
    """A topic that grows."""
    bench = Said(spec=GROWING)
    bench.lease("w0.0", 8)
    bench.pass_s(3 * STUCK_S, **READY, w0="computing-0", w1=IDLE)
    assert bench.lost == {}


def test_a_worker_that_does_not_look_for_samples_any_more_is_lost() -> None:
    """Those who do say so again and again."""
    bench = Said()
    bench.pass_s(3 * STUCK_S, **READY, w0=IDLE, w1=IDLE)
    assert bench.lost == {}
    bench.pass_s(STUCK_S + 3, **READY, w0="idle-0", w1=IDLE)
    assert list(bench.lost) == ["w0.0"]


def test_a_server_that_hangs_when_all_samples_are_used_up_is_lost() -> None:
    """The last file would never be whole."""
    bench = Said()
    bench.pass_s(STUCK_S + 3, s0=SERVES, s1="serving-0", w0=IDLE, w1=IDLE)
    assert list(bench.lost) == ["s1.0"]


def test_a_message_that_is_lost_is_noticed_also_where_others_have_no_samples() -> None:
    bench = Said()
    bench.pass_s(STUCK_S - 1, **READY, w0="reducing-0", w1=IDLE)
    assert bench.state.members.open
    bench.pass_s(4, **READY, w0=f"reducing-{STUCK_S - 1}", w1=IDLE)
    assert not bench.state.members.open and bench.lost == {}


# -- into a generation


@pytest.mark.parametrize("waits", ["reducing-0", "idle", "computing-0"])
def test_a_server_that_does_not_get_into_its_generation_is_lost(waits: str) -> None:
    """It was granted, and nobody can serve its part."""
    bench = Said()
    bench.pass_s(STUCK_S - 1, s0=SERVES, s1="forming-500", w0=waits, w1=waits)
    assert bench.lost == {} and bench.state.members.open, "for how long it had waited for the grant is nothing"
    bench.pass_s(4, s0=SERVES, s1=f"forming-{500 + STUCK_S}", w0=waits, w1=waits)
    assert list(bench.lost) == ["s1.0"] and not bench.state.members.open


def test_a_server_that_loads_for_as_long_as_it_has_announced_is_waited_for() -> None:
    """And no message is lost meanwhile, though all workers wait."""
    bench = Said()
    bench.allowed_s["s1"] = 70.0
    bench.pass_s(70, s0=SERVES, s1="forming-0", w0="reducing-0", w1="reducing-0")
    assert bench.lost == {} and bench.state.members.open
    bench.pass_s(4, s0=SERVES, s1="forming-71", w0="reducing-70", w1="reducing-70")
    assert list(bench.lost) == ["s1.0"]


def test_a_server_that_waits_for_the_ledger_is_no_lost_message() -> None:
    bench = Said()
    bench.pass_s(3 * STUCK_S, s0=IDLE, s1=SERVES, w0="reducing-0", w1="reducing-0")
    assert bench.lost == {} and bench.state.members.open


def test_a_worker_that_does_not_get_in_is_lost_also_where_nobody_waits_for_it() -> None:
    bench = Said()
    bench.say("w1.0", records.Leave(1))
    bench.pass_s(STUCK_S + 3, **READY, w0="forming-0")
    assert list(bench.lost) == ["w0.0"] and bench.lost["w0.0"].startswith("is entering the generation for ")
    assert bench.state.members.open


# -- what nothing is heard of for a while


@pytest.mark.parametrize(("hung", "other"), [("forming", "reducing"), ("computing", "idle"), ("serving", "reducing")])
def test_heartbeats_that_are_lost_now_and_then_save_nobody(hung: str, other: str) -> None:
    """Nor does it begin anew what was waited for, or who waits."""
    bench = Said()
    bench.lease("w0.0", 8)
    who = "w0" if hung == "computing" else "s1"
    others = {name: said for name, said in {"s1": SERVES, "w0": "computing"}.items() if name != who}
    for second in range(STUCK_S + 8):
        at = {who: f"{hung}-{second}", "w1": other if other == IDLE else f"reducing-{second}"}
        bench.pass_s(1, s0=SERVES, **others, **(at if second % 4 == 0 else {}))
    assert list(bench.lost) == [f"{who}.0"]


def test_who_was_not_heard_of_for_long_may_have_had_samples_meanwhile() -> None:
    bench = Said()
    bench.lease("w0.0", 8)
    bench.pass_s(15, **READY, w0="computing-0", w1=IDLE)
    for second in range(8):  # whoever computes says nothing beside its other requests
        bench.ledger.run([bench.request("w1.0", records.Lease(1, 1))])
        bench.pass_s(1, **READY, w0=f"computing-{15 + second}")
    bench.pass_s(STUCK_S - 1, **READY, w0="computing-23", w1=IDLE)
    assert bench.lost == {}
    bench.pass_s(4, **READY, w0="computing-42", w1=IDLE)
    assert list(bench.lost) == ["w0.0"]


# -- out of a generation


def test_a_server_that_does_not_leave_a_generation_that_it_knows_to_be_over_is_lost() -> None:
    bench = Said()
    bench.close()
    bench.pass_s(STUCK_S - 1, s0="asks", s1="staying-0", w0="forming-0", w1="forming-0")
    assert bench.lost == {}
    bench.pass_s(4, s0="asks", s1=f"staying-{STUCK_S - 1}", w0="forming-20", w1="forming-20")
    assert list(bench.lost) == ["s1.0"] and "in a generation that it knows to be over for " in bench.lost["s1.0"]


def test_nor_does_a_member_without_servers() -> None:
    """Also where all of them do, and nobody waits."""
    bench = Beats()
    bench.say("operator", records.Rollback(0, "somebody", "the loss has diverged"))
    bench.pass_s(STUCK_S - 1, w0="staying", w1="staying", w2="computing")
    assert [bench.status(f"w{n}.0") for n in range(3)] == ["member"] * 3
    bench.pass_s(4, w0="staying", w1="staying", w2="computing")
    assert [bench.status(f"w{n}.0") for n in range(3)] == ["lost", "lost", "member"]


@pytest.mark.parametrize("phase", ["reducing", "forming", "idle", "ending"])
def test_who_was_not_told_that_it_is_over_is_not_given_up_for_that(phase: str) -> None:
    """As in requests that have waited for a ledger: what was answered to them nobody has heard yet."""
    bench = Said()
    bench.close()
    bench.pass_s(5 * STUCK_S, s0="asks", s1=f"{phase}-0", w0="forming-0", w1="forming-0")
    assert bench.lost == {}


def test_a_worker_that_stays_behind_is_lost_and_waits_for_nobody_in_the_next_generation() -> None:
    bench = Said()
    bench.close()
    bench.ask("s0", "s1")
    assert bench.state.members.generation == 2 and bench.state.members.open
    bench.generations["w0"] = 1
    bench.pass_s(3 * STUCK_S, s0="serving-0", s1=SERVES, w0="reducing-0", w1="computing-0")
    assert bench.lost == {}, "nobody waits for that server in its generation"
    bench.pass_s(STUCK_S + 3, **READY, w0="staying-0", w1="computing-0")
    assert list(bench.lost) == ["w0.0"]


def test_a_message_is_lost_among_those_who_are_there() -> None:
    bench = Said()
    bench.close()
    bench.ask("s0", "s1")
    bench.generations["w0"], bench.allowed_s["w0"] = 1, 100.0
    bench.pass_s(STUCK_S - 1, **READY, w0="user-0", w1="reducing-0")
    assert bench.state.members.open
    bench.pass_s(4, **READY, w0="user-20", w1=f"reducing-{STUCK_S - 1}")
    assert not bench.state.members.open and bench.lost == {}, "the other one may take its time"


# -- what a worker or a server says


def joined(name: str, role: str) -> Session:
    session = Session(name, f"{name}.0", PS, Where("h", 1), role=role)
    (asked,) = session.tick(0.0)
    members = tuple(records.Member(f"s{n}.0", f"s{n}", "h", 1) for n in range(2))
    grant = records.Grant("run", 1, members, None, None, 0, "init")
    for number, granted in ((asked.number, None), (-1, grant)):
        session.on_reply(records.Reply(name, f"{name}.0", number, Status.OK, "", 1, 0, False, (), granted))
    assert session.phase is Phase.MEMBER
    return session


@pytest.mark.parametrize(("name", "role"), [("w0", "worker"), ("s1", SERVER)])
def test_who_knows_that_its_generation_is_over_says_so_while_it_stays(name: str, role: str) -> None:
    session = joined(name, role)
    session.standing = Standing("reducing", 50.0)
    assert {beat.phase for beat in beats(session, 2.0)} == {"reducing"}
    session.on_reply(records.Reply(name, f"{name}.0", -1, Status.CLOSED, "s0 is lost", 1, 0, False, ()))
    said = []
    for tenth in range(30, 60):
        session.standing = Standing("reducing", 50.0 + tenth / 10)
        said += beats(session, tenth / 10)
    assert [(beat.phase, beat.detail) for beat in said] == [("staying", "reducing")] * 3
    assert 0.0 <= said[0].phase_s < 0.2 and 1.9 < said[-1].phase_s < 2.5, "since it knows"
    session.standing = Standing("computing", 70.0)
    assert {beat.phase for beat in beats(session, 8.0)} == {"computing"}, "it hears of it when that is done"
    session.standing = Standing("forming", 1.0)
    session.regroup(None, b"")
    assert "staying" not in {beat.phase for beat in beats(session, 10.0)}


def test_who_has_no_samples_says_so_beside_its_questions_for_some() -> None:
    """It moves, as it looks again and again, and what it is at is news nevertheless."""
    session, said = joined("w0", "worker"), []
    for tenth in range(10, 60):
        session.standing = Standing("idle", 0.1, 0.0, "waits for samples")
        said += beats(session, tenth / 10)
        assert session.outbox.number > 1
    assert 4 <= len(said) <= 6, "one a second"


def test_against_the_ledger_nobody_who_regroups_is_ever_said_to_stay() -> None:
    desk = Desk().formed()
    desk.ledger.run([records.Request("", "", 0, records.Rollback(0, "somebody", "why not"), b"")])
    desk.sent.clear()
    for session in desk.sessions.values():
        session.standing = Standing("forming", 0.1)
    desk.run(0.1)
    for session in desk.sessions.values():
        session.regroup(None, b"")
    desk.run(2.0)
    assert "staying" not in {r.body.phase for r in desk.sent if isinstance(r.body, records.Heartbeat)}
