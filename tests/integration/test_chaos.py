"""Real processes under seeded faults: a short, fixed set of what `antdt chaos` runs long."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from antdt_streams.chaos.clock import Clock
from antdt_streams.chaos.run import PROFILES, Chaos, available
from antdt_streams.chaos.schedule import schedule

from tests.helpers.warm import Warm, started
from tests.helpers.warm_server import SERVICES

# Twenty seconds each where the machine has nothing else to do.
pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

SEEDS = (0,)
SHIFT_S = 3600
# By every name that the modules of a service have for it.
SAYS_THE_TIME = """
import time
from antdt_streams.chaos.shifted import Shift, install
from faust.types import tuples
install(Shift(file))
print(time.time(), time.time_ns() / 1e9, tuples.time())
"""


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_ends_by_itself_and_is_exact(seed: int, tmp_path: Path) -> None:
    profile, _ = available(PROFILES["short"])
    verdict = Chaos(tmp_path, profile, start=started).run(seed)
    faults = "; ".join(map(str, schedule(seed, profile.schedule)))
    print(f"antdt chaos --seeds 1 --first-seed {seed}: {faults}")
    assert not verdict.wrong
    assert verdict.carried_out == verdict.faults
    assert verdict.audit["exactly_once"]


def test_a_process_that_has_imported_a_service_lives_by_its_clock(tmp_path: Path) -> None:
    clock, said = Clock(tmp_path / "clock"), tmp_path / "said"
    clock.set(SHIFT_S)
    began_s = time.time()
    process = Warm(exec, (SAYS_THE_TIME, {"file": clock.file}), os.environ, said, kind=SERVICES)
    assert process.wait(60) == 0, said.read_text()
    ended_s, told_s = time.time(), [float(told) for told in said.read_text().split()]
    assert began_s + SHIFT_S <= min(told_s) <= max(told_s) <= ended_s + SHIFT_S
