"""Topics in the ledger: what readers say of positions that they hold, topics that grow, and what an audit says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from antdt_schemas import records
from antdt_schemas.records import Status
from antdt_schemas.space import TOPIC
from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.decide import check_spec
from antdt_streams.proof.audit import audit

from tests.helpers.ledger import SPEC, Bench
from tests.helpers.logs import export
from tools import verify_standalone

BLOCKS = (0, 100, 160, 1, 7, 47)  # 60 offsets of partition 0, then 40 of partition 1
BOUNDED = replace(SPEC, order=TOPIC, dataset="clicks", blocks=BLOCKS)
GROWING = replace(BOUNDED, blocks=(0, 100, 160, 1, 7, 47, 2, 5, 5), growing=True)


def members() -> Bench:
    """w0 and w1 are members; nothing is leased."""
    made = Bench(BOUNDED)
    made.join("w0.0", "w1.0")
    return made


@pytest.fixture
def bench() -> Bench:
    """As `members`."""
    return members()


def growing() -> Bench:
    """The same, of a topic that grows."""
    made = Bench(GROWING)
    made.join("w0.0", "w1.0")
    return made


def examined(bench: Bench, who: str, lease: tuple[int, ...], vacant: tuple[int, ...] = (), *faulty: int) -> Status:
    """A reader says what is in its lease, of quintuples as in replies."""
    said = tuple(f"clicks/0@{at}" for at in faulty), tuple("ValueError: no" for _ in faulty)
    body = records.Examined(bench.state.members.generation, lease[0], lease[1], vacant, faulty, *said)
    status = bench.say(who, body).status
    bench.state.check()
    return status


def test_an_answer_says_where_in_the_topic_the_leases_are() -> None:
    bench = Bench(replace(BOUNDED, blocks=(0, 100, 165, 1, 7, 42)))
    bench.join("w0.0", "w1.0")
    first = bench.say("w0.0", records.Lease(1, 25))
    assert (first.leases[2:5], first.leases[7:]) == ((0, 0, 20), (0, 20, 10))
    assert first.places == (0, 0, 100, 20, 20, 0, 120, 10)
    bench.lease("w1.0", 25)
    second = bench.say("w1.0", records.Lease(1, 50))
    assert second.leases[-2:] == (60, 20) and second.places[-8:] == (60, 0, 160, 5, 65, 1, 7, 15)


def test_a_position_without_a_record_is_committed_with_its_neighbours_and_known(bench: Bench) -> None:
    lease = bench.lease("w0.0", 10)
    assert examined(bench, "w0.0", lease, (3, 2, 9, 1)) is Status.OK
    assert bench.events()[-1] == records.Vacant(lease[0], 0, (3, 2, 9, 1))
    assert bench.commit("w0.0", (*lease[:4], 10)).status is Status.OK
    assert bench.state.shards.committed_total == 10


def test_only_whoever_holds_a_lease_says_what_is_in_it(bench: Bench) -> None:
    lease = bench.lease("w0.0", 10)
    before = len(bench.events())
    assert examined(bench, "w1.0", lease, (3, 2)) is Status.OK
    assert examined(bench, "w0.0", (lease[0], 5, 0, 0, 10), (3, 2)) is Status.OK, "another token"
    assert examined(bench, "w0.0", lease, (10, 5)) is Status.OK, "not in it"
    assert len(bench.events()) == before


def test_what_cannot_be_decoded_is_in_quarantine_and_the_rest_of_its_lease_returns(bench: Bench) -> None:
    lease = bench.lease("w0.0", 10)
    assert examined(bench, "w0.0", lease, (), 4, 7) is Status.OK
    shards = bench.state.shards
    assert list(shards.epochs[0].quarantined) == [(4, 5), (7, 8)]
    assert list(shards.epochs[0].returned) == [(5, 7), (8, 10)]
    assert shards.faults[0, 4].key == "clicks/0@4" and (shards.leases[1].front, shards.leases[1].end) == (0, 4)
    assert examined(bench, "w0.0", lease, (), 4, 7) is Status.OK, "it was asked again"
    assert shards.quarantined_total == 2
    bench.say("operator", records.Readmit("Ada"))
    assert {e.author for e in bench.events() if isinstance(e, records.Readmitted)} == {"Ada"}
    assert shards.quarantined_total == 0 and list(shards.epochs[0].returned) == [(4, 10)]
    bench.state.check()


def test_a_lease_that_begins_with_what_cannot_be_decoded_is_over(bench: Bench) -> None:
    lease = bench.lease("w0.0", 10)
    assert examined(bench, "w0.0", lease, (), 0) is Status.OK
    assert not bench.state.shards.leases and not bench.state.shards.held


def test_quarantine_of_a_lost_readers_lease_stays_and_the_rest_is_done_by_others(bench: Bench) -> None:
    lease = bench.lease("w0.0", 100)[:5]
    examined(bench, "w0.0", lease, (1, 1), 5)
    bench.say("w0.0", records.Leave(1))
    bench.say("w1.0", records.Regroup(1, 0, bytes(16), "h", 1))
    assert bench.state.members.generation == 2
    done = 0
    while not bench.state.finished:
        held = bench.lease("w1.0", 100)
        ranges = [held[i : i + 5] for i in range(0, len(held), 5)]
        assert bench.commit("w1.0", *ranges).status is Status.OK
        done += sum(r[4] for r in ranges)
    assert done == 99 and bench.state.shards.quarantined_total == 1


def test_a_topic_that_grows_gets_positions_and_ends_when_somebody_says_so() -> None:
    bench = growing()
    shards = bench.state.shards
    while lease := bench.lease("w0.0", 100):
        bench.commit("w0.0", *[lease[i : i + 5] for i in range(0, len(lease), 5)])
    assert shards.committed_total == 100 and not bench.state.finished
    bench.say("w0.0", records.Grown(1, (0, 160, 1, 50, 2, 9)))
    assert bench.events()[-1] == records.Extended((1, 47, 50, 2, 5, 9), False, "", "")
    before = len(bench.events())
    bench.say("w1.0", records.Grown(1, (0, 160, 1, 49, 2, 9)))
    assert len(bench.events()) == before, "known"
    reply = bench.say("w0.0", records.Lease(1, 100))
    assert reply.places == (100, 1, 47, 3, 103, 2, 5, 4)
    bench.commit("w0.0", reply.leases)
    bench.say("operator", records.End("me", "enough"))
    assert bench.state.finished and bench.events()[-1] == records.Extended((), True, "me", "enough")
    bench.say("operator", records.End("me", "enough"))
    bench.say("w1.0", records.Grown(1, (0, 900)))
    assert shards.samples == 107


def test_a_partition_that_is_added_to_a_topic_that_grows_belongs_to_it() -> None:
    bench = growing()
    bench.say("w0.0", records.Grown(1, (0, 160, 3, 7)))
    assert bench.events()[-1].blocks[-3:] == (3, 0, 7)
    bench.say("w0.0", records.Grown(1, (0, 160, 3, 9)))
    assert bench.events()[-1].blocks == (3, 7, 9)


def test_the_state_of_a_topic_that_has_grown_is_rows() -> None:
    bench = growing()
    bench.say("w0.0", records.Grown(1, (0, 170)))
    kept = dict(rows.all_rows(bench.state))
    loaded = rows.load(type(bench.state)(GROWING), kept)
    assert loaded.shards.space.blocks == bench.state.shards.space.blocks and dict(rows.all_rows(loaded)) == kept
    assert b"space/00000000000000000000" in kept
    assert b"space/00000000000000000000" not in dict(rows.all_rows(growing().state))


def test_a_topic_that_does_not_grow_is_not_ended(bench: Bench) -> None:
    assert bench.say("operator", records.End("me", "")).status is Status.REFUSED
    assert bench.say("w0.0", records.Grown(1, (0, 900))).status is Status.REFUSED
    assert growing().say("operator", records.End("", "")).status is Status.REFUSED


def test_later_workers_may_see_other_offsets_but_no_other_topic(bench: Bench) -> None:
    later = replace(BOUNDED, blocks=(0, 120, 400), samples=280)
    join = bench.a_join()
    assert bench.say("w2.0", replace(join, spec=later)).status is Status.OK
    assert bench.say("w3.0", replace(join, spec=replace(later, dataset_digest=b"x" * 16))).status is Status.REFUSED
    assert bench.say("w4.0", replace(join, spec=replace(later, growing=True))).status is Status.REFUSED


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (replace(BOUNDED, blocks=(0, 9, 3)), "triples"),
        (replace(BOUNDED, batches="even"), "no fixed size"),
        (replace(GROWING, epochs=2), "one epoch"),
        (replace(BOUNDED, samples=99), "99 positions"),
    ],
)
def test_a_topic_that_cannot_be_is_refused(spec: records.JobSpec, said: str) -> None:
    assert said in (check_spec(spec) or "")


def test_a_topic_that_grows_may_begin_with_nothing() -> None:
    assert check_spec(replace(GROWING, blocks=(0, 5, 5), samples=0)) is None
    assert check_spec(replace(BOUNDED, blocks=(0, 5, 5), samples=0)) is not None


def audits(tmp_path: Path, bench: Bench) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the audit says of a log, and what the stand-alone checker does: they agree."""
    log = tuple(bench.broker.log)
    path = tmp_path / "log.avro"
    export(path, log)
    mine, theirs = audit(enumerate(log)), verify_standalone.verify(str(path))
    assert mine["broken"] is None and theirs["broken"] is None, (mine, theirs)
    for name in ("exactly_once", "committed", "vacant", "missing", "repeated", "quarantined"):
        assert mine[name] == theirs[name], (name, mine[name], theirs[name])
    return mine, theirs


