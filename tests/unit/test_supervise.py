"""The supervisor: who is started again, how often, and who is not."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from antdt_schemas.errors import ExitCode, Unavailable
from antdt_streams.supervise import RestartPolicy, Supervisor

WITHIN_S = 20.0


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    own = Supervisor(os.environ, RestartPolicy(restarts_max=3, pause_s=0.001, pause_max_s=0.002, away_max_s=3600.0))
    yield own
    own.stop()


def until(supervisor: Supervisor, holds: Callable[[], bool]) -> None:
    """Poll until a condition holds, within a bound."""
    end = time.monotonic() + WITHIN_S
    while not holds():
        supervisor.poll()
        assert time.monotonic() < end


def ends_with(code: int) -> list[str]:
    return [sys.executable, "-S", "-c", f"import os; print('last words', flush=True); os._exit({code})"]


@pytest.mark.parametrize("code", [ExitCode.DONE, ExitCode.USAGE, ExitCode.NEVER_RETRY])
def test_what_must_not_be_retried_is_told_with_its_last_words(
    supervisor: Supervisor, tmp_path: Path, code: int
) -> None:
    child = supervisor.add("ledger", ends_with(code), tmp_path / "log")
    with pytest.raises(Unavailable, match=f"ledger ended with status {int(code)}: last words"):
        until(supervisor, lambda: False)
    assert child.restarts == 0


def test_a_service_that_fails_again_and_again_is_given_up(supervisor: Supervisor, tmp_path: Path) -> None:
    child = supervisor.add("monitor", ends_with(ExitCode.BUG), tmp_path / "log")
    with pytest.raises(Unavailable, match="monitor ended with status 1"):
        until(supervisor, lambda: False)
    assert child.restarts == 3


def test_a_service_whose_broker_or_disk_is_away_is_not_given_up(supervisor: Supervisor, tmp_path: Path) -> None:
    child = supervisor.add("ledger", ends_with(ExitCode.RESTART_HERE), tmp_path / "log")
    until(supervisor, lambda: child.restarts > 2 * supervisor.policy.restarts_max)


def test_a_killed_service_is_started_again_at_once(supervisor: Supervisor, tmp_path: Path) -> None:
    child = supervisor.add("ledger", [sys.executable, "-S", "-c", "import time; time.sleep(60)"], tmp_path / "log")
    first = child.process
    assert first is not None
    first.kill()
    until(supervisor, lambda: child.process not in (None, first))
    assert child.restarts == 1
