"""Records per second through the runtime of Monitor and Controller, against a plain consumer loop.

`python -m bench.runtime --json FILE`. Every line is one process against a broker on the same machine; what can be
compared between machines are the ratios. The service does next to nothing, so this is what the runtime itself costs:
source thread, channel, Faust agent, decoding, RocksDB, outputs that are awaited, a snapshot now and then.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from antdt_schemas import codec, records
from antdt_schemas.connection import Connection
from antdt_schemas.topics import MEASUREMENTS, STEPS
from antdt_streams.broker import EmbeddedBroker
from antdt_streams.kafka import topics_admin
from antdt_streams.runtime.faust_app import Host
from antdt_streams.runtime.partitions import Partitions, Policy
from antdt_streams.runtime.runner import Identity, Runner
from antdt_streams.runtime.service import Service
from antdt_streams.runtime.sink import KafkaSink
from antdt_streams.runtime.source import Membership, Source
from antdt_streams.storage.rocks import RowStore
from antdt_streams.storage.rows import Position
from antdt_streams.storage.snapshots import TopicShelf
from confluent_kafka import Consumer, Producer, TopicPartition

JOB = "bench"


@dataclass(frozen=True, slots=True)
class Result:
    """One measurement."""

    name: str
    steps_a_record: int
    record_bytes: int
    output_percent: float
    records: int
    records_per_s: float


class TrivialState:
    """Counts records of each worker."""

    def __init__(self, rows: Mapping[bytes, bytes] | None = None) -> None:
        self.counts = {key: int(row) for key, row in (rows or {}).items()}
        self.dirty: set[bytes] = set()

    def changes(self) -> dict[bytes, bytes | None]:
        out: dict[bytes, bytes | None] = {key: b"%d" % self.counts[key] for key in self.dirty}
        self.dirty.clear()
        return out

    def digest(self) -> bytes:
        return repr(sorted(self.counts.items())).encode()


def trivial(every: int) -> Service:
    """A service with an output for each `every`th record; 0 for none."""

    def process(state: TrivialState, record: records.StepBatch, at: Position, now_ms: int) -> list[Any]:
        key = record.worker.encode()
        state.counts[key] = state.counts.get(key, 0) + 1
        state.dirty.add(key)
        if not every or at.offset % every:
            return []
        cause = records.Cause(at.partition, at.offset, 0)
        return [records.Measurement(cause, 0, False, 0, 0, 0, (), False, (), 0.0, 0, at.offset)]

    # A name of its own: it must not begin at the snapshot of another.
    return Service(f"bench-{every}", 1, STEPS, TrivialState, TrivialState, process, {records.Measurement: MEASUREMENTS})


def step_batch(worker: int, steps: int) -> bytes:
    """One encoded StepBatch."""
    numbers, times = tuple(range(steps)), tuple(0.125 for _ in range(steps))
    columns = (numbers, numbers, numbers, times, times, times, times)
    return codec.encode(records.StepBatch(f"w{worker}", f"w{worker}-1", 1, "n", "h", 0, 0, *columns))


def fill(connection: Connection, steps: int, count: int) -> int:
    """Write the input; the size of a record in bytes."""
    producer = Producer(connection.producer(linger_ms=50))
    values = [step_batch(worker, steps) for worker in range(64)]
    for number in range(count):
        while True:
            try:
                producer.produce(STEPS.name(JOB), values[number % 64], partition=0)
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(120) == 0
    return len(values[0])


def plain(connection: Connection, count: int, each: Callable[[bytes], Any]) -> float:
    """Seconds of a consumer loop that does `each` with every record."""
    consumer = Consumer(connection.consumer())
    consumer.assign([TopicPartition(STEPS.name(JOB), 0, 0)])
    taken, start_s = 0, 0.0
    while taken < count:
        first = consumer.poll(1.0)
        if first is None:
            continue
        start_s = start_s or time.perf_counter()
        for message in (first, *consumer.consume(999, 0)):
            assert not message.error(), message.error()
            each(message.value() or b"")
            taken += 1
    took_s = time.perf_counter() - start_s
    consumer.close()
    return took_s


def through_runtime(connection: Connection, folder: Path, service: Service, count: int) -> float:
    """Seconds from the first batch to the last commit, through source, channel, Faust agent and RocksDB."""
    identity = Identity(JOB, topics_admin.topic_ids(connection, JOB)[STEPS.suffix])
    halted, times_s = threading.Event(), list[float]()
    with closing(RowStore(folder / "rows")) as store:
        sink = KafkaSink(connection, halted)
        shelf = TopicShelf(connection, JOB, service.name)
        partitions = Partitions(service, identity, store, sink, shelf, Policy())
        membership = Membership(f"antdt.bench.{service.name}")
        source = Source(connection, STEPS.name(JOB), identity.topic_id, membership, partitions, halted)

        async def hosted() -> None:
            loop = asyncio.get_running_loop()

            def take(batch: Any) -> None:
                times_s.append(time.perf_counter())
                partitions.take(batch)
                if batch.first_offset + len(batch.records) == count:
                    times_s.append(time.perf_counter())
                    loop.call_soon_threadsafe(host.end)

            host = Host("bench", folder / "faust", read=source.read, take=take, on_end=source.halt)
            await host.run(lambda: None)

        asyncio.run(hosted())
        sink.close()
        shelf.close()
        assert Runner(service, identity, store, sink).committed == count
    return times_s[-1] - times_s[0]


def measure(connection: Connection, folder: Path, steps: int, count: int) -> list[Result]:
    """Every measurement with records of `steps` steps."""
    topics_admin.create(connection, JOB)
    size = fill(connection, steps, count)

    def result(name: str, output_percent: float, took_s: float) -> Result:
        return Result(name, steps, size, output_percent, count, round(count / took_s))

    decode = lambda value: codec.decode(value, records.StepBatch)  # noqa: E731
    out = [
        result("plain consumer loop", 0, plain(connection, count, lambda value: None)),
        result("plain consumer loop that decodes", 0, plain(connection, count, decode)),
    ]
    for percent, every in ((0.0, 0), (1.0, 100), (10.0, 10)):
        scratch = folder / f"{steps}-{every}"
        out.append(result("runtime", percent, through_runtime(connection, scratch, trivial(every), count)))
    topics_admin.delete(connection, JOB)
    return out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--records", type=int, default=100_000, help="of one step; a third as many of 64 steps")
    options = parser.parse_args()
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as scratch, EmbeddedBroker(Path(scratch) / "broker") as broker:
        for steps, count in ((1, options.records), (64, options.records // 3)):
            results += measure(broker.connection, Path(scratch), steps, count)
    for r in results:
        base = next(x for x in results if x.steps_a_record == r.steps_a_record and x.name.endswith("decodes"))
        print(
            f"{r.records_per_s:>9,.0f} records/s  {r.records_per_s / base.records_per_s:5.2f} of a loop that decodes  "
            f"{r.record_bytes:>5} B  outputs {r.output_percent:>4.0f} %" + f"  {r.name}"
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
