"""The launcher's rules as a machine: who is started again, who is let go, and how a launch ends."""

from __future__ import annotations

import signal

import pytest
from antdt.launch.feed import order_of
from antdt.launch.slots import (
    SERVERS_LINGER_S,
    End,
    Instruction,
    Kill,
    Last,
    Release,
    Report,
    Restart,
    Rules,
    Say,
    Slots,
    Start,
    Terminate,
)
from antdt_schemas import codec
from antdt_schemas.errors import ExitCode
from antdt_schemas.records import Action, Cause, Decision

KILL, TERM = -signal.SIGKILL, -signal.SIGTERM
NOTHING = Last()


def begun(workers: int = 2, restarts_max: int = 2) -> Slots:
    slots = Slots([f"w{rank}" for rank in range(workers)], "run", Rules(restarts_max, 10.0))
    for name in slots.slots:
        assert slots.start(name) == [Start(name, 0, False)]
    return slots


def order(incarnation: str, *, news: bool = True) -> Restart:
    return Restart(incarnation, "policy p (version 1, decision 7)", "it is slow", news)


def done(instructions: list[Instruction]) -> list[Instruction]:
    """What is done, without what is said."""
    return [one for one in instructions if not isinstance(one, Say)]


def said(instructions: list[Instruction]) -> str:
    return "\n".join(one.text for one in instructions if isinstance(one, Say))


# -- started again


@pytest.mark.parametrize("code", [75, 76, -9, -11, -6])
def test_who_asks_for_it_or_dies_of_a_signal_is_started_again(code: int) -> None:
    slots = begun()
    found = slots.on_exit("w0", code, 0.0, Last(at=(0, 4, 4)))
    assert done(found) == [Report("w0", "w0.0.run", code, (0, 4, 4)), Start("w0", 1, False)]
    assert said(found).endswith(": started again (1)")
    assert slots.incarnation("w0") == "w0.1.run"


def test_restarts_are_renewed_by_progress_and_not_spent_over_a_lifetime() -> None:
    slots = begun(1)

    def dies(taken_part: int) -> bool:
        return Start in map(type, slots.on_exit("w0", KILL, 0.0, Last(taken_part=taken_part)))

    assert [dies(step) for step in range(1, 20)] == [True] * 19, "each life came to something"
    assert [dies(0), dies(0)] == [True, False], "two restarts without progress"


def test_what_was_rolled_back_is_no_progress() -> None:
    slots = begun(1)
    again = [Start in map(type, slots.on_exit("w0", KILL, 0.0, Last(taken_part=s))) for s in (19, 7)]
    assert again == [True, True]
    found = slots.on_exit("w0", KILL, 0.0, Last(taken_part=19))
    assert done(found) == [Report("w0", "w0.2.run", KILL, ()), Release("w0"), End(128 + 9)]


def test_who_learned_to_hold_less_does_not_count_and_blames_no_sample() -> None:
    slots = begun(1, restarts_max=0)
    found = slots.on_exit("w0", KILL, 0.0, Last(at=(0, 4, 4), shrunk=True, learned="for lack of memory: it takes 8"))
    assert done(found) == [Report("w0", "w0.0.run", KILL, ()), Start("w0", 1, False)]
    assert said(found) == "w0 was ended by SIGKILL for lack of memory: it takes 8: started again (1)"
    assert Start in map(type, slots.on_exit("w0", 75, 0.0, Last(at=(0, 4, 4), shrunk=True)))
    assert End(75) in slots.on_exit("w0", 75, 0.0, NOTHING)


@pytest.mark.parametrize("last", [Last(blamed=True, attempts=3), Last(at=(0, 4, 4), attempts=3)])
def test_samples_that_are_to_blame_are_tried_so_often(last: Last) -> None:
    slots = begun(1)
    assert [Start in map(type, slots.on_exit("w0", 75, 0.0, last)) for _ in range(6)] == [True] * 5 + [False]
    slots = begun(1)
    assert [Start in map(type, slots.on_exit("w0", 75, 0.0, Last(attempts=3))) for _ in range(3)] == [True, True, False]


# -- let go


