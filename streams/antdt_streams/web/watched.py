"""The jobs that are looked at: each is followed once, whoever looks at it, and let go when nobody does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from time import monotonic

from antdt_schemas.connection import Connection
from antdt_schemas.errors import Unavailable, unknown_job
from antdt_schemas.topics import check_job

from antdt_streams.web.live import Live

JOBS_MAX = 8
BEGIN_S = 20.0
IDLE_S = 120.0


class Watched:
    """pinned: the job that the page was started for, which is never let go."""

    def __init__(
        self, connection: Connection, pinned: str | None = None, make: Callable[[Connection, str], Live] = Live
    ) -> None:
        self.connection, self.pinned, self._make = connection, pinned, make
        self._lives: dict[str, Live] = {}
        self._looked_at: dict[str, float] = {}
        self._lock = threading.Lock()
        if pinned is not None:
            self.begin(pinned)

    def begin(self, job: str) -> Live:
        """Follow a job if it is not followed yet. Returns at once.

        Raises:
            UsageError: no job has such a name.
            Unavailable: as many are followed as may be, and somebody looks at each.
        """
        check_job(job)
        with self._lock:
            self._looked_at[job] = monotonic()
            found = self._lives.get(job)
            if found is None:
                self._make_room()
                found = self._lives[job] = self._make(self.connection, job)
                found.start()
            return found

    def get(self, job: str) -> Live:
        """The same, once there is something to show. Waits for that. Raises UnknownJob as well."""
        live = self.begin(job)
        if not live.begun.wait(BEGIN_S):
            raise Unavailable(f"Job {job} could not be read within {BEGIN_S:g} s. Is the broker there?")
        if live.top is None:
            self._end(job)
            if live.unknown:
                raise unknown_job(job)
            raise Unavailable(live.trouble["sentence"] if live.trouble else f"Job {job} cannot be read.")
        return live

    def __iter__(self) -> Iterator[Live]:
        with self._lock:
            return iter(list(self._lives.values()))

    def let_go(self, seen: set[str]) -> None:
        """Those at which nobody has looked for a while. seen: jobs that somebody looks at now."""
        now = monotonic()
        with self._lock:
            for job in seen:
                self._looked_at[job] = now
            idle = [job for job in self._lives if now - self._looked_at[job] > IDLE_S and job != self.pinned]
        for job in idle:
            self._end(job)

    def stop(self) -> None:
        for live in self:
            live.stop()

    def _make_room(self) -> None:
        if len(self._lives) < JOBS_MAX:
            return
        oldest = min((job for job in self._lives if job != self.pinned), key=lambda job: self._looked_at[job])
        if monotonic() - self._looked_at[oldest] < BEGIN_S:
            raise Unavailable(f"{JOBS_MAX} jobs are looked at here, as many as are followed at once: close one first.")
        self._lives.pop(oldest).stop()

    def _end(self, job: str) -> None:
        with self._lock:
            live = self._lives.pop(job, None)
        if live is not None:
            live.stop()
