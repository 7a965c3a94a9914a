"""What a ledger lives on: the log, the requests, snapshots, and its way to those who asked. Kafka is one such place,
and memory another; `life` knows neither. The cache is `cache.Cache`, over whichever store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from antdt_schemas import records

from antdt_streams.ledger.cache import Cache
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.leader import Incoming
from antdt_streams.storage.snapshots import SnapshotFound


@dataclass(frozen=True, slots=True)
class LogRecord:
    offset: int
    payload: bytes
    leader_epoch: int


class LogPort(Protocol):
    """The shard log as one writer and reader: appends are acknowledged, reads come in order.

    leader_epoch: the broker's, of what was read last. record_bytes_max: of an entry.
    """

    topic: str
    record_bytes_max: int
    leader_epoch: int | None

    @property
    def position(self) -> int:
        """Offset of the next entry to read."""

    def end(self, timeout_s: float | None = None) -> int:
        """Offset of the next entry that anybody writes. Raises Unavailable if the broker does not tell."""

    def seek(self, offset: int) -> None:
        """Read on from here."""

    def poll(self, wait_s: float) -> list[LogRecord]:
        """The entries that are there; waits for the first one."""

    def read_to(self, end: int) -> Iterator[LogRecord]:
        """Entries from the position up to `end`, and what came with them."""

    def append(self, payload: bytes, after: int) -> int:
        """Offset of an entry that is written for good. `after`: what was read is below, or LogTruncated is raised."""

    def serve(self, wait_s: float) -> None:
        """Take what the broker has said of what was written."""


class RequestsPort(Protocol):
    """The requests of the job. topic_id: of the topic that is read, empty before `begin`."""

    topic_id: str

    def end(self, timeout_s: float) -> int:
        """Offset of the next request. Raises Unavailable if the broker does not tell."""

    def look(self) -> tuple[str, int, int]:
        """The id of the topic as it is now, its first offset, and that of the next request."""

    def begin(self, topic_id: str, offset: int) -> None:
        """Read on from here."""

    def take(self, wait_s: float, limit: int) -> list[Incoming]:
        """Requests that are there. Raises OutOfRange or Recreated where they are not those that were read before."""

    def publish(self, offset: int) -> None:
        """A copy of the position with a sign of life, for tools; never read back."""


class SnapshotsPort(Protocol):
    """What a ledger without a folder starts from."""

    def newest(self) -> SnapshotFound | None:
        """The newest one of this job, of whatever topic and position."""

    def offer(self, fold: Fold, leader_epoch: int | None) -> None:
        """Write one if it is due."""

    def write(self, fold: Fold, leader_epoch: int | None) -> None:
        """Write one now: at the end of an office."""


class RepliesPort(Protocol):
    """The way to those who asked. A reply may be lost: it is asked for again."""

    def send(self, reply: records.Reply) -> None:
        """Answer a worker."""

    def bury(self, incoming: Incoming, reason: str) -> None:
        """Keep a request that could not be decided as a dead letter."""


@dataclass(frozen=True, slots=True)
class Ports:
    """All that a life has of the world. Times are of any steady clock, in seconds.

    topic_ids: ids of the job's topics by suffix where somebody has just looked, else None. new_id: never the same
    twice, anywhere. stopping: whether to end. ready: says that this ledger answers, and how, in one line for people.
    """

    log: LogPort
    requests: RequestsPort
    cache: Cache
    snapshots: SnapshotsPort
    replies: RepliesPort
    topic_ids: Callable[[], Mapping[str, str] | None]
    clock: Callable[[], float]
    new_id: Callable[[], str]
    stopping: Callable[[], bool]
    ready: Callable[[str], None]
    owner: str
