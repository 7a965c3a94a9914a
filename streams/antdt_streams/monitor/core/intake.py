"""From a StepBatch to samples: repeats, steps without samples and absurd timings are left out and counted.

Own time is data and compute; the barrier wait and communication belong to everybody. Pure functions of a record and a
track.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from antdt_schemas.errors import Undecodable
from antdt_schemas.records import StepBatch

from antdt_streams.monitor.core.node import Sample, Track
from antdt_streams.monitor.core.options import DetectorOptions


def check(record: StepBatch) -> None:
    """Raises Undecodable for a record that contradicts itself."""
    size = len(record.step)
    columns = (record.batch_size, record.plan, record.data_s, record.compute_s)
    if any(len(column) != size for column in columns):
        raise Undecodable(f"Steps of worker {record.worker}: {size} steps, but another column has another length.")
    if record.generation < 0 or any(step < 0 for step in record.step):
        raise Undecodable(f"Steps of worker {record.worker}: a generation or step is negative.")


def new_steps(track: Track, record: StepBatch, options: DetectorOptions) -> Iterator[tuple[int, Sample | None, int]]:
    """(step, its sample, plan in effect) of each step beyond the track's last one; None where nothing was measured."""
    rows = zip(record.step, record.batch_size, record.plan, record.data_s, record.compute_s, strict=True)
    for step, batch_size, plan, data_s, compute_s in rows:
        if step <= track.last_step:
            continue
        if batch_size == 0:
            yield step, None, plan
        elif _plausible(batch_size, data_s, compute_s, options):
            yield step, Sample(step, batch_size, data_s + compute_s), plan
        else:
            track.rejected += 1
            yield step, None, plan


def _plausible(batch_size: int, data_s: float, compute_s: float, options: DetectorOptions) -> bool:
    if not (math.isfinite(data_s) and math.isfinite(compute_s) and data_s >= 0.0 and compute_s >= 0.0):
        return False
    plausible = options.time_min_s <= data_s + compute_s <= options.time_max_s
    return plausible and 0 < batch_size <= options.batch_size_max
