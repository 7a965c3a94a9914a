"""A service in memory that may crash at any moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from antdt_schemas import codec
from antdt_streams.runtime import memory


class Crashed(Exception):
    """The process died here, by the wish of a test."""


class MemoryDriver(memory.MemoryDriver):
    """`crash_in` counts down at every moment at which a process may die with something half done: before and after each
    output that is written, and before and after each write of the state. At 0 the driver raises Crashed; `restart`
    goes on from what is stored.
    """

    crash_in: int | None = None

    def feed(self, *records: Any) -> None:
        """Append records, or bytes as they are, to the service's input."""
        for record in records:
            value = record if record is None or isinstance(record, bytes) else codec.encode(record)
            self.topics.append(self.service.input.name(self.job), value)

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Write to the disk, or crash before or after."""
        self._moment()
        super().write(changes)
        self._moment()

    def flush(self) -> None:
        """Append what is queued, or crash before or after each."""
        while self._queued:
            self._moment()
            self.topics.append(*self._queued.pop(0))
        self._moment()

    def _moment(self) -> None:
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                self.crash_in = None
                raise Crashed
