"""Seeded worlds of ledger and sessions: every one must end, and the log must say what the model contains."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulation.world import World

BLOCKS, SEEDS = 10, 40


@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_sample_is_in_the_model_exactly_once(block: int) -> None:
    for seed in range(block * SEEDS, (block + 1) * SEEDS):
        world = World(seed)
        try:
            world.run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_the_adversary_really_strikes() -> None:
    """A simulation that injects nothing would pass, too."""
    counts: Counter[str] = Counter()
    for seed in range(60):
        world = World(seed)
        world.run()
        counts.update(world.counts)
    for fault in (
        "reply_lost",
        "reply_repeated",
        "old_request_resent",
        "ledger_killed",
        "zombie_ledger_superseded",
        "worker_killed",
        "worker_suspected",
        "rejoined",
        "newcomer",
        "void_entry",
        "rolled_back",
        "quarantined",
    ):
        assert counts[fault] > 0, f"{fault}: {dict(counts)}"
