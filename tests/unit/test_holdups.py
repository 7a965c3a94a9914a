"""Who is alive and gets nowhere: who is named, who is lost, and who never is. The ledger alone, in its own clock."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from antdt.host.whereabouts import At, Page, Standing
from antdt.worker.session import Session, Where
from antdt_schemas import lineage, records
from antdt_schemas.records import Status
from antdt_streams.ledger.core.leader import InOffice
from antdt_streams.ledger.options import LedgerOptions

from tests.helpers.ledger import SPEC, Bench

STUCK_S = 20


@contextmanager
def heard(logger: str) -> Iterator[list[str]]:
    """What is logged meanwhile."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(logger).addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger(logger).removeHandler(handler)


class Beats(Bench):
    """Three workers that say each second what they are at."""

    def __init__(self) -> None:
        super().__init__(replace(SPEC, workers_min=3), options=LedgerOptions(stuck_ms=STUCK_S * 1000))
        for name in ("w0.0", "w1.0", "w2.0"):
            self.say(name, records.Join("worker", "h", 1, "n", "", 0, self.spec))
        self.since: dict[str, tuple[str, int]] = {}
        self.at_s = 0

    @property
    def office(self) -> InOffice:
        return self.ledger.office

    def pass_s(self, seconds: int, allowed_s: float = 0.0, **phases: str) -> list[str]:
        """Time passes; w0="reducing" and so on. Returns what the ledger says aloud."""
        with heard("antdt.ledger") as said:
            for _ in range(seconds):
                self.at_s += 1
                self.broker.now_ms += 1_000
                for name, phase in phases.items():
                    if self.since.get(name, ("", 0))[0] != phase:
                        self.since[name] = phase, self.at_s
                    for_s = float(self.at_s - self.since[name][1])
                    allowed = allowed_s if phase == "user" else 0.0
                    body = records.Heartbeat(self.state.members.generation, 0, phase, for_s, allowed, "cat.png")
                    self.ledger.run([self.request(f"{name}.0", body)])
        return said

    def status(self, name: str) -> str:
        found: str = self.state.members.incarnations[name].status
        return found


@pytest.mark.parametrize("phase", ["loading", "computing", "user", "saving"])
def test_who_holds_up_the_others_is_named_within_the_patience_and_then_lost(phase: str) -> None:
    bench = Beats()
    said = bench.pass_s(8, w0="reducing", w1=phase, w2="reducing")
    assert len(said) == 1, "once"
    assert said[0].startswith("w1.0 holds up 2 others: ")
    assert "(cat.png)" in said[0]
    assert bench.say("w1.0", records.Heartbeat(1, 0, phase, 9.0)).warning == said[0], "it says so in its own terminal"
    assert bench.say("w0.0", records.Heartbeat(1, 0, "reducing", 9.0)).warning == ""
    assert bench.status("w1.0") == "member"
    bench.pass_s(STUCK_S - 8, w0="reducing", w1=phase, w2="reducing")
    assert bench.status("w1.0") == "member"
    bench.pass_s(3, w0="reducing", w1=phase, w2="reducing")
    assert [bench.status(f"w{i}.0") for i in range(3)] == ["member", "lost", "member"]
    (lost,) = [e for e in bench.events() if isinstance(e, records.Lost)]
    assert "holds up 2 others" in lost.reason and "(cat.png)" in lost.reason
    reply = bench.say("w1.0", records.Heartbeat(1, 0, phase, 99.0, 0.0, ""))
    assert reply.status is Status.LOST


@pytest.mark.parametrize("phase", ["loading", "computing", "user", "saving", "forming"])
def test_what_all_do_alike_is_nobodys_fault_however_long(phase: str) -> None:
    bench = Beats()
    assert bench.pass_s(5 * STUCK_S, w0=phase, w1=phase, w2=phase) == []
    assert bench.state.members.open


def test_what_was_announced_takes_as_long_as_was_said() -> None:
    bench = Beats()
    assert bench.pass_s(3 * STUCK_S, 70.0, w0="reducing", w1="user", w2="reducing") == []
    assert bench.status("w1.0") == "member"
    bench.pass_s(20, 70.0, w0="reducing", w1="user", w2="reducing")
    assert bench.status("w1.0") == "lost"