def finish(bench: Bench, who: str = "w0.0") -> None:
    """Everything that is left, two leases at a time; every third position has no record."""
    while held := bench.lease(who, 30):
        ranges = [held[i : i + 5] for i in range(0, len(held), 5)][:2]
        for lease in ranges:
            places = [(at, 1) for at in range(lease[3], lease[3] + lease[4]) if at % 3 == 0]
            examined(bench, who, lease, tuple(n for place in places for n in place))
        bench.commit(who, *ranges)
    bench.say(who, records.Checkpoint(bench.state.members.generation, bench.step, bench.lineage, f"f{bench.step}"))


def test_an_audit_tells_records_from_offsets_without_one(bench: Bench, tmp_path: Path) -> None:
    finish(bench)
    mine, _ = audits(tmp_path, bench)
    assert mine["exactly_once"] and (mine["committed"], mine["records"], mine["vacant"]) == (100, 66, 34)
    assert mine["blocks"] == [[0, 100, 160], [1, 7, 47]] and "at 34 offsets is none" in mine["verdict"]


def found_again(bench: Bench) -> None:
    """Twice, and in the model in part."""
    held = bench.lease("w0.0", 30)
    examined(bench, "w0.0", held, (0, 5))
    examined(bench, "w0.0", held, (0, 5, 3, 3))
    bench.commit("w0.0", (*held[:4], 4))
    assert audit(enumerate(bench.broker.log))["vacant"] == 4


