"""What a process says of itself in numbers: metrics, and what they are worth at the moment.

Owns the shape of a metric and how far behind a reader is. Names follow Prometheus (one prefix, base units, `_total`
for what only grows); labels have a bounded number of values. Knows no format, no server and no clock.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate

# Of steps and cycles: from a millisecond to minutes, three to a decade.
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
LOOKS_KEPT = 4096


class Kind(StrEnum):
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """labels: their names, in the order of the values in a Family."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    def of(self, value: Value) -> Family:
        """What a metric without labels is worth."""
        assert not self.labels, self.name
        return self, {(): value}


class Histogram:
    """How often a value was at most each of the bounds; the last count is of what is above all of them."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds, self.sum = tuple(bounds), 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count a value; one that is no number is none."""
        if math.isfinite(value):
            self._counts[bisect_left(self.bounds, value)] += 1
            self.sum += value

    def cumulative(self) -> list[int]:
        return list(accumulate(self._counts))


Labels = tuple[str, ...]
Value = float | Histogram
Family = tuple[Metric, Mapping[Labels, Value]]
Figures = Callable[[], Iterable[Family]]
"""Asked whenever somebody wants to know, by any thread, one at a time."""


class Lag:
    """How far a reader is behind: in records, and since when it has not reached an end that was there then.

    Of one's own steady clock only: the time stamps of records are another clock's. Between two looks nothing is known,
    so the seconds are as exact as looks are frequent.
    """

    def __init__(self) -> None:
        self.records, self.seconds = 0, 0.0
        self._looks: deque[tuple[float, int]] = deque(maxlen=LOOKS_KEPT)

    def look(self, now_s: float, position: int, end: int) -> None:
        """The reader has everything below `position`, and records up to `end` are there."""
        if not self._looks or self._looks[-1][1] < end:
            self._looks.append((now_s, end))
        while self._looks and self._looks[0][1] <= position:
            self._looks.popleft()
        self.records = max(0, end - position)
        self.seconds = now_s - self._looks[0][0] if self._looks else 0.0


# -- what every service has

LABEL_TOPIC = "topic"
BUILD = Metric("antdt_build_info", Kind.GAUGE, "Version of antdt that runs here; always 1.", ("version", "python"))
LEADER = Metric(
    "antdt_leader",
    Kind.GAUGE,
    "1 where this process works (a ledger in office, a processor that reads its partition), 0 where it stands by.",
)
LAG_RECORDS = Metric(
    "antdt_input_lag_records", Kind.GAUGE, "Records of its input that this service has not processed.", (LABEL_TOPIC,)
)
LAG_SECONDS = Metric(
    "antdt_input_lag_seconds",
    Kind.GAUGE,
    "For how long the oldest of these has been there; as exact as this is asked often.",
    (LABEL_TOPIC,),
)
LOOP_AGE = Metric(
    "antdt_loop_age_seconds",
    Kind.GAUGE,
    "Since the loop of this service last came round: grows while it hangs, or waits for the broker.",
)
DEAD_LETTERS = Metric(
    "antdt_dead_letters_total", Kind.COUNTER, "Records that this process could not take, and wrote into dead-letters."
)
REBUILDS = Metric(
    "antdt_rebuilds_total",
    Kind.COUNTER,
    "How often this process has read its state anew from the log or the topic, not only what is new of it.",
)


def lag_of(lag: Lag, topic: str) -> list[Family]:
    return [(LAG_RECORDS, {(topic,): lag.records}), (LAG_SECONDS, {(topic,): lag.seconds})]
