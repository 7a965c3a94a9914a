"""From a StepBatch to samples: repeats, steps without samples and absurd timings are left out and counted.

Own time is data and compute; the barrier wait and communication belong to everybody. Pure functions of a record and a
track.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from antdt_schemas.errors import Undecodable
from antdt_schemas.records import StepBatch

from antdt_streams.monitor.core.node import SERVER, WORKER, Sample, Track
from antdt_streams.monitor.core.options import DetectorOptions


def check(record: StepBatch) -> None:
    """Raises Undecodable for a record that contradicts itself."""
    size = len(record.step)
    columns = (record.batch_size, record.plan, record.data_s, record.compute_s)
    if any(len(column) != size for column in columns):
        raise Undecodable(f"Steps of worker {record.worker}: {size} steps, but another column has another length.")
    if record.micro_batches and len(record.micro_batches) != size:
        raise Undecodable(f"Steps of worker {record.worker}: {size} steps, and micro-batches of another number.")
    if record.role not in (WORKER, SERVER) or record.stage < 0:
        raise Undecodable(f"Steps of {record.worker}: role {record.role!r}, stage {record.stage} is nothing known.")
    if record.generation < 0 or any(step < 0 for step in record.step):
        raise Undecodable(f"Steps of worker {record.worker}: a generation or step is negative.")


def new_steps(track: Track, record: StepBatch, options: DetectorOptions) -> Iterator[tuple[int, Sample | None, int]]:
    """(step, its sample, plan in effect) of each step beyond the track's last one; None where nothing was measured."""
    rows = zip(record.step, record.batch_size, record.plan, record.data_s, record.compute_s, strict=True)
    waited = [sum(both) for both in zip(record.communication_s, record.wait_s, strict=False)]
    many = options.batch_size_max << 12 if record.role == SERVER else options.batch_size_max
    for at, (step, batch_size, plan, data_s, compute_s) in enumerate(rows):
        if step <= track.last_step:
            continue
        if batch_size == 0:
            yield step, None, plan
        elif batch_size <= many and _plausible(batch_size, data_s, compute_s, options):
            own_s, parts = data_s + compute_s, max(record.micro_batches[at], 1) if record.micro_batches else 1
            wall_s = own_s + (waited[at] if at < len(waited) and 0.0 < waited[at] <= options.time_max_s else 0.0)
            size = batch_size if parts == 1 else batch_size / parts
            yield step, Sample(step, size, own_s / parts, batch_size, wall_s), plan
        else:
            track.rejected += 1
            yield step, None, plan


def _plausible(batch_size: int, data_s: float, compute_s: float, options: DetectorOptions) -> bool:
    if not (math.isfinite(data_s) and math.isfinite(compute_s) and data_s >= 0.0 and compute_s >= 0.0):
        return False
    plausible = options.time_min_s <= data_s + compute_s <= options.time_max_s
    return plausible and batch_size > 0
