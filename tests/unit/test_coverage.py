"""The coverage of an audit: what is committed twice or has another lineage is named, and roll-backs only take away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from antdt_schemas import lineage, records
from antdt_streams.ledger.core.fold import Verdict
from antdt_streams.ledger.core.intervals import IntervalSet
from antdt_streams.ledger.core.state import State
from antdt_streams.proof.audit import Account, audit, report_of
from antdt_streams.proof.coverage import RANGES_LISTED_MAX, Coverage
from antdt_streams.proof.walker import Read

from tests.helpers.ledger import SPEC
from tests.helpers.logs import simulated
from tests.helpers.plain_log import Log, cycle_of, forged, plain_log

LENGTH = 60


def with_commit(log: Log, *, behind: int = LENGTH // 2) -> tuple[int, records.Committed]:
    """The first entry from there on that is one commit of a range that does not begin its epoch, and what it says."""
    for at in range(behind, len(log)):
        match cycle_of(log[at]).events:
            case (records.Committed() as event,) if event.ranges[2] > 4:
                return at, event
    raise AssertionError("no such entry")


def changed(log: Log, at: int, *, lineages: bool = True, **change: Any) -> Log:
    """The log with another commit at `at`, chained anew by whoever owns the broker."""
    return forged(log, at, lambda body: replace(body, events=(replace(body.events[0], **change),)), lineages=lineages)


@pytest.mark.parametrize("seed", range(4))
def test_samples_that_a_log_commits_again_are_named(seed: int) -> None:
    log = plain_log(LENGTH, seed)
    at, event = with_commit(log)
    inside = Coverage()
    Account(inside).read(enumerate(log[:at]))
    number, epoch, start, length = event.ranges[:4]
    report = audit(enumerate(changed(log, at, ranges=(number, epoch, start - 3, length, *event.ranges[4:]))))
    again = [[epoch, *part] for part in inside.committed[epoch].overlaps(start - 3, start - 3 + length)]
    assert report["broken"]["offset"] == at and not report["exactly_once"]
    assert report["repeated"] == again and again
    assert report["committed"] == sum(part.total for part in inside.committed.values()), "nothing of it is believed"
    assert report["steps"] == event.step - 1 and report["wrong_lineage"] == []


def test_samples_that_one_entry_commits_twice_are_named() -> None:
    log = plain_log(LENGTH, 1)
    at, event = with_commit(log)
    report = audit(enumerate(changed(log, at, ranges=(*event.ranges, *event.ranges[:4]))))
    _, epoch, start, length = event.ranges[:4]
    assert report["repeated"] == [[epoch, start, start + length]] and report["broken"]["offset"] == at


def test_a_step_with_another_lineage_is_named() -> None:
    log = plain_log(LENGTH, 1)
    at, event = with_commit(log)
    for change in ({"lineage": bytes(16)}, {"step": event.step + 1}):
        report = audit(enumerate(changed(log, at, lineages=False, **change)))
        assert report["broken"]["offset"] == at and report["repeated"] == []
        assert report["wrong_lineage"] == [change.get("step", event.step)]
        assert report["lineage"] == audit(enumerate(log[:at]))["lineage"]


def test_an_entry_that_is_refused_for_another_reason_accuses_nobody() -> None:
    log = plain_log(LENGTH, 1)
    at, event = with_commit(log)
    for change in ({"generation": 7}, {"ranges": event.ranges[:3]}, {"ranges": (*event.ranges[:3], -4)}):
        report = audit(enumerate(changed(log, at, **change)))
        assert report["broken"]["offset"] == at
        assert (report["repeated"], report["wrong_lineage"]) == ([], [])


# -- on its own: what only a state with a fault would let pass


def counted(state: State, *events: records.Event) -> Read:
    return Read(Verdict.COUNTED, 2, 0, records.Cycle(1, bytes(16), 1, 1, bytes(16), 0, 1_000, events), state)


def committed(step: int, after: bytes, *ranges: int) -> records.Committed:
    return records.Committed(1, step, ranges, after, 0)


def test_what_is_committed_twice_is_in_the_model_once_and_listed() -> None:
    coverage, state = Coverage(), State(SPEC)
    first = lineage.next_lineage(lineage.ROOT, 1, (1, 0, 0, 10))
    second = lineage.next_lineage(first, 2, (2, 0, 5, 10))
    coverage.on_entry(counted(state, committed(1, first, 1, 0, 0, 10), committed(2, second, 2, 0, 5, 10)))
    assert coverage.repeated == [(0, 5, 10)] and coverage.wrong_lineage == []
    assert list(coverage.committed[0]) == [(0, 15)] and (coverage.step, coverage.lineage) == (2, second)
    assert coverage.missing(SPEC) == [(0, 15, 100)] and not coverage.agrees(state)
    coverage.on_entry(counted(state, committed(3, first, 1, 0, 20, 10)))
    assert coverage.wrong_lineage == [3]
    for _ in range(RANGES_LISTED_MAX + 5):
        coverage.on_entry(counted(state, committed(4, first, 1, 0, 0, 1)))
    assert len(coverage.repeated) == RANGES_LISTED_MAX


def test_a_roll_back_takes_away_and_never_adds() -> None:
    coverage, state = Coverage(), State(SPEC)
    coverage.on_entry(counted(state, committed(1, bytes(16), 1, 0, 0, 10), committed(2, bytes(16), 1, 0, 10, 10)))
    state.shards.epoch(0).committed.add(0, 10)
    coverage.on_entry(counted(state, records.RolledBack(1, "")))
    assert (list(coverage.committed[0]), coverage.step, coverage.rolled_back) == ([(0, 10)], 1, 1)
    state.line.committed = 1
    assert coverage.agrees(state)
    state.shards.epoch(0).committed.add(10, 20)  # a state that brings back what it had taken away
    coverage.on_entry(counted(state, records.RolledBack(1, "")))
    assert list(coverage.committed[0]) == [(0, 10)] and not coverage.agrees(state)


@pytest.mark.parametrize("fault", ["committed", "quarantined", "lineage"])
def test_an_audit_says_where_the_state_disagrees_with_what_was_counted(fault: str) -> None:
    account = Account()
    assert account.read(enumerate(simulated(3))) is None
    assert report_of(account, None)["exactly_once"]
    state = account.fold.state
    assert state is not None
    if fault == "committed":
        state.shards.epoch(0).committed.remove(0, 1)
    elif fault == "quarantined":
        state.shards.epoch(0).quarantined.add(0, 1)
    else:
        state.line.lineage = bytes(16)
    report = report_of(account, None)
    assert not report["exactly_once"] and "disagree: report this as a bug" in report["verdict"]


def test_entries_that_are_read_together_are_counted_as_one_by_one() -> None:
    log = plain_log(400, 0)
    honest, knows = Coverage(), Coverage(committed={0: IntervalSet([(0, 3)])})
    Account(honest).read(enumerate(log))
    Account(knows).read(enumerate(log))
    assert sum(end - start for _, start, end in knows.repeated) == 3
    assert replace(knows, repeated=[]) == honest
