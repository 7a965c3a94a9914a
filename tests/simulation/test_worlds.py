"""Seeded worlds of ledger, workers and services: every one must end, and the log must say what the model contains."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from tests.simulation.world import World

BLOCKS, SEEDS = 20, 50
# Everything that the adversary can do, and what must have come of it, in all worlds together.
STRUCK = (
    "reply_lost", "reply_repeated", "request_lost", "request_repeated", "old_request_sent", "telemetry_lost",
    "worker_killed", "several_killed", "everybody_killed", "worker_stalled", "worker_suspected", "zombie_worker",
    "zombie_group", "worker_drained", "newcomer", "killed_in_collective", "killed_after_partial_completion",
    "killed_after_commit_was_sent", "killed_after_file", "ledger_killed", "ledger_asleep", "standbys_race",
    "clock_jumps", "monitor_crashed", "controller_crashed", "readmit", "rollback", "log_tail_lost",
)  # fmt: skip
CAME_OF_IT = (
    "void_entry", "ledger_superseded", "outrun_by_another_standby", "rejoined", "torn_adoption",
    "completed_though_broken", "failed_though_complete", "model_before_the_first_step_gone", "returned", "quarantined",
    "readmitted", "rolled_back", "rolled_back_by_operator", "rollback_undid_steps", "loss_accepted", "decision",
    "decision_repeated", "refused_Commit", "refused_Checkpoint", "refused_Lease",
)  # fmt: skip


@cache
def block(number: int) -> Counter[str]:
    """Run the worlds of one block: what happened in them."""
    total: Counter[str] = Counter()
    for seed in range(number * SEEDS, (number + 1) * SEEDS):
        world = World(seed)
        try:
            world.run()
        except Exception as error:
            command = f"python -m tests.simulation {seed}"
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\nRepeat it by: {command}") from error
        total.update(world.counts)
    return total


@pytest.mark.parametrize("number", range(BLOCKS))
def test_every_sample_is_in_the_model_exactly_once(number: int) -> None:
    assert block(number)["step"] > 0


@pytest.mark.timeout(600)
def test_the_adversary_really_strikes() -> None:
    """A simulation that injects nothing would pass, too."""
    counts = sum((block(number) for number in range(BLOCKS)), Counter[str]())
    print(*(f"{n:8} {what}" for what, n in sorted(counts.items())), sep="\n")
    assert not [what for what in STRUCK + CAME_OF_IT if not counts[what]]
