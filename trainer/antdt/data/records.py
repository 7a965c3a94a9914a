"""Records of a topic, as decoders get them and as a broker gives them. Must not know a client, nor what they become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from antdt_schemas.space import record_name


class Record(NamedTuple):
    """A record of the topic, for the decoder. timestamp_ms: since 1970, None where it has none. headers: in order."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()

    @property
    def name(self) -> str:
        """What it is called in the account of a job."""
        return record_name(self.topic, self.partition, self.offset)


class Fetched(NamedTuple):
    """Records of a partition, in order, up to offset `reached`: whatever is not among them below that is not there."""

    records: Sequence[Record]
    reached: int


class Broker(Protocol):
    """The topic as a broker has it."""

    def bounds(self) -> dict[int, tuple[int, int]]:
        """First offset and last stable offset of each partition, now. Raises UsageError, Unavailable."""

    def identity(self) -> bytes:
        """What tells this topic from another one of its name."""

    def fetch(self, partition: int, offset: int, length: int) -> Fetched:
        """Some of the records at these offsets, from the first on; waits for them.

        Raises RecordsLost where they were there and are not any more.
        """

    def close(self) -> None: ...