@pytest.mark.parametrize("code", [0, 3, 143, 137, TERM])
def test_who_has_left_is_let_go_and_the_others_go_on(code: int) -> None:
    slots = begun()
    found = slots.on_exit("w0", code, 0.0, Last(checkpoint=20))
    assert done(found) == [Report("w0", "w0.0.run", TERM, ())] * (code == TERM) + [Release("w0")]
    assert ("the newest that is known here is of step 20" in said(found)) == (code in (137, TERM))
    assert not slots.ending


@pytest.mark.parametrize(("code", "status"), [(1, 1), (2, 2), (42, 42), (7, 7)])
def test_any_other_end_ends_the_launch(code: int, status: int) -> None:
    slots = begun(3)
    found = slots.on_exit("w1", code, 0.0, Last(words="somebody else runs it"))
    assert done(found) == [Report("w1", "w1.0.run", code, ()), Release("w1"), Terminate("w0"), Terminate("w2")]
    assert said(found) == f"w1 ended with status {code}: somebody else runs it"
    assert End not in map(type, slots.on_exit("w0", 143, 1.0, NOTHING))
    assert done(slots.on_exit("w2", KILL, 1.0, Last(at=(0, 1, 1)))) == [
        Report("w2", "w2.0.run", ExitCode.KILLED, (0, 1, 1)),
        Release("w2"),
        End(status),
    ]


@pytest.mark.parametrize(
    ("told", "codes", "status"),
    [
        (0, (0, 0), 0),
        (0, (0, 143), 0),
        (0, (0, 3), 3),
        (0, (143, 143), 143),
        (0, (143, 137), 137),
        (1, (0, 0), 0),
        (1, (0, 3), 0),
        (1, (0, 143), 143),
        (1, (143, TERM), 137),
        (1, (143, 75), 137),
    ],
)
def test_what_has_become_of_the_work(told: int, codes: tuple[int, int], status: int) -> None:
    slots = begun()
    if told:
        assert slots.on_told(told, 0.0) == [Terminate("w0"), Terminate("w1")]
    first, last = (slots.on_exit(name, code, 0.0, NOTHING) for name, code in zip(slots.slots, codes, strict=True))
    assert (End(status) in first, last[-1]) == (False, End(status))


def test_a_launch_that_is_told_kills_when_the_grace_is_over_or_when_it_is_told_again() -> None:
    slots = begun()
    slots.on_told(1, 100.0)
    assert slots.on_told(1, 100.1) == slots.on_tick(109.0) == []
    assert slots.on_tick(109.1) == [Kill("w0"), Kill("w1")]
    assert slots.on_tick(109.2) == slots.on_told(2, 109.3) == []
    assert "it did not leave in time (--grace-s 10); what is in no" in said(slots.on_exit("w0", KILL, 110.0, NOTHING))
    slots = begun()
    slots.on_told(1, 0.0)
    assert slots.on_told(2, 0.1) == [Kill("w0"), Kill("w1")]
    assert "it was to end at once; what is in no checkpoint" in said(slots.on_exit("w0", KILL, 110.0, NOTHING))
    assert not slots.unkilled("w1")


def test_a_launch_that_is_told_before_it_begins_starts_nobody() -> None:
    slots = Slots(["w0", "w1"], "run", Rules())
    slots.start("w0")
    assert slots.on_told(1, 0.0) == [Terminate("w0")]
    assert slots.on_exit("w0", 143, 0.0, NOTHING)[-1] == End(143)
    assert Slots(["w0"], "run", Rules()).on_told(1, 0.0) == [End(143)]


def test_another_launch_takes_over() -> None:
    slots = begun()
    assert slots.on_wanted("user@host:1", 0.0) == [Terminate("w0"), Terminate("w1")]
    slots.on_exit("w0", 42, 0.0, NOTHING)
    found = slots.on_exit("w1", 143, 0.0, NOTHING)
    assert found[-2:] == [Say("antdt launch: user@host:1 takes over: this launch has ended"), End(42)]


def test_a_place_is_taken_over_once() -> None:
    slots = Slots(["w0"], "run", Rules(take_over=True))
    assert slots.start("w0") == [Start("w0", 0, True)]
    assert Start("w0", 1, True) in slots.on_exit("w0", 75, 0.0, NOTHING), "it was not granted yet"
    assert Start("w0", 2, False) in slots.on_exit("w0", KILL, 0.0, Last(joined=True))
    assert Start("w0", 3, False) in slots.on_exit("w0", KILL, 0.0, NOTHING)