def test_who_is_slow_in_every_step_is_not_stuck() -> None:
    bench = Beats()
    for _ in range(10):
        bench.pass_s(4, w0="reducing", w1="computing", w2="reducing")
        bench.pass_s(1, w0="computing", w1="reducing", w2="computing")
    assert bench.state.members.open


def test_where_all_wait_for_each_other_they_meet_again_and_nobody_is_lost() -> None:
    bench = Beats()
    bench.pass_s(STUCK_S - 1, w0="reducing", w1="reducing", w2="reducing")
    assert bench.state.members.open
    (said,) = bench.pass_s(4, w0="reducing", w1="reducing", w2="reducing")
    assert "all members wait for each other" in said
    assert not bench.state.members.open
    assert not [e for e in bench.events() if isinstance(e, records.Lost)]


def test_who_does_not_come_to_the_next_generation_holds_up_those_who_did() -> None:
    bench = Beats()
    bench.pass_s(1, w0="user", w1="user", w2="user")
    for name in ("w0.0", "w2.0"):
        bench.ledger.run([bench.request(name, records.Regroup(1, 0, lineage.ROOT, "h", 1))])
    assert not bench.state.members.open
    said = list[str]()
    for _ in range(STUCK_S + 3):
        said += bench.pass_s(1, w1="user")
        for name in ("w0.0", "w2.0"):
            bench.ledger.run([bench.request(name, records.Regroup(1, 0, lineage.ROOT, "h", 1))])
    assert [line.split(":")[0] for line in said] == ["w1.0 holds up 2 others"]
    assert bench.status("w1.0") == "lost"
    assert bench.state.members.group == ("w0.0", "w2.0")
    assert bench.state.members.open


def test_what_was_heard_long_ago_says_nothing_of_today() -> None:
    """It has moved since, and other requests were its signs of life."""
    bench = Beats()
    bench.pass_s(2 * STUCK_S, w0="computing", w1="computing", w2="computing")
    for _ in range(STUCK_S + 3):
        assert bench.pass_s(1, w0="reducing", w2="reducing") == []
        bench.ledger.run([bench.request("w1.0", records.Lease(1, 1))])
    assert bench.state.members.open


# -- what a worker says


def member() -> Session:
    session = Session("w0", "w0.0", SPEC, Where("h", 1))
    session.tick(0.0)
    grant = records.Grant("run", 1, (records.Member("w0.0", "w0", "h", 1),), None, None, 0, "init")
    session.on_reply(records.Reply("w0", "w0.0", -1, Status.OK, "", 1, 0, False, (), grant))
    session.begin([], b"")
    return session


def beats(session: Session, now_s: float) -> list[records.Heartbeat]:
    return [r.body for r in session.tick(now_s) if isinstance(r.body, records.Heartbeat)]


def test_a_heartbeat_says_what_the_training_thread_is_at_also_while_other_requests_go_out() -> None:
    """A worker that asks for samples again and again is alive; that it is stuck only a heartbeat tells."""
    session = member()
    told = []
    for tenth in range(10, 60):
        now_s = tenth / 10
        session.standing = Standing("loading", now_s - 1.0, 0.0, "position 3 of epoch 0")
        told += beats(session, now_s)
        assert session.outbox.number > 1
    assert 4 <= len(told) <= 6, "one a second"
    assert told[-1].phase == "loading" and told[-1].phase_s > 3.0 and told[-1].detail == "position 3 of epoch 0"


def test_while_it_moves_any_request_is_a_heartbeat() -> None:
    session = member()
    told = []
    for tenth in range(10, 60):
        session.standing = Standing("computing", 0.01)
        told += beats(session, tenth / 10)
    assert len(told) <= 3, "where nothing else goes out"


