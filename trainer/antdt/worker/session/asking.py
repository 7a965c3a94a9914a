"""Asking until there is an answer: bounds, patience, and the numbers of requests.

Owns how long to wait before a question is repeated, and that every request of an incarnation has a number of its own.
Must not know what is asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from antdt_schemas import records

COMMIT_NUMBERS_MAX = 20_000
ASKED_MAX = 64  # numbers of unanswered questions that are remembered


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Bounds; seconds, steps, and samples where it says so.

    What is not answered is asked again after retry_s, then ever later up to retry_max_s. Samples are leased ahead for
    prefetch_s, and again when half of them are left, so that training outlasts a broker that is away for half a minute;
    for prefetch_steps while the own speed is not known. What was made is reported together every commit_every_s, or
    commit_steps_max of it; every hurried_s while somebody waits for the ledger. commit_numbers_max: of all ranges in
    one request. reenter_s: whoever is attached, and left a generation that is open for so long after, comes back as
    another incarnation.
    """

    retry_s: float = 0.5
    retry_max_s: float = 2.0
    wait_retry_s: float = 0.1
    heartbeat_s: float = 1.0
    heartbeat_leaving_s: float = 0.05
    commit_every_s: float = 0.5
    hurried_s: float = 0.05
    commit_steps_max: int = 64
    prefetch_s: float = 60.0
    prefetch_steps: int = 3
    prefetch_samples_max: int = 1 << 20
    rate_every_s: float = 0.25
    answer_s: float = 0.1
    commit_numbers_max: int = COMMIT_NUMBERS_MAX
    reenter_s: float = 6.0


@dataclass(slots=True)
class Due:
    """When something was last sent, under which number, and how often in a row without an answer."""

    at_s: float = -1e9
    number: int = -1
    tries: int = 0

    def answered(self) -> None:
        """The next one need not wait."""
        self.tries = 0

    def pause_s(self, options: SessionOptions) -> float:
        """How long to wait for the answer."""
        return float(min(options.retry_max_s, options.retry_s * 2 ** min(max(self.tries - 1, 0), 8)))


class Outbox:
    """Requests of one incarnation, numbered in the order in which they go out."""

    def __init__(self, worker: str, incarnation: str) -> None:
        self._from = worker, incarnation
        self._requests: list[records.Request] = []
        self.number = 0

    def post(self, body: records.RequestBody, due: Due, now_s: float) -> int:
        """Send this now; returns its number."""
        self.number += 1
        due.at_s, due.number, due.tries = now_s, self.number, due.tries + 1
        self._requests.append(records.Request(*self._from, self.number, body, b""))
        return self.number

    def __bool__(self) -> bool:
        """Whether anything waits to be sent."""
        return bool(self._requests)

    def emptied(self) -> list[records.Request]:
        """What was posted since it was last emptied, in order."""
        out, self._requests = self._requests, []
        return out
