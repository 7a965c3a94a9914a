"""Moments of the past: rebuilt from the nearest point that is known, of which a bounded number is kept."""

from __future__ import annotations

from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.stored import Identity
from antdt_streams.proof.walker import Walker
from antdt_streams.views.past import WAYPOINTS_MAX, Waypoints

from tests.helpers import zombie

IDENTITY = Identity("memory", "topic-1")
LOG, _ = zombie.log(haunted=True)


def at(offset: int) -> Fold:
    fold = Fold(cached=False)
    Walker(fold).read(LOG[: offset + 1])
    return fold


def digest(fold: Fold) -> bytes:
    assert fold.state is not None
    return rows.digest(fold.state)


def test_from_any_waypoint_the_log_comes_to_the_same() -> None:
    kept, last = Waypoints(IDENTITY), len(LOG) - 1
    kept.every = 1
    for offset in range(len(LOG)):
        kept.offer(at(offset))
    assert len(kept) > 2
    for offset in range(len(LOG)):
        fold = kept.nearest(offset)
        if fold is None:
            continue
        assert fold.position.next_offset <= offset + 1
        Walker(fold).read(LOG[fold.position.next_offset :])
        assert digest(fold) == digest(at(last))


def test_waypoints_are_thinned_out_and_none_is_kept_beside_another() -> None:
    kept, fold = Waypoints(IDENTITY), Fold(cached=False)
    Walker(fold).read(zombie.log(haunted=False)[0])
    for number in range(4 * WAYPOINTS_MAX):
        fold.position.next_offset = 10_000 * (number + 1)
        kept.offer(fold)
        kept.offer(fold)
        assert len(kept) <= WAYPOINTS_MAX
    assert len(kept) > WAYPOINTS_MAX // 4 and kept.every > 4096
    assert kept.nearest(5_000) is None
