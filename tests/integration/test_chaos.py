"""Real processes under seeded faults: a short, fixed set of what `antdt chaos` runs long."""

from __future__ import annotations

from pathlib import Path

import pytest
from antdt_streams.chaos.run import PROFILES, Chaos, available
from antdt_streams.chaos.schedule import schedule

from tests.helpers.warm import launched

# Twenty seconds each where the machine has nothing else to do.
pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

SEEDS = (0, 1, 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_ends_by_itself_and_is_exact(seed: int, tmp_path: Path) -> None:
    profile, _ = available(PROFILES["short"])
    verdict = Chaos(tmp_path, profile, launch=launched).run(seed)
    faults = "; ".join(map(str, schedule(seed, profile.schedule)))
    print(f"antdt chaos --seeds 1 --first-seed {seed}: {faults}")
    assert not verdict.wrong
    assert verdict.carried_out == verdict.faults
    assert verdict.audit["exactly_once"]
