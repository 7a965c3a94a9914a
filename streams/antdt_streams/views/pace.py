"""How long steps take, over time: median and 99th percentile of the steps of all workers, by the broker's clock.

A curve of a bounded number of points over the last hours, whatever the length of a job: when there are too many, each
point comes to cover twice the time. A point keeps a bounded sample of its steps, each with the same chance to be in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from antdt_schemas import records
from antdt_schemas.topics import Topic

from antdt_streams.views.control import WORKER
from antdt_streams.views.projection import Projection

POINTS_MAX = 240
SPAN_MS = 2 * 3600 * 1000  # a longer curve would have points too coarse to see a decision in
VALUES_MAX = 256  # of one point


@dataclass(slots=True)
class Point:
    """Steps within one stretch of time; every `stride`-th of `count` is in `values`, in seconds."""

    values: list[float] = field(default_factory=list)
    stride: int = 1
    count: int = 0
    quantiles: tuple[float, float] | None = None

    def add(self, seconds: float) -> None:
        if self.count % self.stride == 0:
            self.values.append(seconds)
            if len(self.values) > VALUES_MAX:
                self._thin()
            self.quantiles = None
        self.count += 1

    def absorb(self, other: Point) -> None:
        """Steps of the stretch beside this one."""
        while self.stride < other.stride:
            self._thin()
        while other.stride < self.stride:
            other._thin()
        self.values += other.values
        self.count += other.count
        while len(self.values) > VALUES_MAX:
            self._thin()
        self.quantiles = None

    def _thin(self) -> None:
        self.values, self.stride = self.values[::2], 2 * self.stride

    def told(self) -> tuple[float, float]:
        """Median and 99th percentile, by nearest rank."""
        if self.quantiles is None:
            ordered = sorted(self.values)
            last = len(ordered) - 1
            self.quantiles = ordered[last // 2], ordered[round(0.99 * last)]
        return self.quantiles


@dataclass(slots=True)
class Pace(Projection["dict[str, Any]"]):
    """points: by the number of their stretch of `width_ms`. Records may come in any order."""

    width_ms: int = 1000
    points: dict[int, Point] = field(default_factory=dict)

    def on_record(self, topic: Topic, record: Any, offset: int, time_ms: int = 0) -> None:
        if not isinstance(record, records.StepBatch) or record.role != WORKER or not record.step:
            return
        point = self.points.get(time_ms // self.width_ms)
        if point is None:
            point = self._new(time_ms)
        for parts in zip(record.data_s, record.compute_s, record.communication_s, record.wait_s, strict=True):
            point.add(sum(parts))

    def view(self) -> dict[str, Any]:
        """Columns: seconds since the epoch at which each stretch begins, both percentiles in milliseconds, steps."""
        at = sorted(self.points)
        told = [self.points[number].told() for number in at]
        return {
            "width_s": self.width_ms / 1000,
            "at_s": [number * self.width_ms / 1000 for number in at],
            "p50_ms": [round(1e3 * p50, 2) for p50, _ in told],
            "p99_ms": [round(1e3 * p99, 2) for _, p99 in told],
            "steps": [self.points[number].count for number in at],
        }

    def _new(self, time_ms: int) -> Point:
        newest = max(self.points, default=0) * self.width_ms
        if time_ms < newest - SPAN_MS:
            return Point()  # it is too old to be shown
        for number in [n for n in self.points if n * self.width_ms < time_ms - SPAN_MS]:
            del self.points[number]
        while len(self.points.keys() | {time_ms // self.width_ms}) > POINTS_MAX:
            self._coarsen()
        return self.points.setdefault(time_ms // self.width_ms, Point())

    def _coarsen(self) -> None:
        self.width_ms *= 2
        before, self.points = self.points, {}
        for number in sorted(before):
            beside = self.points.get(number // 2)
            if beside is None:
                self.points[number // 2] = before[number]
            else:
                beside.absorb(before[number])