def test_a_page_says_which_sample_it_is_at_and_forgets_it_with_the_phase() -> None:
    page = Page()
    assert page.standing() == Standing()
    page.enter(At.LOADING)
    page.take([(0, 5, 3), (1, 0, 2)])
    assert page.at_hand() == (0, 5, 3, 1, 0, 2)
    page.load(1, 1)
    assert page.at_hand() == (1, 1, 1)
    assert page.standing().detail == "position 1 of epoch 1"
    page.enter(At.COMPUTING)
    assert page.at_hand() == (0, 5, 3, 1, 0, 2)
    page.enter(At.REDUCING)
    assert page.at_hand() == (), "whoever dies while it waits for others does not die of its samples"
    page.enter(At.USER, "evaluation", 60.0)
    said = page.standing()
    assert (said.phase, said.allowed_s, said.detail) == ("user", 60.0, "evaluation")


# -- where the model lies on servers


class Served(Beats):
    """A server and two workers attached to it, which say each second what they are at."""

    def __init__(self) -> None:
        Bench.__init__(self, replace(SPEC, strategy="ps-bsp/servers=1"), options=LedgerOptions(stuck_ms=STUCK_S * 1000))
        for name, role in (("s0.0", "server"), ("w0.0", "worker"), ("w1.0", "worker")):
            self.say(name, records.Join(role, "h", 1, "n", "", 0, self.spec))
        self.since: dict[str, tuple[str, int]] = {}
        self.at_s = 0

    def idle_s(self, seconds: int, **phases: str) -> list[str]:
        """A server that answers whoever asks says each time that it has begun to a second ago."""
        said = []
        for _ in range(seconds):
            self.since["s0"] = "serving", self.at_s
            said += self.pass_s(1, s0="serving", **phases)
        return said


def test_a_server_that_hangs_is_lost_and_all_of_them_form_anew() -> None:
    bench = Served()
    said = bench.pass_s(STUCK_S + 3, s0="serving", w0="reducing", w1="reducing")
    assert said[0].startswith("s0.0 holds up 2 others: serving for ")
    assert bench.status("s0.0") == "lost"
    assert not bench.state.members.open


def test_a_server_that_answers_waits_for_nobody_and_holds_up_nobody() -> None:
    """However long the only worker that is there computes."""
    bench = Served()
    bench.say("w1.0", records.Leave(1))
    assert bench.idle_s(5 * STUCK_S, w0="computing") == []
    assert bench.state.members.open and bench.status("w0.0") == "attached"


def test_a_worker_that_hangs_is_lost_and_the_generation_goes_on() -> None:
    bench = Served()
    (said, *_) = bench.idle_s(STUCK_S + 3, w0="loading", w1="reducing")
    assert said.startswith("w0.0 holds up 1 others: loading samples for ")
    assert (bench.status("w0.0"), bench.status("w1.0")) == ("lost", "attached")
    assert bench.state.members.open
    assert bench.say("s0.0", records.Heartbeat(1, 0, "serving")).losses == (records.Loss(1, "w0.0"),)


def test_a_message_that_is_lost_between_workers_and_servers_ends_the_generation() -> None:
    bench = Served()
    bench.idle_s(STUCK_S - 1, w0="reducing", w1="reducing")
    assert bench.state.members.open
    bench.idle_s(4, w0="reducing", w1="reducing")
    assert not bench.state.members.open
    assert not [e for e in bench.events() if isinstance(e, records.Lost)]


def test_what_was_said_of_waiting_in_the_last_generation_ends_no_other_one() -> None:
    bench = Served()
    while bench.state.members.open:
        bench.idle_s(1, w0="reducing", w1="reducing")
    bench.say("s0.0", records.Regroup(1, None, b"", "h", 2))  # before anybody looks again
    assert bench.state.members.generation == 2
    bench.idle_s(STUCK_S - 2, w0="reducing", w1="reducing")
    assert (bench.state.members.generation, bench.state.members.open) == (2, True)


def test_a_server_that_hangs_is_lost_also_where_only_workers_wait_for_the_next_generation() -> None:
    bench = Served()
    bench.say("operator", records.Rollback(0, "somebody", "the loss has diverged"))
    assert not bench.state.members.open
    bench.pass_s(STUCK_S + 6, s0="serving", w0="forming", w1="forming")
    assert bench.status("s0.0") == "lost"
