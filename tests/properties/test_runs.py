"""Many entries at once come to what they come to one by one: the same state, or the same break at the same entry."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from antdt_schemas import codec, lineage, records
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.intervals import IntervalSet
from antdt_streams.ledger.stored import Identity
from antdt_streams.proof.audit import Account, report_of
from antdt_streams.proof.fast import columns, runs
from antdt_streams.proof.fast.runs import _Follows
from antdt_streams.proof.replay import Break
from antdt_streams.proof.waypoints import packed
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.logs import simulated
from tests.helpers.plain_log import FIRST, Forgery, Log, at_random, cycle_of, forged, plain_log
from tests.mutations.mutate import Edit, taken_out

IDENTITY = Identity("plain", "topic-1")
LENGTH = 70
SEEDS = 16
FORGERIES_A_SEED = 10
# Of simulated worlds: with roll-backs, void entries, quarantine, an accepted loss of the log's tail.
WORLDS = (4, 19, 42, 48, 55, 57)
Doctor = Callable[[Fold], None]


def account_of(log: Log, doctor: Doctor | None = None, at: int = FIRST) -> tuple[Account, Break | None]:
    """doctor: changes the state ahead of the entry at `at`."""
    account, entries = Account(), list(enumerate(log))
    if doctor is None:
        return account, account.read(entries)
    assert account.read(entries[:at]) is None
    doctor(account.fold)
    return account, account.read(entries[at:])


@contextmanager
def one_by_one() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "FEWEST", 1 << 30)
        yield


def together(log: Log, doctor: Doctor | None = None, at: int = FIRST) -> int:
    """How many entries of the log were read in runs, which made no difference to anything."""
    with one_by_one():
        expected, expected_break = account_of(log, doctor, at)
    counted = 0
    real = runs.read

    def read(*args: object) -> runs.Run | None:
        nonlocal counted
        run = real(*args)  # type: ignore[arg-type]
        counted += 0 if run is None else len(run)
        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "read", read)
        found, found_break = account_of(log, doctor, at)
    assert found_break == expected_break
    assert found.fold.position == expected.fold.position and found.fold.proven == expected.fold.proven
    assert packed(found.fold, IDENTITY) == packed(expected.fold, IDENTITY)
    assert report_of(found, found_break) == report_of(expected, expected_break)
    assert (found.fold.events, found.coverage) == (expected.fold.events, expected.coverage)
    if found_break is None:
        assert found.fold.state is not None
        found.fold.state.check()
    return counted


@pytest.mark.parametrize("seed", range(8))
def test_a_plain_log_is_read_in_runs(seed: int) -> None:
    log = plain_log(3_000 if seed == 0 else LENGTH, seed, digest_every=(1_000, 40)[seed % 2])
    assert together(log) > 0.6 * len(log)


def test_logs_in_which_everything_happens_come_to_the_same() -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in (runs, columns):
            patch.setattr(module, "FEWEST", 2)
        assert sum(together(simulated(seed)) for seed in WORLDS) > 100


def test_what_a_leader_should_not_have_written_breaks_where_it_breaks_one_by_one() -> None:
    in_runs = broken = 0
    for seed in range(SEEDS):
        rng = random.Random(seed)
        log = plain_log(LENGTH, seed)
        for _ in range(FORGERIES_A_SEED):
            at = rng.randrange(FIRST, len(log))
            wrong = forged(log, at, at_random(rng), lineages=rng.random() < 0.8)
            in_runs += together(wrong)
            broken += account_of(wrong)[1] is not None
    forgeries = SEEDS * FORGERIES_A_SEED
    assert (broken / forgeries, in_runs / forgeries) > (0.6, LENGTH / 5), (broken / forgeries, in_runs / forgeries)


# -- each rule of a run, taken out


@dataclass(frozen=True)
class Rule:
    """A piece of a function, an entry that only this piece tells from a right one, and what is wrong with it.

    entry: tells the last entry of the log; None is one that goes on. doctor: what is wrong with the state instead.
    """

    function: Any
    old: str
    entry: Callable[[tuple[records.Event, ...]], bool] | None
    forgery: Forgery | None = None
    doctor: Doctor | None = None
    new: str = ""
    lineages: bool = True


def any_of_them(events: tuple[records.Event, ...]) -> bool:
    return bool(events)


def leases(events: tuple[records.Event, ...]) -> bool:
    return len(events) == 1 and isinstance(events[0], records.Leased)


def commits(events: tuple[records.Event, ...]) -> bool:
    return len(events) == 1 and isinstance(events[0], records.Committed) and events[0].ranges[3] > 1


def commits_what_it_leases(events: tuple[records.Event, ...]) -> bool:
    if len(events) != 2 or not isinstance(events[0], records.Leased) or not isinstance(events[1], records.Committed):
        return False
    return events[0].lease in events[1].ranges[::4]


def cycle(**changed: Callable[[records.Cycle], object]) -> Forgery:
    return lambda body: replace(body, **{name: make(body) for name, make in changed.items()})


def first(**changed: Callable[[Any], object]) -> Forgery:
    """Another first event."""

    def forgery(body: records.Cycle) -> records.Cycle:
        event = body.events[0]
        return replace(
            body, events=(replace(event, **{n: make(event) for n, make in changed.items()}), *body.events[1:])
        )

    return forgery


def ranges(make: Callable[[int, int, int, int], tuple[int, int, int, int]]) -> Forgery:
    """Another first range of the first event."""
    return first(ranges=lambda e: (*make(*e.ranges[:4]), *e.ranges[4:]))


def swapped(body: records.Cycle) -> records.Cycle:
    return replace(body, events=(body.events[1], body.events[0], *body.events[2:]))


def closed(fold: Fold) -> None:
    assert fold.state is not None
    fold.state.members.open = False


def committed_already(fold: Fold) -> None:
    """A state that no log leads to: what a lease holds is committed as well."""
    assert fold.state is not None
    lease = fold.state.shards.leases[max(fold.state.shards.leases)]
    fold.state.shards.epoch(lease.epoch).committed.add(lease.front, lease.end)


CYCLES, LEASES, COMMITS, RANGES = _Follows._cycles, _Follows._leases, _Follows._commits, _Follows._ranges
RULES = {
    "the leader's offset": Rule(
        CYCLES,
        "cycles.epoch_offset[part] == office.offset",
        any_of_them,
        cycle(epoch_offset=lambda b: 0),
        new="each >= 0",
    ),
    "the leader's hash": Rule(
        CYCLES,
        "ok &= (cycles.epoch_hash[part] == columns.words_of([office.hash])).all(axis=1)",
        any_of_them,
        cycle(epoch_hash=lambda b: bytes(16)),
    ),
    "the sequence": Rule(
        CYCLES,
        "ok &= cycles.sequence[part] == state.sequence + 1 + each",
        any_of_them,
        cycle(sequence=lambda b: b.sequence + 1),
    ),
    "the offset before": Rule(
        CYCLES,
        "ok &= cycles.previous_offset[part] == self.fold.position.next_offset - 1 + each",
        any_of_them,
        cycle(previous_offset=lambda b: b.previous_offset - 1),
    ),
    "the hash before": Rule(runs.read, "not right.all() or ", any_of_them, cycle(previous_hash=lambda b: bytes(16))),
    "the requests": Rule(
        CYCLES,
        "ok &= requests >= np.append(state.requests_next, requests[:-1])",
        any_of_them,
        cycle(requests_next=lambda b: b.requests_next - 1),
    ),
    "the number of a lease": Rule(
        LEASES,
        "self.numbers == state.shards.next_lease + np.cumsum(shards) - shards",
        leases,
        first(lease=lambda e: e.lease + 1),
        new="self.numbers > 0",
    ),
    "its shards": Rule(LEASES, "(shards > 0) & ", leases, first(shards=lambda e: 0)),
    "its length": Rule(LEASES, "(self.ends > start) & ", leases, first(length=lambda e: 0)),
    "the end of the epoch": Rule(
        LEASES, " & (self.ends <= state.shards.samples)", leases, first(length=lambda e: 401 - e.start)
    ),
    "its generation": Rule(
        LEASES, " & (x.generation[part] == state.members.generation)", leases, first(generation=lambda e: 2)
    ),
    "no lease without members": Rule(LEASES, "state.members.open & ", leases, doctor=closed),
    "the cursor": Rule(
        LEASES,
        "ok[mine] &= start[mine] == np.append(known.cursor if known else 0, ends[:-1])",
        leases,
        first(start=lambda e: e.start + 1),
    ),
    "the number of a step": Rule(
        COMMITS,
        "run.step_numbers == state.line.committed + 1 + np.arange(run.steps)",
        commits,
        first(step=lambda e: e.step + 1),
        new="run.step_numbers > 0",
    ),
    "the generation of a step": Rule(
        COMMITS, " & (x.generation[part] == state.members.generation)", commits, first(generation=lambda e: 2)
    ),
    "no step without members": Rule(COMMITS, "state.members.open & ", commits, doctor=closed),
    "the lineage": Rule(
        runs.read, " or lineages != run.lineages", commits, first(lineage=lambda e: bytes(16)), lineages=False
    ),
    "the front": Rule(RANGES, "(start == expected) & ", commits, ranges(lambda n, e, s, x: (n, e, s + 1, x - 1))),
    "the length of a range": Rule(RANGES, "(length > 0) & ", commits, ranges(lambda n, e, s, x: (n, e, s, 0))),
    "the end of a lease": Rule(
        RANGES, " & (ends <= known.end[lease])", commits, ranges(lambda n, e, s, x: (n, e, s, 400))
    ),
    "its epoch": Rule(RANGES, "(epoch == known.epoch[lease]) & ", commits, ranges(lambda n, e, s, x: (n, e + 7, s, x))),
    "no commit ahead of its lease": Rule(RANGES, " & (place > known.since[lease])", commits_what_it_leases, swapped),
    "no position twice": Rule(runs.read, " or not follows.disjoint()", None, doctor=committed_already),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_that_is_taken_out_of_runs_is_missed(name: str) -> None:
    rule, log, at = RULES[name], plain_log(LENGTH, 1), FIRST
    if rule.entry is not None:
        at = next(n for n in range(LENGTH // 2, LENGTH) if rule.entry(cycle_of(log[n]).events))
        log = log[: at + 1]
    if rule.forgery is not None:
        log = forged(log, at, rule.forgery, lineages=rule.lineages)
    with pytest.MonkeyPatch.context() as patch:
        for module in (runs, columns):
            patch.setattr(module, "FEWEST", 1)
        assert together(log, rule.doctor, at) < len(log) - FIRST
        with taken_out((Edit(rule.function, rule.old, rule.new),)), pytest.raises((AssertionError, ValueError)):
            together(log, rule.doctor, at)


# -- the bytes


@given(st.data())
def test_what_columns_say_of_an_entry_is_what_the_codec_says(data: st.DataObject) -> None:
    log = list(plain_log(columns.FEWEST + 8, 3)[FIRST:])
    if data.draw(st.booleans()):
        n = data.draw(st.integers(1, len(log) - 1))  # the first one tells the schema
        at = data.draw(st.integers(0, len(log[n])))
        cut = data.draw(st.integers(0, 2))
        log[n] = log[n][:at] + data.draw(st.binary(max_size=2)) + log[n][at + cut :]
    check_columns(log)


def check_columns(log: list[bytes]) -> list[bool]:
    """Which entries are plain; all that is said of them is what the codec says."""
    found = columns.decode(log)
    assert found is not None
    plain = found.cycles.plain.tolist()
    for n, payload in enumerate(log):
        if not plain[n]:
            continue
        body, cycles = cycle_of(payload), found.cycles
        numbers = (cycles.epoch_offset, cycles.sequence, cycles.previous_offset, cycles.requests_next, cycles.now_ms)
        assert [int(column[n]) for column in numbers] == [
            body.epoch_offset, body.sequence, body.previous_offset, body.requests_next, body.now_ms
        ]  # fmt: skip
        assert (cycles.epoch_hash[n].tobytes(), cycles.previous_hash[n].tobytes()) == (
            body.epoch_hash,
            body.previous_hash,
        )
        assert events_of(found, n) == list(body.events)
        assert int(cycles.events[n]) == len(body.events)
    return plain


def events_of(found: columns.Columns, entry: int) -> list[records.Event]:
    """The events of an entry, put together from its columns."""
    out: list[tuple[int, records.Event]] = []
    x = found.leases
    for n in (x.entry == entry).nonzero()[0]:
        values = [int(column[n]) for column in (x.lease, x.shards, x.generation, x.epoch, x.start, x.length)]
        out.append((int(x.place[n]), records.Leased(*values[:2], x.incarnation[n], *values[2:])))
    y = found.commits
    for n in (y.entry == entry).nonzero()[0]:
        numbers = y.ranges[int(y.first[n]) : int(y.first[n] + y.count[n])].reshape(-1).tolist()
        event = records.Committed(int(y.generation[n]), int(y.step[n]), tuple(numbers), y.lineage[n], int(y.plan[n]))
        out.append((int(y.place[n]), event))
    return [event for _, event in sorted(out, key=lambda pair: pair[0])]


def long(value: int) -> bytes:
    value, out = (value << 1) ^ (value >> 63), bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_only_what_looks_as_it_should_is_plain() -> None:
    log = list(plain_log(columns.FEWEST + 8, 3)[FIRST:])
    assert all(check_columns(log))
    body = next(b for b in map(cycle_of, log) if b.events and commits(b.events))
    whole = codec.encode(records.Entry(body))
    event = body.events[0]
    assert isinstance(event, records.Committed)
    count = long(len(event.ranges)) + long(event.ranges[0])
    assert whole.count(count) == 1
    others = {
        "no events": codec.encode(records.Entry(replace(body, events=()))),
        "large numbers": codec.encode(records.Entry(replace(body, now_ms=(1 << 48) - 1, requests_next=-(1 << 48)))),
    }
    for name, payload in others.items():
        assert all(check_columns([*log[:8], payload, *log[8:]])), name
    unusual = {
        "a byte behind it": whole + b"\0",
        "a byte too few": whole[:-1],
        "the whole but its end": whole[:20],
        "nothing": b"",
        "another schema": whole[:2] + bytes(8) + whole[10:],
        "another body": whole[:10] + long(0) + whole[11:],
        "an event of another kind": codec.encode(records.Entry(replace(body, events=(records.Settled(1), event)))),
        "a number of ten bytes": codec.encode(records.Entry(replace(body, now_ms=1 << 62))),
        "a number that is longer than it must be": whole.replace(
            count, count[:-1] + bytes([count[-1] | 0x80, *[0x80] * 8, 0])
        ),
        "a digest of another size": codec.encode(records.Entry(replace(body, epoch_hash=bytes(15)))),
        "no ranges": codec.encode(records.Entry(replace(body, events=(replace(event, ranges=()),)))),
        "ranges of three": codec.encode(records.Entry(replace(body, events=(replace(event, ranges=(1, 2, 3)),)))),
        "an array with its size": whole.replace(count, long(-len(event.ranges)) + count),
        "more ranges than there are bytes": whole.replace(count, long(1 << 40) + long(event.ranges[0])),
    }
    for name, payload in unusual.items():
        for at in (0, 8, len(log)):
            if at == 0 and name in ("nothing", "another schema", "the whole but its end"):
                continue
            plain = check_columns([*log[:at], payload, *log[at:]])
            assert plain.index(False) == at and plain.count(False) == 1, name


def test_names_that_are_no_text_are_not_plain() -> None:
    log = list(plain_log(columns.FEWEST + 8, 3)[FIRST:])
    at = next(n for n, payload in enumerate(log) if b"w1.0" in payload)
    log[at] = log[at].replace(b"w1.0", b"w\xff.0")
    assert check_columns(log).index(False) == at


def test_few_entries_and_those_of_an_unknown_schema_have_no_columns() -> None:
    log = list(plain_log(columns.FEWEST + 8, 3)[FIRST:])
    assert columns.decode(log[: columns.FEWEST - 1]) is None
    assert columns.decode([b"", *log]) is None


def test_every_schema_of_an_entry_is_read_in_columns() -> None:
    """One that looks otherwise would be read one by one, correctly and slowly: then this module needs its layout."""
    assert {header[2:].hex() for header in columns._layouts()} == set(codec.writer_schemas("Entry"))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8)), min_size=1, max_size=8))
def test_the_union_of_ranges_is_that_of_interval_sets(parts: list[tuple[int, int]]) -> None:
    expected: IntervalSet | None = IntervalSet()
    for start, length in parts:
        if expected is not None and not expected.try_add(start, start + length):
            expected = None
    assert columns.union(np.array(parts)) == (None if expected is None else list(expected))


def test_many_lineages_at_once_are_those_of_one_after_the_other() -> None:
    log = plain_log(LENGTH, 2)
    found = columns.decode(log[FIRST:])
    assert found is not None
    run, after = runs.Run(found, 0, len(log) - FIRST), lineage.ROOT
    for body in map(cycle_of, log[FIRST:]):
        for event in body.events:
            if isinstance(event, records.Committed):
                after = lineage.next_lineage(after, event.step, event.ranges)
    assert run.lineages_after(lineage.ROOT)[-1] == after == run.lineages[-1]
