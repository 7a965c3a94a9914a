"""How much a server has to do. Servers are compared by it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple


class Load(NamedTuple):
    """Of a period. busy_s: in which it handled messages. bytes: of messages."""

    period_s: float
    busy_s: float
    bytes_in: int
    bytes_out: int
    messages: int


class Meter:
    """Of one thread."""

    def __init__(self) -> None:
        self._since_s = time.perf_counter()
        self._busy_s = 0.0
        self._in = self._out = self._messages = 0

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While it handles messages."""
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self._busy_s += time.perf_counter() - began_s

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
        out = Load(now_s - self._since_s, self._busy_s, self._in, self._out, self._messages)
        self._since_s, self._busy_s = now_s, 0.0
        self._in = self._out = self._messages = 0
        return out
