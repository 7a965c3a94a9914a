"""How much a server has to do: its share of time, and what a byte costs it. Servers are compared by it.

Wall time far above processor time is a server that is starved: its machine is busy with something else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple


class Load(NamedTuple):
    """Of a period. busy_s: in which it handled messages, cpu_s: of the processor in that time. bytes: of messages."""

    period_s: float
    busy_s: float
    cpu_s: float
    bytes_in: int
    bytes_out: int
    messages: int

    @property
    def busy_share(self) -> float:
        """Of the period, 0 to 1."""
        return self.busy_s / self.period_s if self.period_s > 0 else 0.0

    @property
    def service_s_a_byte(self) -> float:
        """Of wall time, for bytes in and out; 0 where there were none."""
        moved = self.bytes_in + self.bytes_out
        return self.busy_s / moved if moved else 0.0


class Meter:
    """Of one thread."""

    def __init__(self) -> None:
        self._since_s = time.perf_counter()
        self._busy_s = self._cpu_s = 0.0
        self._in = self._out = self._messages = 0

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While it handles messages."""
        began_s, cpu_s = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self._busy_s += time.perf_counter() - began_s
            self._cpu_s += time.thread_time() - cpu_s

    def received(self, frames: Sequence[Any]) -> None:
        """One message."""
        self._messages += 1
        self._in += sum(map(len, frames))

    def sent(self, frames: Sequence[Any]) -> None:
        """One message."""
        self._out += sum(map(len, frames))

    def read(self) -> Load:
        """Since it was last read."""
        now_s = time.perf_counter()
        out = Load(now_s - self._since_s, self._busy_s, self._cpu_s, self._in, self._out, self._messages)
        self._since_s, self._busy_s, self._cpu_s = now_s, 0.0, 0.0
        self._in = self._out = self._messages = 0
        return out
