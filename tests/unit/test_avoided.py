"""antdt avoid-nodes: which nodes are slow by what was decided, for how long, and how many at most."""

from __future__ import annotations

from dataclasses import replace

from antdt_schemas.records import Action, Cause, Decision, Effect, Verdict
from antdt_streams.ledger.core.members import Incarnation
from antdt_streams.views.avoided import avoided

HOUR = 3_600_000
BASE = Decision(Cause(0, 1, 0), 0, Action.KILL_RESTART, (), 1.0, 0, "", "nd", 1, "it is slow", 0.3, 0, 0)


def lives(*said: str) -> dict[str, Incarnation]:
    """Incarnations in the order in which they joined: "w0.0@n0"."""
    out = {}
    for one in said:
        name, _, node = one.partition("@")
        out[name] = Incarnation(name.partition(".")[0], "worker", "h", 1, node, "", 0)
    return out


def order(at: int, target: str, hours: float = 0.0) -> tuple[int, int, Decision]:
    return at, int(hours * HOUR), replace(BASE, cause=Cause(0, at, 0), target=target)


def effect(of: int, verdict: Verdict, worker: str = "w0") -> tuple[int, int, Decision]:
    came = Effect(Cause(0, of, 0), Action.KILL_RESTART, 0, worker, 0.3, 0.3, 0.0, 3, 1, 1.0, verdict)
    return 99, 0, replace(BASE, cause=Cause(0, 99, 0), action=Action.NONE, effect=came)


EIGHT = [f"w{number}.0@n{number}" for number in range(8)]
NOW = 1 * HOUR


def nodes(*decisions: tuple[int, int, Decision], known: list[str] = EIGHT, **more: int) -> list[str]:
    return [one.node for one in avoided(decisions, lives(*known), NOW, 24 * HOUR, **more).nodes]


def test_the_node_of_whoever_was_to_start_again_is_named_with_the_reason_and_where_it_stands() -> None:
    (one,) = avoided([order(7, "w3.0")], lives(*EIGHT), NOW, 24 * HOUR).nodes
    assert (one.node, one.worker, one.incarnation, one.offset) == ("n3", "w3", "w3.0", 7)
    assert (one.time_ms, one.expires_ms, one.reason) == (0, 24 * HOUR, "policy nd: it is slow")


def test_nobody_was_slow() -> None:
    plan = replace(BASE, action=Action.ADJUST_BS)
    assert nodes() == nodes((1, 0, plan)) == []


def test_what_a_person_orders_says_nothing_of_a_node() -> None:
    offset, time_ms, ordered = order(1, "w2.0")
    assert nodes((offset, time_ms, ordered))
    assert nodes((offset, time_ms, replace(ordered, author="Ada"))) == []


def test_it_is_forgotten_after_a_while() -> None:
    at = [order(1, "w1.0", hours=0.0), order(2, "w2.0", hours=2.0)]
    assert [o.node for o in avoided(at, lives(*EIGHT), 24 * HOUR - 1, 24 * HOUR).nodes] == ["n2", "n1"]
    assert [o.node for o in avoided(at, lives(*EIGHT), 24 * HOUR, 24 * HOUR).nodes] == ["n2"]
    assert avoided(at, lives(*EIGHT), 26 * HOUR, 24 * HOUR).nodes == ()


def test_no_more_than_a_quarter_the_newest_first_and_the_rest_is_counted() -> None:
    at = [order(1, "w1.0"), order(2, "w2.0"), order(3, "w3.0")]
    found = avoided(at, lives(*EIGHT), NOW, 24 * HOUR)
    assert ([one.node for one in found.nodes], found.left_out) == (["n3", "n2"], 1)
    assert nodes(*at, known=EIGHT[:4]) == ["n3"], "one of four"
    assert nodes(order(1, "w0.0"), known=EIGHT[:1]) == ["n0"], "and of one, too: it may have others by now"
    assert (nodes(*at, nodes_max=3), nodes(*at, nodes_max=0)) == (["n3", "n2", "n1"], [])


def test_an_order_that_was_written_twice_is_one_and_the_newest_of_a_node_counts() -> None:
    again = [*EIGHT, "w1.1@n1"]
    first, second = order(1, "w1.0"), order(5, "w1.1", hours=0.5)
    (one,) = avoided([first, first, second, second], lives(*again), NOW, 24 * HOUR).nodes
    assert (one.incarnation, one.offset) == ("w1.1", 5)


def test_where_the_next_one_was_well_on_the_same_node_it_was_not_the_node() -> None:
    same, other = [*EIGHT, "w0.1@n0"], [*EIGHT, "w0.1@n7"]
    helped, in_vain = effect(1, Verdict.HELPED), effect(1, Verdict.NO_EFFECT)
    assert nodes(order(1, "w0.0"), helped, known=same) == []
    assert nodes(order(1, "w0.0"), helped, known=other) == ["n0"]
    assert nodes(order(1, "w0.0"), in_vain, known=same) == ["n0"], "it was never tried elsewhere"
    assert nodes(order(1, "w0.0"), in_vain, known=other) == [], "as slow on another one"
    assert nodes(order(1, "w0.0"), effect(1, Verdict.NOT_CARRIED_OUT), known=EIGHT) == ["n0"]
    assert nodes(order(1, "w0.0"), effect(1, Verdict.UNCLEAR), known=same) == ["n0"]


def test_an_incarnation_that_is_not_in_the_log_is_said() -> None:
    found = avoided([order(1, "w9.0")], lives(*EIGHT), NOW, 24 * HOUR)
    assert (found.nodes, found.unknown) == ((), ("w9.0",))
