"""Who looks at a page. What is sent to a viewer waits in a queue of two of which the newest win: one who is slow misses
some, and holds up nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from antdt_schemas.errors import Unavailable

from antdt_streams.views.glance import View

QUEUE = 2
VIEWERS_MAX = 64


class Viewer:
    """One open page. missed: documents that it was too slow for."""

    def __init__(self, job: str, view: View) -> None:
        self.job, self.view = job, view
        self.missed = 0
        self._waiting: deque[bytes] = deque(maxlen=QUEUE)
        self._there = asyncio.Event()
        self._last: bytes | None = None

    def offer(self, payload: bytes) -> None:
        """The newest document; the same as before is none. Never waits."""
        if payload is self._last:
            return
        self._last = payload
        self.missed += len(self._waiting) == QUEUE
        self._waiting.append(payload)
        self._there.set()

    async def take(self, within_s: float) -> bytes | None:
        """The next document; None if none comes in time."""
        try:
            await asyncio.wait_for(self._there.wait(), within_s)
        except TimeoutError:
            return None
        payload = self._waiting.popleft()
        if not self._waiting:
            self._there.clear()
        return payload


class Viewers:
    """All of them, of all jobs."""

    def __init__(self, most: int = VIEWERS_MAX) -> None:
        self.most = most
        self._all: set[Viewer] = set()

    def __len__(self) -> int:
        return len(self._all)

    def of(self, job: str) -> list[Viewer]:
        return [viewer for viewer in self._all if viewer.job == job]

    @contextmanager
    def one_more(self, job: str, view: View) -> Iterator[Viewer]:
        """Raises Unavailable where there are too many already."""
        if len(self._all) >= self.most:
            raise Unavailable(f"{self.most} pages are open already, as many as are served at once: close one first.")
        viewer = Viewer(job, view)
        self._all.add(viewer)
        try:
            yield viewer
        finally:
            self._all.discard(viewer)
