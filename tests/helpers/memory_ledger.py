"""A ledger's ports in memory, and a driver that takes its life from one moment to another: no broker, no wall clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from antdt_schemas import codec, records, topics
from antdt_schemas.errors import LogTruncated, Superseded
from antdt_schemas.hearing import OutOfRange, Place, Recreated
from antdt_schemas.topics import RECORD_BYTES_MAX
from antdt_streams.ledger.cache import Cache
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.leader import Incoming, InOffice
from antdt_streams.ledger.core.versions import FOLD_VERSION
from antdt_streams.ledger.life import Life, Moment
from antdt_streams.ledger.options import LedgerOptions
from antdt_streams.ledger.ports import LogRecord, Ports
from antdt_streams.ledger.stored import Identity, whole
from antdt_streams.runtime.memory import MemoryStore
from antdt_streams.storage.snapshots import SnapshotFound

JOB, LOG_ID = "memory", "log-1"


class MemoryBroker:
    """Topics of one job as lists; time is what the caller says."""

    def __init__(self, requests_topic: str = "") -> None:
        self.requests_topic, self.requests_low = requests_topic, 0
        self.log: list[bytes] = []
        self.requests: list[tuple[int, bytes]] = []
        self.replies: list[records.Reply] = []
        self.snapshot: SnapshotFound | None = None
        self.now_ms = 1_000
        self.leaders = 0

    @classmethod
    def founded(cls, spec: records.JobSpec, patience_ms: int = 5_000, digest_every: int = 10) -> MemoryBroker:
        """Of a job that has its Genesis: no worker need join first."""
        broker = cls()
        genesis = records.Genesis("run-1", JOB, "test", spec, FOLD_VERSION, "none", digest_every, patience_ms, "")
        broker.append(codec.encode(records.Entry(genesis)))
        return broker

    def append(self, payload: bytes) -> int:
        """Append to the log; its offset."""
        self.log.append(payload)
        return len(self.log) - 1

    def send(self, request: records.Request | bytes) -> int:
        """Append a request; returns its offset."""
        payload = request if isinstance(request, bytes) else codec.encode(request)
        self.requests.append((self.now_ms, payload))
        return self.requests_high - 1

    @property
    def requests_high(self) -> int:
        """Offset of the next request."""
        return self.requests_low + len(self.requests)

    def incoming(self, start: int, limit: int) -> list[Incoming]:
        """Requests from an offset on."""
        assert self.requests_low <= start <= self.requests_high, "where they are not must be noticed"
        part = self.requests[start - self.requests_low :][:limit]
        return [Incoming(start + i, time_ms, payload) for i, (time_ms, payload) in enumerate(part)]

    def fold(self) -> Fold:
        """A new reader that has read everything."""
        fold = Fold()
        for offset, payload in enumerate(self.log):
            fold.read(offset, payload)
        return fold


class MemoryLog:
    """The log as one process writes and reads it. appended: offset of what it wrote last."""

    topic, leader_epoch = topics.SHARD_LOG.name(JOB), 0

    def __init__(self, broker: MemoryBroker, record_bytes_max: int = RECORD_BYTES_MAX) -> None:
        self.broker, self.record_bytes_max, self.position = broker, record_bytes_max, 0
        self.appended = -1

    def end(self, timeout_s: float | None = None) -> int:
        return len(self.broker.log)

    def seek(self, offset: int) -> None:
        self.position = offset

    def poll(self, wait_s: float) -> list[LogRecord]:
        return list(self.read_to(self.end()))

    def read_to(self, end: int) -> Iterator[LogRecord]:
        while self.position < end:
            self.position += 1
            yield LogRecord(self.position - 1, self.broker.log[self.position - 1], 0)

    def append(self, payload: bytes, after: int) -> int:
        self.appended = self.broker.append(payload)
        if self.appended < after:
            raise LogTruncated(f"The end of {self.topic}", f"at least {after}", self.appended)
        return self.appended

    def serve(self, wait_s: float) -> None:
        """Nothing is ever under way."""


class MemoryRequests:
    """The requests as one process reads them."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker, self.topic_id, self.position = broker, "", 0

    def end(self, timeout_s: float) -> int:
        return self.broker.requests_high

    def look(self) -> tuple[str, int, int]:
        return self.broker.requests_topic, self.broker.requests_low, self.broker.requests_high

    def begin(self, topic_id: str, offset: int) -> None:
        self.topic_id, self.position = topic_id, offset

    def take(self, wait_s: float, limit: int) -> list[Incoming]:
        topic_id, low, high = self.look()
        if topic_id != self.topic_id:
            raise Recreated(topics.REQUESTS.name(JOB), self.topic_id, topic_id)
        if not low <= self.position <= high:
            raise OutOfRange(Place(topics.REQUESTS.name(JOB)), self.position, low, high)
        taken = self.broker.incoming(self.position, limit)
        self.position += len(taken)
        return taken

    def publish(self, offset: int) -> None:
        """Nobody looks."""


