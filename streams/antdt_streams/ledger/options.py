"""Limits of the ledger's service."""

from __future__ import annotations

import getpass
import os
import socket
from dataclasses import dataclass

from antdt_streams.ledger.core.holdups import STUCK_MS


@dataclass(frozen=True)
class LedgerOptions:
    """Times in seconds unless the name says otherwise.

    patience_ms, digest_every: of a job that is founded here; an older one has its own in Genesis. stuck_ms: for how
    long one worker may hold up others, if it has not announced that, before it is given up. standby: take office
    only once the log was silent for standby_patience_s, which a leader's heartbeats (every heartbeat_s) prevent.
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
    position_every_s: float = 1.0
    standby: bool = False
    heartbeat_s: float = 0.3
    standby_patience_s: float = 1.0
    identity_every_s: float = 5.0
    snapshot_every: int = 20_000
    snapshot_events: int = 50_000
    secret: bytes | None = None


def owner() -> str:
    """user@host:pid of this process."""
    return f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}"
