"""Seeded worlds of ledger, workers and services: every one must end, and the log must say what the model contains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

from tests.helpers.logs import shelve
from tests.simulation.world import World

SEEDS, STEPPED = (*range(120), 180), 100  # in 180 somebody else writes into the topics
SHELVED = 100  # whose logs other tests read
# Everything that the adversary can do, and what must have come of it, in each block.
STRUCK = (
    "reply_lost", "reply_repeated", "request_lost", "request_repeated", "old_request_sent", "telemetry_lost",
    "worker_killed", "several_killed", "everybody_killed", "worker_stalled", "worker_suspected", "zombie_worker",
    "zombie_group", "worker_drained", "newcomer", "killed_in_collective", "killed_after_partial_completion",
    "killed_after_commit_was_sent", "killed_after_file", "ledger_killed", "ledger_asleep", "standbys_race",
    "clock_jumps", "monitor_crashed", "controller_crashed", "readmit", "rollback", "foreign_file", "log_tail_lost",
    "requests_created_again", "requests_head_lost", "requests_tail_lost",
    "foreign_entry", "foreign_request", "killed_in_period",
    "second_launch", "second_launch_takes_over",
    "sample_raises", "step_raises", "sample_kills",
)  # fmt: skip
CAME_OF_IT = (
    "file_removed", "void_entry", "ledger_superseded", "standby_takes_office", "rejoined", "torn_adoption",
    "completed_though_broken", "failed_though_complete", "model_before_the_first_step_gone", "returned", "quarantined",
    "readmitted", "rolled_back", "rolled_back_by_operator", "rollback_undid_steps", "loss_accepted", "decision",
    "decision_repeated", "step_skipped", "refused_Commit", "refused_Checkpoint", "refused_Lease", "requests_moved",
    "refused_undecodable", "occupied", "taken_over", "displaced",
    "blamed_dead", "blamed_alive", "counted", "readmitted_after_the_end",
)  # fmt: skip

CAME_OF_STEPS = (
    "step_whole", "step_empty", "round_without_a_part", "excluded", "poison_excluded", "readmitted", "rolled_back",
    "rollback_undid_steps", "loss_accepted", "refused_Commit", "blamed_dead", "blamed_alive",
    "readmitted_after_the_end", "left_the_loop", "worker_drained", "decision",
    "resized", "resized_by_plan", "resized_by_launch", "resized_midway", "round_that_stops", "stopped", "audited",
    "refused_Resize",
)  # fmt: skip


@pytest.mark.timeout(600)
def test_every_sample_is_in_the_model_exactly_once() -> None:
    """And the adversary really strikes: a simulation that injects nothing would pass, too."""
    counts = ran(SEEDS, steps=False)
    assert not [what for what in STRUCK + CAME_OF_IT if not counts[what]]


@pytest.mark.timeout(600)
def test_every_step_is_what_it_must_be() -> None:
    """In worlds whose steps have a fixed size: members compute together, each time, what the log says of the step."""
    counts = ran(range(STEPPED), steps=True)
    assert not [what for what in CAME_OF_STEPS if not counts[what]]


def ran(seeds: Iterable[int], *, steps: bool) -> Counter[str]:
    """What happened in these worlds, all of which have ended well."""
    counts: Counter[str] = Counter()
    for seed in seeds:
        world = World(seed, steps=steps)
        try:
            world.run()
        except Exception as error:
            command = f"python -m tests.simulation {'steps ' * steps}{seed}"
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\nRepeat it by: {command}") from error
        counts.update(world.counts)
        if seed < SHELVED:
            shelve(world)
    print(*(f"{n:8} {what}" for what, n in sorted(counts.items())), sep="\n")
    return counts
