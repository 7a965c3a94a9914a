"""What a topic costs, from its newest records."""

from __future__ import annotations

from antdt_schemas.topics import SHARD_LOG, STEPS, STEPS_BYTES_MAX
from antdt_streams.kafka.reader import Raw
from antdt_streams.views.costs import OVERHEAD_BYTES, Cost, cost, size


def test_a_day_at_the_pace_of_the_newest_records() -> None:
    raws = [Raw(0, i, 1000 * i, b"w0", bytes(98 - OVERHEAD_BYTES)) for i in range(11)]  # 100 bytes each
    found = cost(STEPS, 500, raws)
    assert found == Cost(500, 1100 * 8640, 7 * 86_400_000, STEPS_BYTES_MAX)
    assert str(found) == "500 records, 9.5 MB a day at their pace, kept for 7 days, at most 4.29 GB"


def test_what_is_idle_has_no_pace_and_the_log_is_kept_for_ever() -> None:
    assert str(cost(SHARD_LOG, 1, [Raw(0, 0, 5, None, b"x")])) == "1 records, kept for ever"
    assert cost(SHARD_LOG, 2, [Raw(0, i, 5, None, b"x") for i in range(2)]).bytes_a_day is None


def test_steps_are_bounded_whatever_the_pace() -> None:
    assert STEPS.settings()["retention.bytes"] == str(STEPS_BYTES_MAX)
    assert STEPS_BYTES_MAX < 7 * 0.84e9, "bounded by bytes where a week at 17 steps a second is more"


def test_sizes() -> None:
    assert [size(x) for x in (0, 999, 1500, 36e6, 0.84e9, 2e12)] == [
        "0 B",
        "999 B",
        "1.5 KB",
        "36 MB",
        "840 MB",
        "2 TB",
    ]