# -- orders


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (143, "w1 ended with status 143: it has left; started again as ordered (1)"),
        (137, "w1 ended with status 137: it could not save its work; what is in no checkpoint is done again"),
        (TERM, "w1 was ended by SIGTERM: it could not save its work; what is in no checkpoint is done again"),
        (-11, "w1 was ended by SIGSEGV; started again as ordered (1)"),
    ],
)
def test_an_incarnation_that_is_to_go_drains_and_the_next_one_is_started(code: int, words: str) -> None:
    slots = begun(restarts_max=1)
    found = slots.on_order(order("w1.0.run"), 0.0)
    assert done(found) == [Terminate("w1")]
    assert said(found) == (
        "w1.0.run is told to leave, to be started again, as policy p (version 1, decision 7) orders: it is slow"
    )
    found = slots.on_exit("w1", code, 5.0, NOTHING)
    assert found[-1] == Start("w1", 1, False)
    assert said(found).startswith(words)
    assert slots.on_tick(1e9) == [], "its successor has no such bound"
    assert Start("w1", 2, False) in slots.on_exit("w1", 75, 0.0, NOTHING), "an order counts for nothing"


def test_a_drain_that_outlasts_the_grace_is_killed_and_started_again_all_the_same() -> None:
    slots = begun()
    slots.on_order(order("w1.0.run"), 100.0)
    assert slots.on_tick(109.0) == []
    assert slots.on_tick(109.1) == [Kill("w1")]
    found = slots.on_exit("w1", KILL, 109.2, Last(at=(0, 4, 4), checkpoint=20))
    assert done(found) == [Report("w1", "w1.0.run", ExitCode.KILLED, (0, 4, 4)), Start("w1", 1, False)]
    assert said(found) == (
        "w1 was ended by SIGKILL: it did not leave in time (--grace-s 10); what is in no checkpoint is done again (the "
        "newest that is known here is of step 20); started again as ordered (1)"
    )


def test_a_repeat_and_an_order_for_who_is_gone_do_nothing_and_say_so() -> None:
    slots = begun()
    assert done(slots.on_order(order("w1.0.run"), 0.0)) == [Terminate("w1")]
    assert said(slots.on_order(order("w1.0.run"), 1.0)).endswith("orders: it is leaving already")
    slots.on_exit("w1", 143, 0.0, NOTHING)
    for gone in ("w1.0.run", "w1.0.another", "w1.7.run", "w1"):
        found = slots.on_order(order(gone), 2.0)
        assert done(found) == []
        assert said(found).startswith(f"{gone} is not started again")
        assert said(found).endswith("the worker is w1.1.run now")
        assert slots.on_order(order(gone, news=False), 2.0) == [], "it was there before anybody read"
    slots.on_exit("w1", 143, 0.0, NOTHING)
    assert said(slots.on_order(order("w1.1.run"), 3.0)).endswith("the worker has ended")
    for other in ("w7.0.run", "", "w7", "x.w1.0.run"):
        assert slots.on_order(order(other), 4.0) == [], "another launch's"


def test_who_was_given_up_and_has_come_back_by_itself_is_known_by_its_new_name() -> None:
    slots = begun()
    slots.on_renamed("w0", "w0.1.abc")
    assert done(slots.on_order(order("w0.0.run"), 0.0)) == [], "it is not that any more"
    assert done(slots.on_order(order("w0.1.abc"), 0.0)) == [Terminate("w0")]
    found = slots.on_exit("w0", KILL, 1.0, NOTHING)
    assert Report("w0", "w0.1.abc", KILL, ()) in found
    assert Start("w0", 1, False) in found
    assert slots.incarnation("w0") == "w0.1.run", "its next process begins anew"


def test_who_is_done_or_fails_on_its_way_out_is_not_started_again() -> None:
    for code in (0, 3):
        slots = begun()
        slots.on_order(order("w1.0.run"), 0.0)
        assert done(slots.on_exit("w1", code, 0.0, NOTHING)) == [Release("w1")]
    for code in (1, 2, 42):
        slots = begun()
        slots.on_order(order("w1.0.run"), 0.0)
        assert Terminate("w0") in slots.on_exit("w1", code, 0.0, NOTHING)


