"""Services without a broker: topics are lists, disks are dicts. What a real service has written is held against these.

The loop, the order of the commit and the rows are those of the real runtime; only the ends are exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from antdt_schemas import codec
from antdt_schemas.topics import Topic

from antdt_streams.runtime.runner import Runner
from antdt_streams.runtime.service import Batch, Raw, Service
from antdt_streams.storage.rows import Identity, Marks

BATCH_RECORDS_MAX = 1000


class MemoryTopics:
    """One partition for each topic. Its clock is whatever it is set to, backwards too."""

    def __init__(self) -> None:
        self.logs: dict[str, list[Raw]] = {}
        self.now_ms = 0

    def append(self, topic: str, value: bytes | None) -> int:
        log = self.logs.setdefault(topic, [])
        log.append(Raw(value, self.now_ms))
        return len(log) - 1

    def records(self, topic: Topic, job: str) -> list[Any]:
        """Every record of a topic, decoded, repeats included."""
        return [codec.decode_one_of(raw.value, topic.kinds) for raw in self.logs.get(topic.name(job), [])]


class MemoryStore:
    """Rows that survive a crash."""

    def __init__(self) -> None:
        self.content: dict[bytes, bytes] = {}

    def rows(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """(key, row) of every key with this prefix, in the order of the keys."""
        yield from sorted((key, row) for key, row in self.content.items() if key.startswith(prefix))

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        for key, row in changes.items():
            if row is None:
                self.content.pop(key, None)
            else:
                self.content[key] = row


class MemoryDriver:
    def __init__(self, service: Service, job: str, topics: MemoryTopics | None = None) -> None:
        self.service, self.job = service, job
        self.topics = topics if topics is not None else MemoryTopics()
        self.disk = MemoryStore()
        self.restart()

    def restart(self) -> None:
        """Forget everything that is not stored, and load it again, as a new process would."""
        self._queued: list[tuple[str, bytes]] = []
        self.runner = Runner(self.service, Identity(self.job, "memory"), self, self)
        self.runner.rebuild()

    def run(self, records_max: int = BATCH_RECORDS_MAX) -> int:
        """Process what is in the input, in batches of at most `records_max`; how many records were taken."""
        log = self.topics.logs.get(self.service.input.name(self.job), [])
        first = self.runner.next_offset
        while self.runner.next_offset < len(log):
            at = self.runner.next_offset
            self.runner.take(Batch(0, at, log[at : at + records_max]))
        return self.runner.next_offset - first

    def outputs(self, topic: Topic) -> list[Any]:
        """What a reader of a topic takes: its records without the repeats that follow a crash."""
        return without_repeats(self.topics.records(topic, self.job))

    # -- the ends of the runner

    def rows(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        return self.disk.rows(prefix)

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        self.disk.write(changes)

    def send(self, topic: str, value: bytes, partition: int) -> None:
        """Queue one record: a process that dies before `flush` may or may not have written it."""
        assert partition == 0, partition
        self._queued.append((topic, value))

    def flush(self) -> None:
        while self._queued:
            self.topics.append(*self._queued.pop(0))

    def written(self, topic: str, partition: int, newest: int | None) -> Iterator[bytes | None]:
        assert partition == 0, partition
        log = self.topics.logs.get(topic, [])
        yield from (raw.value for raw in log[0 if newest is None else max(0, len(log) - newest) :])


def without_repeats(records: Sequence[Any]) -> list[Any]:
    """What a reader keeps: one high-water mark for each source partition, dead letters by the record they are of."""
    seen, out = Marks(), []
    for record in records:
        cause = getattr(record, "cause", None)
        if cause is None:
            source, mark = (record.service, record.topic, record.partition), (record.offset, 0)
        else:
            source, mark = cause.partition, (cause.offset, cause.index)
        if seen.note(source, mark):
            out.append(record)
    return out
