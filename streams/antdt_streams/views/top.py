"""A job at a glance while it goes on: read from its newest state, and followed from there."""

from __future__ import annotations

import time

from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import Unavailable
from antdt_schemas.topics import DECISIONS, MEASUREMENTS, SHARD_LOG, STEPS

from antdt_streams.views.follow import Follow, Pacing
from antdt_streams.views.glance import Glance
from antdt_streams.views.job import early_state, timed_state

TOPICS = (SHARD_LOG, DECISIONS, MEASUREMENTS, STEPS)
LASTS = {MEASUREMENTS.suffix: 64, STEPS.suffix: 2_000}
# Who looks once a second needs neither every step of thousands of workers nor every measurement of them.
PACING = {STEPS.suffix: Pacing(records_a_s=150, share=0.002), MEASUREMENTS.suffix: Pacing(records_a_s=1, share=0.005)}
POLL_S = 0.5
READY_S = 30.0


class Top(Glance):
    """One job, followed. Read `document` under `follow.changed`, or once it stands still."""

    def __init__(self, connection: Connection, job: str, *, early: bool = False) -> None:
        """early: there is something to show at once, which is not the newest before `follow.current` is set.

        Raises UnknownJob.
        """
        if early:
            super().__init__(job, early_state(connection, job))
        else:
            fold, _, time_ms = timed_state(connection, job)
            super().__init__(job, fold)
            self.newest.time_ms = time_ms
        self.follow = Follow(
            connection, job, TOPICS, *self.projections, fold=self.fold, lasts=LASTS, pacing=PACING, poll_s=POLL_S
        )

    @property
    def genesis(self) -> records.Genesis | None:
        """None while nobody has begun the job."""
        return self.fold.genesis


def await_current(watched: Top, within_s: float = READY_S) -> None:
    """Wait until all is read that was there. Raises Unavailable, or what ended the reading."""
    until = time.monotonic() + within_s
    while not watched.follow.current.wait(0.1):
        if watched.follow.failure is not None:
            raise watched.follow.failure
        if time.monotonic() > until:
            raise Unavailable(f"The topics of job {watched.job} could not be read within {within_s:g} s.")
