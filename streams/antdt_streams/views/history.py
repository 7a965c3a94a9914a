"""How long steps took before anybody looked: a sample of the step records of the last hours, spread evenly over them.

Reads a few records at each of many places: what a large job writes in hours nobody can read in a second.
"""

from __future__ import annotations

from collections.abc import Iterator

from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.topics import STEPS

from antdt_streams.kafka.reader import Raw, TopicReader, decoded
from antdt_streams.views.pace import SPAN_MS

PLACES, RECORDS_EACH = 48, 8
# A client would fetch a thousand records ahead for each few that are wanted.
FEW = {"max_partition_fetch_bytes": 8 << 10, "queued_min_messages": 1}

Told = tuple[records.StepBatch, int, int]  # with its offset, and the broker's time of it


def sampled(connection: Connection, job: str, until_ms: int, newest: int) -> Iterator[list[Told]]:
    """A few records at each place, from as long before `until_ms` as a curve covers; but for the `newest` ones.

    Raises Unavailable where the broker does not answer.
    """
    with TopicReader(connection, job, STEPS, **FEW) as reader:
        start, end = reader.ends_by(until_ms - SPAN_MS)[0], reader.ends_by(until_ms)[0] - newest
        stride = max(RECORDS_EACH, (end - start) // PLACES)
        for at in range(start, end, stride):
            raws: list[Raw] = reader.some(at, min(RECORDS_EACH, end - at))
            yield [(record, raw.offset, raw.time_ms) for raw, record in decoded(raws, records.StepBatch)]