def test_what_was_found_again_counts_once_and_only_where_it_is_committed(bench: Bench, tmp_path: Path) -> None:
    found_again(bench)
    assert audits(tmp_path, bench)[0]["vacant"] == 4
    bench.say("operator", records.Rollback(0, "me", ""))
    assert audits(tmp_path, bench)[0]["vacant"] == 0


def test_an_audit_names_what_cannot_be_decoded(bench: Bench, tmp_path: Path) -> None:
    examined(bench, "w0.0", bench.lease("w0.0", 10), (), 4)
    finish(bench)
    mine, _ = audits(tmp_path, bench)
    assert not mine["exactly_once"] and mine["quarantined"] == [[0, 4, 5]] and not mine["missing"]
    assert mine["faults"][0] | {"key": "clicks/0@4", "reason": "ValueError: no"} == mine["faults"][0]


def test_a_topic_that_has_not_ended_is_not_proven(tmp_path: Path) -> None:
    bench = growing()
    finish(bench)
    assert not audits(tmp_path, bench)[0]["exactly_once"]
    bench.say("w0.0", records.Grown(1, (0, 190)))
    assert audits(tmp_path, bench)[0]["missing"] == [[0, 100, 130]]
    finish(bench)
    bench.say("operator", records.End("me", "enough"))
    mine, _ = audits(tmp_path, bench)
    assert mine["exactly_once"] and mine["samples"] == 130 and bench.state.done == f"f{bench.step}"
