"""Requests are only questions: what becomes of them costs nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from antdt_schemas import codec, records
from antdt_schemas.errors import LogTampered
from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.moved import moved
from antdt_streams.ledger.stored import Identity, fold_of, whole
from antdt_streams.proof.audit import audit

from tests.helpers.ledger import Bench
from tests.helpers.logs import export
from tests.helpers.memory_ledger import MemoryLedger
from tools import verify_standalone


@pytest.mark.parametrize(
    ("genesis_topic", "topic_id", "low", "high", "expected"),
    [
        ("", "any", 0, 7, None),
        ("t", "t", 5, 5, None),
        ("t", "t", 0, 4, (4, "end at 4")),
        ("t", "t", 9, 12, (9, "5 to 8 were removed")),
        ("t", "u", 0, 99, (0, "created again: its id was t")),
        ("t", "u", 6, 6, (6, "created again")),
        ("", "u", 9, 9, (9, "removed")),  # an older log does not say which topic it was
    ],
)
def test_it_goes_on_at_what_there_is(
    genesis_topic: str, topic_id: str, low: int, high: int, expected: tuple[int, str] | None
) -> None:
    bench = Bench()
    genesis = replace(bench.ledger.office.genesis, requests_topic=genesis_topic)
    bench.state.requests_next = 5
    fact = moved(bench.state, genesis, topic_id, low, high)
    if expected is None:
        assert fact is None
        return
    assert fact is not None
    assert (fact.topic_id, fact.next) == (topic_id, expected[0])
    assert expected[1] in fact.reason
    bench.state.apply(fact)
    assert moved(bench.state, genesis, topic_id, low, high) is None, "it is said once"


def a_log_with_a_move(bench: Bench) -> list[bytes]:
    """Requests; somebody creates their topic again; requests again."""
    bench.join("w0.0", "w1.0")
    assert bench.state.requests_next > 1
    bench.broker.requests_topic = "another"
    del bench.broker.requests[:]
    assert bench.ledger.run() == []
    bench.lease("w0.0", 15)
    return bench.broker.log


def test_the_position_may_go_back_where_the_log_says_why(tmp_path: Path) -> None:
    bench = Bench()
    log = a_log_with_a_move(bench)
    assert bench.state.requests_next == 1
    fold = Fold()
    for offset, payload in enumerate(log):
        fold.read(offset, payload)
    assert fold.state is not None
    assert fold.state.requests_topic == "another"
    again, _ = fold_of(whole(fold, Identity("j", "t"), None), Identity("j", "t"), "rows")
    assert again.state is not None
    assert rows.digest(again.state) == rows.digest(fold.state) == rows.digest(bench.state)
    report = audit(enumerate(log))
    assert report["broken"] is None
    assert report["requests_moved"] == [{"next": 0, "reason": "Up to 2 was read, but the requests end at 0."}]
    export(tmp_path / "log.avro", log)
    assert verify_standalone.verify(str(tmp_path / "log.avro"))["broken"] is None


def test_the_position_may_not_go_back_otherwise(tmp_path: Path) -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    fold = bench.broker.fold()
    assert fold.office is not None and fold.state is not None
    last = fold.position
    body = records.Cycle(
        fold.office.offset, fold.office.hash, fold.state.sequence + 1, last.next_offset - 1, last.hash, 0, 1, ()
    )
    log = [*bench.broker.log, codec.encode(records.Entry(body))]
    with pytest.raises(LogTampered, match="can follow"):
        fold.read(len(log) - 1, log[-1])
    export(tmp_path / "log.avro", log)
    assert "goes back" in verify_standalone.verify(str(tmp_path / "log.avro"))["broken"]["message"]


def test_rows_are_what_they_were_where_nothing_moved() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    assert not [key for key, _ in rows.all_rows(bench.state) if key.startswith(b"requests")]


def test_requests_with_holes_are_read_over() -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    office = bench.ledger.office
    incoming = [replace(x, offset=x.offset + 40) for x in bench.broker.incoming(0, 2)]
    payload, taken = office.propose(incoming)
    assert taken == 2
    assert codec.decode(payload, records.Entry).body.requests_next == incoming[-1].offset + 1  # type: ignore[union-attr]


def test_a_ledger_that_starts_with_moved_requests_goes_on() -> None:
    """The office of the next leader begins where the event says, not where requests ended before."""
    bench = Bench()
    a_log_with_a_move(bench)
    again = MemoryLedger(bench.broker)
    assert again.office.state.requests_next == 1
    assert again.office.state.requests_topic == "another"