class MemoryCache(Cache):
    """The real cache over a store in memory, which outlives the process."""

    def __init__(self, store: MemoryStore) -> None:
        self.folder, self.identity = Path("memory"), Identity(JOB, LOG_ID)
        self.store, self.leader_epoch, self._written = store, None, set()

    def begin_anew(self) -> None:
        self.store.content.clear()
        self._written = set()


class MemorySnapshots:
    """The newest snapshot of the job, for whoever starts without a store."""

    def __init__(self, broker: MemoryBroker, every: int) -> None:
        self.broker, self.every, self._written_at = broker, every, 0

    def newest(self) -> SnapshotFound | None:
        return self.broker.snapshot

    def offer(self, fold: Fold, leader_epoch: int | None) -> None:
        position = fold.position.next_offset
        self._written_at = self._written_at or position - position % self.every
        if position - self._written_at >= self.every:
            self.write(fold, leader_epoch)

    def write(self, fold: Fold, leader_epoch: int | None) -> None:
        self._written_at = fold.position.next_offset
        rows = whole(fold, Identity(JOB, LOG_ID), leader_epoch)
        self.broker.snapshot = SnapshotFound(LOG_ID, self._written_at, rows, 0)


class MemoryReplies:
    """Replies, and dead letters, in order."""

    def __init__(self) -> None:
        self.sent: list[records.Reply] = []
        self.dead: list[tuple[Incoming, str]] = []

    def send(self, reply: records.Reply) -> None:
        self.sent.append(reply)

    def bury(self, incoming: Incoming, reason: str) -> None:
        self.dead.append((incoming, reason))


class MemoryLedger:
    """One ledger process on a MemoryBroker: in office, and idle between two calls. Throw it away to crash it, at any
    moment of its life. Its cache is new, so it begins with the log.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        secret: bytes | None = None,
        record_bytes_max: int = RECORD_BYTES_MAX,
        options: LedgerOptions | None = None,
    ) -> None:
        self.broker, self.replies, self.cache = broker, MemoryReplies(), MemoryCache(MemoryStore())
        broker.leaders += 1
        name = f"leader-{broker.leaders}"
        # Its clock stands between two calls: nothing would come to share an entry with.
        options = replace(options or LedgerOptions(), secret=secret, signs_s=0.0)
        log = MemoryLog(broker, record_bytes_max)
        ports = ports_of(broker, log, self.cache, self.replies, lambda: broker.now_ms / 1000, name, options)
        self.life = Life(JOB, LOG_ID, ports, options)
        self._steps = self.life.run()
        self._until(Moment.IN_OFFICE)

    @property
    def office(self) -> InOffice:
        """What it has of the log."""
        return self.life.office

    def _until(self, *moments: Moment) -> Moment:
        for moment in self._steps:
            if moment in moments:
                return moment
        raise AssertionError("a ledger that nobody stops has ended")

    def append(self) -> bool:
        """Steps 1 to 3 of a cycle: decide what is there and append it. False: nothing was there."""
        return self._until(Moment.APPENDED, Moment.IDLE) is Moment.APPENDED

    def read_back(self) -> list[records.Reply]:
        """Steps 4 to 6: read the log, then reply. Raises Superseded where that makes it a standby."""
        before = len(self.replies.sent)
        if self._until(Moment.IDLE, Moment.STANDING_BY, Moment.DECIDED) is Moment.STANDING_BY:
            raise Superseded("It stands by.")
        return self.replies.sent[before:]

    def run(self, requests: Iterable[records.Request] = ()) -> list[records.Reply]:
        """Send requests, run cycles until all are consumed, return the replies."""
        before = len(self.replies.sent)
        for request in requests:
            self.broker.send(request)
        self._until(Moment.IDLE)
        return self.replies.sent[before:]


def ports_of(
    broker: MemoryBroker,
    log: MemoryLog,
    cache: MemoryCache,
    replies: MemoryReplies,
    clock: Callable[[], float],
    name: str,
    options: LedgerOptions,
) -> Ports:
    """The ports of the process `name`."""
    numbers = iter(range(1 << 30))
    return Ports(
        log=log,
        requests=MemoryRequests(broker),
        cache=cache,
        snapshots=MemorySnapshots(broker, options.snapshot_every),
        replies=replies,
        topic_ids=lambda: topic_ids(broker),
        clock=clock,
        new_id=lambda: f"{name}.{next(numbers)}",
        stopping=lambda: False,
        ready=lambda how: None,
        owner=name,
    )


def topic_ids(broker: MemoryBroker) -> Mapping[str, str]:
    """Ids of the topics as they are now."""
    return {topics.SHARD_LOG.suffix: LOG_ID, topics.REQUESTS.suffix: broker.requests_topic}
