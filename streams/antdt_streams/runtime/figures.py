"""Figures of a stream processor: what it has taken and written, and how far it is behind. Read while others work."""

from __future__ import annotations

from dataclasses import fields
from time import monotonic

from antdt_schemas import figures
from antdt_schemas.figures import Family, Kind, Lag, Metric

from antdt_streams.runtime.partitions import Partitions
from antdt_streams.runtime.runner import Counters
from antdt_streams.runtime.source import Source

COUNTED = {
    "records": Metric("antdt_records_total", Kind.COUNTER, "Records of its input that this process has taken."),
    "repeats": Metric(
        "antdt_repeated_records_total", Kind.COUNTER, "Of these, what a writer had written before: not taken again."
    ),
    "outputs": Metric("antdt_outputs_total", Kind.COUNTER, "Records that this process has written."),
    "dead_letters": figures.DEAD_LETTERS,
    "restores": Metric(
        "antdt_restores_total", Kind.COUNTER, "How often a record that made this service fail was taken back."
    ),
}
OFFSET = Metric("antdt_input_offset", Kind.GAUGE, "Offset of the next record of its input.", (figures.LABEL_TOPIC,))


class RuntimeFigures:
    """Of one process: a partition that it lets go takes its counts along."""

    def __init__(self, partitions: Partitions, source: Source) -> None:
        self._partitions, self._source = partitions, source
        self._topic = partitions.service.input.suffix
        self._lag = Lag()

    def __call__(self) -> list[Family]:
        owned, ends, now_s = self._partitions.counted(), self._source.known_ends(), monotonic()
        position = sum(next_offset for next_offset, _ in owned.values())
        known = [(owned[p][0], end) for p, end in ends.items() if p in owned]
        self._lag.look(now_s, sum(at for at, _ in known), sum(end for _, end in known))
        total = Counters()
        for _, counters in owned.values():
            for one in fields(Counters):
                setattr(total, one.name, getattr(total, one.name) + getattr(counters, one.name))
        return [
            figures.LEADER.of(float(bool(owned))),
            figures.LOOP_AGE.of(now_s - self._source.turned_s),
            figures.REBUILDS.of(self._partitions.rebuilds),
            (OFFSET, {(self._topic,): position}),
            *figures.lag_of(self._lag, self._topic),
            *(metric.of(getattr(total, name)) for name, metric in COUNTED.items()),
        ]
