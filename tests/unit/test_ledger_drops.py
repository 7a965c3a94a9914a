"""The ledger's rules where what is late is thrown away: its samples are in no model, and the audit names them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from antdt.strategies.ps.core.facts import PULL, Contribution, Key, Mode
from antdt.strategies.ps.core.ordering import Ordering
from antdt.worker.session import SessionOptions
from antdt.worker.session.asking import Outbox
from antdt.worker.session.drops import Drops
from antdt_schemas import records
from antdt_schemas.records import Status
from antdt_schemas.strategies import drops, kind_of, servers_of, sharding_of
from antdt_streams.ledger.core.dropping import REASON
from antdt_streams.ledger.core.groups import RULES
from antdt_streams.proof.audit import audit

from tests.helpers.servers import PS, Servers
from tests.simulation.judge import checked
from tests.unit.test_session import reply

DROPPING = replace(PS, strategy="ps-bsp/drop/servers=2")


def test_the_name_says_that_samples_are_lost() -> None:
    name = DROPPING.strategy
    assert (drops(name), servers_of(name), sharding_of(name)) == (True, 2, "")
    assert kind_of(name) in RULES
    assert not drops("ps-bsp/servers=2") and kind_of("ps-asp/drop/servers=2") not in RULES


def test_what_is_dropped_is_in_no_model_and_log_audit_and_checker_name_it() -> None:
    bench = Servers(DROPPING).formed()
    held = bench.lease("w0.0", 10)
    drop = records.Drop(1, (*held[:4], 4))
    assert bench.say("w0.0", drop).status is Status.OK
    assert bench.say("w0.0", drop).status is Status.OK, "a request that comes again"
    assert bench.state.shards.quarantined_total == 4
    assert bench.commit("s0.0", (held[0], held[1], 0, 4, held[4] - 4)).status is Status.OK
    while not bench.state.shards.finished:
        held = bench.lease("w1.0", 100)
        bench.commit("s0.0", *[held[i : i + 5] for i in range(0, len(held), 5)])
    bench.say("s0.0", records.Checkpoint(1, bench.step, bench.lineage, "end"))
    report, theirs = audit(enumerate(bench.broker.log)), checked(bench.broker.log)
    assert not report["exactly_once"] and not theirs["exactly_once"]
    assert report["quarantined"] == theirs["quarantined"] == [[0, 0, 4]]
    assert bench.state.shards.faults[0, 0].reason == REASON


def test_what_lies_in_front_must_be_committed_before() -> None:
    bench = Servers(DROPPING).formed()
    held = bench.lease("w0.0", 10)
    drop = records.Drop(1, (held[0], held[1], 0, 4, 3))
    assert bench.say("w0.0", drop).status is Status.WAIT
    bench.commit("s0.0", (*held[:4], 4))
    assert bench.say("w0.0", drop).status is Status.OK
    assert list(bench.state.shards.epoch(0).quarantined) == [(4, 7)]


def test_nobody_drops_what_another_one_holds_nor_in_another_job() -> None:
    bench = Servers(DROPPING).formed()
    held = bench.lease("w0.0", 10)
    bench.say("w1.0", records.Drop(1, (*held[:4], 4)))
    bench.say("w0.0", records.Drop(1, (held[0], held[1] + 1, *held[2:4], 4)))
    assert bench.state.shards.quarantined_total == 0
    assert bench.say("w0.0", records.Drop(1, (*held[:4], 99))).status is Status.REFUSED
    plain = Servers().formed()
    held = plain.lease("w0.0", 10)
    assert "never lost" in plain.say("w0.0", records.Drop(1, held[:5])).reason


@pytest.mark.parametrize("dropped", [True, False])
def test_what_is_late_is_dropped_and_the_next_contribution_has_the_next_number(dropped: bool) -> None:
    order = Ordering(Mode("bsp", drops=dropped), 1, 0, bytes(16))
    order.set_backup(1)
    for name in ("a", "b"):
        order.on_staged(0, key := Key(name, 1, PULL), Contribution(key, 0))
    order.on_staged(0, key := Key("a", 1, 0), Contribution(key, 0, (1, 7, 0, 0, 4), 4))
    assert order.version == 1
    (told,) = order.on_staged(0, key := Key("b", 1, 0), Contribution(key, 0, (2, 7, 0, 4, 4), 4))
    assert told.late == (key,)
    again = Key("b", 2, 0) if dropped else Key("b", 1, 1)
    order.on_staged(0, again, Contribution(again, 1, (2, 7, 0, 8, 4), 4))
    assert [one.ranges[3] for version in order.versions for one in version.contributions] == [0, 8]


def test_a_worker_says_what_it_drops_until_the_log_has_it() -> None:
    session, outbox = Drops(SessionOptions()), Outbox("w0", "w0.0")
    session.tick(1.0, 1, outbox)
    session.add((1, 7, 0, 0, 4))
    for now_s, status in ((1.0, Status.WAIT), (1.06, None), (2.0, Status.OK)):
        session.tick(now_s, 1, outbox)
        (asked,) = outbox.emptied()
        assert asked.body == records.Drop(1, (1, 7, 0, 0, 4))
        if status is not None:
            session.on_reply(reply(asked.number, status))
    assert session.ranges == ()
    session.tick(9.0, 1, outbox)
    assert not outbox.emptied()
