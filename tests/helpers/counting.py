"""A tiny service for tests of the runtime: counts the steps of each worker and chains everything it has seen.

Its digest depends on every record, its order, its offset and its time stamp, so that anything lost, repeated or
exchanged shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

from antdt_schemas import records
from antdt_schemas.errors import Undecodable
from antdt_schemas.topics import MEASUREMENTS, STEPS
from antdt_streams.runtime.service import Service
from antdt_streams.storage.rows import Position, digest_rows

CHAIN = b"\0chain"


class CountingState:
    """Rows: worker -> number of steps, and the chain."""

    def __init__(self, rows: Mapping[bytes, bytes] | None = None) -> None:
        self.rows = dict(rows or {})
        self.dirty: set[bytes] = set()

    def put(self, key: bytes, row: bytes | None) -> None:
        if row is None:
            self.rows.pop(key, None)
        else:
            self.rows[key] = row
        self.dirty.add(key)

    def changes(self) -> dict[bytes, bytes | None]:
        out = {key: self.rows.get(key) for key in self.dirty}
        self.dirty.clear()
        return out

    def digest(self) -> bytes:
        return digest_rows(self.rows)


def process(
    state: CountingState, record: records.StepBatch, position: Position, now_ms: int
) -> list[records.Measurement]:
    """As many outputs as the record has steps, up to 3. `worker` says what a record does to the service."""
    if record.worker == "refused":
        raise Undecodable("It contradicts itself.")
    key = record.worker.encode()
    link = b"%d/%d/%d/" % (position.partition, position.offset, now_ms) + key + state.rows.get(CHAIN, b"")
    state.put(CHAIN, blake2b(link + bytes(len(record.step)), digest_size=16).digest())
    state.put(key, None if record.worker == "leaver" else b"%d" % (int(state.rows.get(key, b"0")) + len(record.step)))
    if record.worker == "poison":
        state.put(b"half", b"done")
        raise RuntimeError("the detector divides by zero")
    size = 1_200_000 if record.worker == "huge" else 0
    return [measurement(position, index, state, size) for index in range(min(3, len(record.step)))]


def measurement(position: Position, index: int, state: CountingState, size: int) -> records.Measurement:
    return records.Measurement(
        cause=records.Cause(position.partition, position.offset, index),
        window=int.from_bytes(state.rows[CHAIN][:6], "big"),
        urgent=False,
        generation=0,
        last_step=0,
        plan=0,
        nodes=(),
        rotating=False,
        structural=("x" * size,),
        loss=0.0,
        first_offset=0,
        last_offset=position.offset,
    )


def steps(worker: str, count: int = 0) -> records.StepBatch:
    """A StepBatch of `count` steps."""
    column = tuple(range(count))
    times = tuple(0.125 for _ in column)
    columns = (column, column, column, times, times, times, times)
    return records.StepBatch(worker, f"{worker}-1", 1, "n", "h", 0, 0, *columns)


COUNTING = Service(
    name="counting",
    version=1,
    input=STEPS,
    new_state=CountingState,
    load_state=CountingState,
    process=process,
    outputs={records.Measurement: MEASUREMENTS},
)
