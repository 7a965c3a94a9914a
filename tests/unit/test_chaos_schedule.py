"""The schedule of faults: the same for the same seed, and fair to every kind."""

from __future__ import annotations

from collections import Counter

import pytest
from antdt_schemas.errors import UsageError
from antdt_streams.chaos.judge import attempts_of
from antdt_streams.chaos.schedule import OF_MEMBERS, STOPS, WITH_SERVERS, Kind, ScheduleOptions, dealt, schedule

OPTIONS = ScheduleOptions()


def test_a_seed_is_one_schedule() -> None:
    for seed in range(50):
        assert schedule(seed, OPTIONS) == schedule(seed, OPTIONS)
    assert len({tuple(schedule(seed, OPTIONS)) for seed in range(50)}) == 50


@pytest.mark.parametrize("first", [0, 7, 1000])
def test_every_kind_has_its_share_of_twenty_seeds(first: int) -> None:
    found = Counter(fault.kind for seed in range(first, first + 20) for fault in schedule(seed, OPTIONS))
    assert set(found) == set(OF_MEMBERS)
    assert max(found.values()) - min(found.values()) <= 2


def test_kinds_that_a_machine_lacks_are_left_out_and_the_rest_is_shared() -> None:
    kinds = tuple(k for k in OF_MEMBERS if "clock" not in k)
    found = Counter(k for seed in range(len(kinds)) for k in dealt(seed, kinds, 5))
    assert found == dict.fromkeys(kinds, 5)


def test_faults_lie_in_the_span_one_after_the_other_and_hit_what_exists() -> None:
    options = ScheduleOptions(workers=3, faults=6, span_s=12.0)
    known = {"w0", "w1", "w2", "ledger", "monitor", "controller", "standby", "broker", "everybody", "workers"}
    known |= {"takes-over", "is-refused"}
    for seed in range(200):
        faults = schedule(seed, options)
        times = [f.at_s for f in faults]
        assert times == sorted(times)
        assert times[0] >= 0 and times[-1] <= 12.0
        for fault in faults:
            if fault.kind is Kind.POISON_SAMPLE:
                assert 0 <= int(fault.targets[0]) < options.samples
                assert fault.targets[1] in ("raise", "kill")
                continue
            assert set(fault.targets) <= known
            assert len(set(fault.targets)) == len(fault.targets)
            assert fault.for_s == options.stop_s or fault.kind not in STOPS
            assert bool(fault.shift_s) == ("clock" in fault.kind)
            if fault.kind is Kind.KILL_WORKERS:
                assert len(fault.targets) == 2, "one of three survives"


def test_the_long_outage_is_the_clean_stop_of_the_broker() -> None:
    options = ScheduleOptions(kinds=(Kind.BROKER_STOP, Kind.BROKER_KILL), faults=2, long_outage_s=30.0)
    assert {f.kind: f.for_s for f in schedule(1, options)} == {Kind.BROKER_STOP: 30.0, Kind.BROKER_KILL: 2.0}


def test_what_cannot_be_a_schedule_is_said() -> None:
    with pytest.raises(UsageError, match="--workers 1"):
        ScheduleOptions(workers=1)
    with pytest.raises(UsageError, match="at least one"):
        ScheduleOptions(faults=0)


def test_the_record_of_a_worker_keeps_attempts_apart() -> None:
    lines = [
        '{"step": 1, "samples": [4, 5]}',
        '{"step": 1, "lineage": "aa"}',
        '{"step": 2, "samples": [6]}',
        '{"step": 2, "samples": [7]}',
        '{"step": 2, "lineage": "bb"}',
    ]
    found = attempts_of(lines)
    assert [(a.samples, a.lineage) for a in found[1]] == [([4, 5], "aa")]
    assert [(a.samples, a.lineage) for a in found[2]] == [([6], None), ([7], "bb")]


def test_servers_are_struck_where_there_are_some() -> None:
    options = ScheduleOptions(kinds=WITH_SERVERS, servers=2)
    struck = {target for seed in range(60) for fault in schedule(seed, options) for target in fault.targets}
    assert {"s0", "s1", "w0", "ledger"} <= struck
    assert "s2" not in struck
    with pytest.raises(UsageError, match="--servers 2"):
        ScheduleOptions(kinds=WITH_SERVERS)
