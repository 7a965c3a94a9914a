"""Whatever workers and links do, all servers apply the same contributions in one order, each once; and each rule that
is taken out of the core is noticed.
"""

from __future__ import annotations

from collections import Counter

import pytest
from antdt.strategies.ps.core import staging
from antdt.strategies.ps.core.ordering import Ordering
from antdt.strategies.ps.core.staging import Staging

from tests.helpers.ps_world import World
from tests.mutations.mutate import Edit, fails, taken_out

WORLDS = 150


def test_all_servers_hold_the_same_and_nothing_is_lost() -> None:
    counts: Counter[str] = Counter()
    for seed in range(WORLDS):
        counts.update(World(seed).run().counts)
    assert all(counts.values()), f"what never happened: {counts}"


def worlds() -> None:
    for seed in range(1_000):
        World(seed).run()


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(
            Edit(Ordering.on_staged, "if len(at) < self.servers:", "if len(at) < 1:"), id="15-staged-by-all-servers"
        ),
        pytest.param(
            Edit(Ordering._on_ready, "and key.attempt == 0", "and key.attempt >= 0"), id="16-late-is-told-once"
        ),
        pytest.param(
            Edit(Ordering.on_lost, "self._ready.pop(incarnation, None)", "pass"),
            id="17-what-a-lost-one-pushed-is-dropped",
        ),
        pytest.param(
            Edit(Ordering.on_staged, "if key.incarnation in self._lost:", "if False:"), id="17-a-lost-one-is-refused"
        ),
        pytest.param(Edit(Staging.obey, "self._drop(incarnation)", "pass"), id="17-servers-drop-as-well"),
        pytest.param(
            Edit(Ordering._may_go_on, "worker.clock - slowest <= self.mode.staleness", "True"), id="bounded-staleness"
        ),
        pytest.param(
            Edit(Ordering.on_idle, "return self._close()", "return []"), id="nobody-waits-for-who-becomes-idle"
        ),
        pytest.param(Edit(Ordering.on_lost, "*self._close()]", "]"), id="nobody-waits-for-who-is-lost"),
        pytest.param(
            Edit(Ordering._include, "worker.included, worker.owed,", "worker.included, _unused,"),
            id="who-is-included-is-told",
        ),
    ],
)
def test_a_rule_that_is_taken_out_is_noticed(edit: Edit) -> None:
    with taken_out((edit,)):
        found = fails(worlds)
    print(found)
    assert found


def test_a_server_that_holds_other_samples_ends_the_run() -> None:
    edit = Edit(staging.Staging._include, "for item in items for number", "for item in items[1:] for number")
    with taken_out((edit,)):
        assert "Mismatch" in fails(worlds)
