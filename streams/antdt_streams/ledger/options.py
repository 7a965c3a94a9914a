"""Limits of the ledger's service."""

from __future__ import annotations

from dataclasses import dataclass

from antdt_streams.ledger.core.holdups import STUCK_MS


@dataclass(frozen=True)
class LedgerOptions:
    """Times in seconds unless the name says otherwise.

    patience_ms, digest_every: of a job that is founded here; an older one has its own in Genesis. stuck_ms: for how
    long one worker may hold up others, if it has not announced that, before it is given up. standby: take office
    only once requests were left unanswered for standby_patience_s. signs_s: how long mere signs of life wait for
    something to share an entry with; well below that patience. missing_s: how long a topic may be missing.
    snapshot_every, snapshot_events: entries, and events, between two snapshots at most: they bound what a ledger
    without a folder has to read.
    """

    patience_ms: int = 5_000
    stuck_ms: int = STUCK_MS
    digest_every: int = 1_000
    requests_per_cycle_max: int = 1_000
    append_timeout_s: float = 30.0
    read_timeout_s: float = 30.0
    idle_s: float = 0.05
    signs_s: float = 0.25
    position_every_s: float = 1.0
    standby: bool = False
    standby_patience_s: float = 1.0
    identity_every_s: float = 5.0
    missing_s: float = 15.0
    snapshot_every: int = 20_000
    snapshot_events: int = 50_000
    secret: bytes | None = None
