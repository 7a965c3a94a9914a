"""Seeded worlds of ledger, workers and services: every one must end, and the log must say what the model contains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

import pytest

from tests.helpers.logs import shelve
from tests.simulation.servers.world import ServedWorld
from tests.simulation.world import World

# In 180 somebody else writes into the topics; in 940133 fewer epochs are reached than when a sample was readmitted.
SEEDS, STEPPED, SERVED = (*range(120), 180), (*range(100), 940133), 70
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
    "refused_Resize", "left_out_later", "spared",
)  # fmt: skip


# Of worlds whose model lies on servers.
CAME_OF_SERVERS = (
    "joined_as_server", "joined_as_worker", "version", "version_of_many", "contribution_pulled",
    "contribution_included", "contribution_late", "push_of_a_lost_worker", "losses_obeyed", "fenced",
    "server_killed", "all_servers_killed", "zombie_server", "server_stalled", "server_hangs", "server_dies",
    "worker_hangs", "hangs_for_good", "worker_dies", "connection_breaks", "killed_while_it_pushes",
    "killed_after_file", "rejoined",
    "file_written", "file_failed", "file_removed", "rolled_back", "rolled_back_by_operator", "rollback_undid_steps",
    "ledger_killed", "ledger_superseded", "loss_accepted", "refused_Commit", "refused_Lease", "returned", "counted",
    "quarantined", "readmitted_after_the_end", "displaced", "taken_over", "worker_drained",
    "left_the_loop", "given_up_before_it_was_pushed", "others_idle", "occupied",
    "Dealt", "dealt_anew", "Moved", "refused_Move", "contribution_dropped", "dropped",
)  # fmt: skip


@pytest.mark.timeout(600)
def test_every_sample_is_in_the_model_exactly_once() -> None:
    """And the adversary really strikes: a simulation that injects nothing would pass, too."""
    counts = ran(SEEDS, World)
    assert not [what for what in STRUCK + CAME_OF_IT if not counts[what]]


@pytest.mark.timeout(600)
def test_every_step_is_what_it_must_be() -> None:
    """In worlds whose steps have a fixed size: members compute together, each time, what the log says of the step."""
    counts = ran(STEPPED, partial(World, steps=True), "steps ")
    assert not [what for what in CAME_OF_STEPS if not counts[what]]


@pytest.mark.timeout(600)
def test_every_part_of_the_model_has_every_sample_exactly_once() -> None:
    """In worlds whose model lies on servers, each of which holds a part."""
    counts = ran(range(SERVED), ServedWorld, "servers ")
    assert not [what for what in CAME_OF_SERVERS if not counts[what]]


def ran(seeds: Iterable[int], make: Callable[[int], World], kind: str = "") -> Counter[str]:
    """What happened in these worlds, all of which have ended well."""
    counts: Counter[str] = Counter()
    for seed in seeds:
        world = make(seed)
        try:
            world.run()
        except Exception as error:
            command = f"python -m tests.simulation {kind}{seed}"
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\nRepeat it by: {command}") from error
        counts.update(world.counts)
        if seed < SHELVED:
            shelve(world)
    print(*(f"{n:8} {what}" for what, n in sorted(counts.items())), sep="\n")
    return counts