def test_a_launch_that_is_told_meanwhile_lets_it_go_for_good() -> None:
    slots = begun()
    slots.on_order(order("w1.0.run"), 0.0)
    assert slots.on_told(1, 1.0) == [Terminate("w0")], "w1 was told already"
    assert slots.on_order(order("w0.0.run"), 1.0) != [Terminate("w0")]
    assert done(slots.on_exit("w1", 143, 2.0, NOTHING)) == [Release("w1")]
    assert slots.on_exit("w0", 143, 2.0, NOTHING)[-1] == End(143)


def test_where_nobody_is_started_again_an_order_ends_the_launch_so_that_it_is_started_elsewhere() -> None:
    slots = begun(1, restarts_max=0)
    slots.on_order(order("w0.0.run"), 0.0)
    found = slots.on_exit("w0", 143, 1.0, NOTHING)
    assert done(found) == [Release("w0"), End(ExitCode.RESTART_ELSEWHERE)]
    assert "it has left; it is to be started elsewhere, as ordered (--max-restarts 0)" in said(found)


def test_whoever_is_to_restart_elsewhere_does_so_for_an_order_and_here_for_all_else() -> None:
    slots = Slots(["w0", "w1"], "run", Rules(2, 10.0, elsewhere=True))
    for name in ("w0", "w1"):
        slots.start(name)
    assert Start("w0", 1, False) in slots.on_exit("w0", 75, 0.0, NOTHING)
    slots.on_order(order("w0.1.run"), 1.0)
    found = slots.on_exit("w0", 143, 2.0, NOTHING)
    assert done(found) == [Release("w0"), Terminate("w1")], "its node is slow for the others of it, too"
    assert "it is to be started elsewhere, as ordered (--restart-elsewhere)" in said(found)
    assert slots.on_exit("w1", 143, 3.0, NOTHING)[-1] == End(ExitCode.RESTART_ELSEWHERE)


# -- decisions


def decision(action: Action, target: str = "") -> bytes:
    cause = Cause(0, 3, 0)
    return codec.encode(Decision(cause, 2, action, (), 1.0, 0, target, "p", 1, "it is slow.\nVery.", 0.0, 3, 3))


def test_of_the_decisions_those_are_orders_that_name_an_incarnation() -> None:
    found = order_of(decision(Action.KILL_RESTART, "w1.0.run"), 7)
    assert found == ("w1.0.run", "policy p (version 1, decision 7)", "it is slow. Very")
    assert order_of(decision(Action.ADJUST_LR), 8) is None
    assert order_of(b"junk", 9) is order_of(None, 10) is None


# -- servers


def with_servers(workers: int = 1) -> Slots:
    names = [*(f"w{rank}" for rank in range(workers)), "s0"]
    slots = Slots(names, "run", Rules(2, 10.0), ["s0"])
    for name in names:
        slots.start(name)
    return slots


def test_servers_are_told_to_leave_when_no_worker_is_left() -> None:
    slots = with_servers(2)
    slots.on_exit("w0", 143, 0.0, NOTHING)
    assert slots.on_tick(0.0) == []
    slots.on_exit("w1", 143, 5.0, NOTHING)
    assert slots.on_tick(5.0) == slots.on_tick(5.0 + SERVERS_LINGER_S - 1) == [], (
        "the job may tell them that it is done"
    )
    assert done(slots.on_tick(5.0 + SERVERS_LINGER_S)) == [Terminate("s0")]
    assert End(143) in slots.on_exit("s0", 143, 16.0, NOTHING)


def test_a_launch_whose_job_is_done_ends_with_its_servers() -> None:
    slots = with_servers()
    assert End not in map(type, slots.on_exit("w0", 0, 0.0, NOTHING))
    assert End(0) in slots.on_exit("s0", 0, 0.1, NOTHING)


def test_a_server_is_started_again_as_a_worker_is() -> None:
    slots = with_servers()
    assert done(slots.on_exit("s0", KILL, 0.0, NOTHING)) == [Report("s0", "s0.0.run", KILL, ()), Start("s0", 1, False)]
    assert done(slots.on_order(order("s0.1.run"), 1.0)) == [Terminate("s0")]
    assert done(slots.on_exit("s0", 143, 2.0, NOTHING)) == [Start("s0", 2, False)]
