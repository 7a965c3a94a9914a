"""Where the samples of a job are, counted: what status, top and the page say alike."""

from __future__ import annotations

from typing import Any

from antdt_streams.ledger.core.batches import Batches
from antdt_streams.ledger.core.state import State

PLACES = ("committed", "leased", "returned", "quarantined", "left")
EPOCHS_SHOWN = 8


def samples(state: State | None) -> dict[str, int]:
    """Of all epochs: all but the first, `total`, add up to it. left: never handed out."""
    if state is None:
        return {"total": 0, **dict.fromkeys(PLACES, 0)}
    shards = state.shards
    leased = sum(lease.end - lease.front for lease in shards.leases.values())
    returned = sum(epoch.returned.total for epoch in shards.epochs.values())
    return _sum(state.samples_total, shards.committed_total, leased, returned, shards.quarantined_total)


def epochs(state: State | None) -> list[dict[str, Any]]:
    """The same of each of the newest epochs that were begun, the newest last; none where what an epoch comes to is not
    known ahead, as its batches have changed.
    """
    if state is None:
        return []
    shards = state.shards
    total = shards.samples
    if isinstance(shards, Batches):
        if shards.layouts.changes or shards.layout.steps:
            return []
        total = shards.layout.epoch_length
    begun = sorted(shards.epochs)[-EPOCHS_SHOWN:]
    leased = dict.fromkeys(begun, 0)
    for lease in shards.leases.values():
        if lease.epoch in leased:
            leased[lease.epoch] += lease.end - lease.front
    found = []
    for number in begun:
        epoch = shards.epochs[number]
        counts = epoch.committed.total, leased[number], epoch.returned.total, epoch.quarantined.total
        found.append({"epoch": number, **_sum(total, *counts)})
    return found


def _sum(total: int, *counts: int) -> dict[str, int]:
    return dict(zip(("total", *PLACES), (total, *counts, total - sum(counts)), strict=True))
