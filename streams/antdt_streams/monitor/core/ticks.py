"""Windows where workers do not wait for each other, so that there is no common step: time stands in for it.

A record becomes one sample, the middle of what it holds, at the tick of the broker's clock that it came in. A tick is
long enough for the slowest node to complete something in it; one node alone cannot stretch it without end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median, median_low

from antdt_schemas.records import StepBatch

TICK_MS = 1_000
ROOM = 1.25  # of a tick over a step
SLOWEST_MAX = 8.0  # nodes beyond so many times the median are not waited for


def as_tick(record: StepBatch, tick_ms: int, now_ms: int) -> StepBatch:
    """The record as one sample; one that holds nothing plausible keeps its first row, to be rejected."""
    rows = [at for at in range(len(record.step)) if _sound(record, at)]
    at = rows[-1] if rows else 0

    def middle(column: Sequence[float]) -> tuple[float, ...]:
        return (median(column[i] for i in rows),) if rows else tuple(column[:1])

    parts = (median_low(record.micro_batches[i] for i in rows),) if record.micro_batches and rows else ()
    return replace(
        record,
        step=(now_ms // tick_ms,),
        batch_size=(median_low(record.batch_size[i] for i in rows),) if rows else record.batch_size[:1],
        plan=record.plan[at : at + 1],
        data_s=(0.0,),
        compute_s=middle([a + b for a, b in zip(record.data_s, record.compute_s, strict=True)]),
        communication_s=middle(record.communication_s),
        wait_s=middle(record.wait_s),
        micro_batches=parts,
    )


def _sound(record: StepBatch, at: int) -> bool:
    columns = (record.data_s, record.compute_s, record.communication_s, record.wait_s)
    seconds = [column[at] if at < len(column) else math.nan for column in columns]
    return record.batch_size[at] > 0 and all(math.isfinite(s) and s >= 0.0 for s in seconds)


def wall_s(record: StepBatch) -> float:
    """Seconds of a step in it, all waiting included; 0 while nothing plausible is in it."""
    columns = zip(record.data_s, record.compute_s, record.communication_s, record.wait_s, strict=False)
    found = [sum(row) for row in columns if all(math.isfinite(s) and s >= 0.0 for s in row)]
    return median(found) if found else 0.0


def tick_for(tick_ms: int, own_s: float, others_s: Sequence[float]) -> int:
    """How long a tick must be for a node whose steps take `own_s`, among others; doubled until it is enough."""
    most_s = SLOWEST_MAX * median(others_s) if others_s else own_s
    while tick_ms < 1000 * ROOM * min(own_s, most_s):
        tick_ms *= 2
    return tick_ms
