"""The supervisor: who is started again, how often, and who is not."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from unittest import mock

import pytest
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_streams.host.child import Process
from antdt_streams.host.readiness import ENV_READY_FILE, Readiness
from antdt_streams.local import supervise
from antdt_streams.local.place import Place
from antdt_streams.local.services import PageBeside, free_port
from antdt_streams.local.supervise import RestartPolicy, ServiceEnded, Supervisor, last_words

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
    with pytest.raises(ServiceEnded, match=f"ledger ended with status {int(code)}: last words") as told:
        until(supervisor, lambda: False)
    assert child.restarts == 0
    # Nobody may start again what must not be: 42 and 2 stay what they are.
    assert told.value.exit_code == (ExitCode.RESTART_HERE if code == ExitCode.DONE else code)


def test_a_page_that_ends_for_good_ends_nothing_else(tmp_path: Path) -> None:
    said: list[str] = []

    def start(command: Sequence[str], environ: Mapping[str, str], output: Path) -> Process:
        assert command[3:5] == ["web", "job"] and command[-2] == "--port"
        return supervise.start_process(ends_with(ExitCode.USAGE), environ, output)

    place = Place(Connection("localhost:9"), True, tmp_path, None)
    page = PageBeside("job", place, place.connection, said.append, start)
    end = time.monotonic() + WITHIN_S
    while not said:
        page.poll()
        assert time.monotonic() < end
    page.poll()
    page.stop()
    assert len(said) == 1 and said[0].startswith("There is no page any more. The web ended with status 2: last words")


def test_a_port_that_is_taken_is_not_the_one() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        assert free_port(taken) not in (0, taken)
    assert free_port(taken) == taken


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        ((ExitCode.USAGE, ExitCode.NEVER_RETRY), ExitCode.NEVER_RETRY),
        ((ExitCode.DONE, ExitCode.USAGE), ExitCode.USAGE),
        ((ExitCode.DONE, ExitCode.DONE), ExitCode.RESTART_HERE),
    ],
)
def test_the_worst_of_several_exit_codes_is_passed_on(
    supervisor: Supervisor, tmp_path: Path, codes: tuple[int, int], worst: int
) -> None:
    children = [supervisor.add(f"s{i}", ends_with(code), tmp_path / f"{i}") for i, code in enumerate(codes)]
    for child in children:
        assert child.process is not None
        child.process.wait(WITHIN_S)
    with pytest.raises(ServiceEnded, match=r"s0 ended.*s1 ended") as told:
        supervisor.poll()
    assert told.value.exit_code == worst


def test_a_service_that_fails_again_and_again_is_given_up(supervisor: Supervisor, tmp_path: Path) -> None:
    child = supervisor.add("monitor", ends_with(ExitCode.BUG), tmp_path / "log")
    with pytest.raises(ServiceEnded, match="monitor ended with status 1") as told:
        until(supervisor, lambda: False)
    assert child.restarts == 3
    assert told.value.exit_code == ExitCode.BUG


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


class Fake:
    """A process that lives for `life_s` of a clock that the test moves, and answers after `ready_s` of it."""

    def __init__(self, clock: list[float], life_s: float, code: int, ready: Path | None) -> None:
        self.pid, self._clock, self._until, self._code = 1, clock, clock[0] + life_s, code
        if ready is not None:
            Readiness(ready).say("answers")

    def poll(self) -> int | None:
        return self._code if self._clock[0] >= self._until else None

    def wait(self, timeout: float | None = None) -> int:
        return self._code

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


def lives(tmp_path: Path, life_s: float, code: int, *, answers: bool, bound_s: float) -> tuple[float, list[str]]:
    """How long a service is supervised that lives like that, and what people are told; bound_s without an end."""
    clock, said = [0.0], list[str]()
    own = Supervisor(
        {},
        start=lambda _, environ, __: Fake(clock, life_s, code, Path(environ[ENV_READY_FILE]) if answers else None),
        say=said.append,
    )
    with mock.patch.object(supervise, "monotonic", side_effect=lambda: clock[0]):
        own.add("ledger", [], tmp_path / "log")
        while clock[0] < bound_s:
            try:
                own.poll()
            except ServiceEnded:
                break
            clock[0] += 0.25
    return clock[0], said


@pytest.mark.parametrize("life_s", [0.0, 0.5, 1.9, 2.1, 5.0, 20.0, 59.0, 61.0, 200.0])
def test_a_service_that_never_answers_is_given_up_whatever_its_lives_and_pauses_take(
    tmp_path: Path, life_s: float
) -> None:
    restarts = RestartPolicy().restarts_max
    longest_s = (restarts + 1) * (life_s + RestartPolicy().pause_max_s)
    lived_s, said = lives(tmp_path, life_s, ExitCode.BUG, answers=False, bound_s=longest_s + 1)
    assert lived_s <= longest_s, "it would be started again for ever"
    assert 3 <= len(said) <= 6, "people are told, and not of each single one"
    assert "ended with status 1" in said[0]


def test_a_service_that_answers_for_long_and_dies_now_and_then_goes_on(tmp_path: Path) -> None:
    bound_s = 100 * 70.0
    assert lives(tmp_path, 70.0, -9, answers=True, bound_s=bound_s)[0] >= bound_s


def test_a_service_that_answers_and_dies_at_once_is_given_up(tmp_path: Path) -> None:
    assert lives(tmp_path, 4.0, ExitCode.BUG, answers=True, bound_s=600.0)[0] < 300.0


def test_what_is_away_is_told_seldom_and_given_up_after_an_hour(tmp_path: Path) -> None:
    lived_s, said = lives(tmp_path, 10.0, ExitCode.RESTART_HERE, answers=False, bound_s=2 * 3600.0)
    assert 3600 < lived_s < 3700
    assert len(said) < 12


ANSWERS = f"import os, time; open(os.environ[{ENV_READY_FILE!r}], 'w').close(); time.sleep(60)"


def test_it_is_up_when_every_service_answers(tmp_path: Path) -> None:
    said: list[str] = []
    own = Supervisor(os.environ, RestartPolicy(pause_s=0.001), say=said.append)
    try:
        (tmp_path / "a.ready").touch()  # of a life that was killed
        one = own.add("a", [sys.executable, "-S", "-c", ANSWERS], tmp_path / "a.log")
        assert one.ready_at is None
        assert own.await_ready(WITHIN_S, threading.Event())
        assert one.ready_at is not None
        assert one.process is not None
        one.process.kill()
        until(own, lambda: one.restarts == 1 and one.ready_at is not None)
        assert "The a was ended by SIGKILL" in said[0]
        assert said[1] == "The a answers again."
        own.add("b", [sys.executable, "-S", "-c", "import time; print('no partition', flush=True); time.sleep(60)"],
                tmp_path / "b.log")  # fmt: skip
        with pytest.raises(ServiceEnded, match=r"^The b does not answer within 1 s: no partition") as late:
            own.await_ready(1.0, threading.Event())
        assert late.value.exit_code == ExitCode.RESTART_HERE
    finally:
        own.stop()
    assert not (tmp_path / "a.ready").exists()


def test_one_that_ends_before_it_answers_is_told_at_once_with_its_own_code(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    supervisor.add("ledger", ends_with(ExitCode.NEVER_RETRY), tmp_path / "log")
    with pytest.raises(ServiceEnded, match="ledger ended with status 42: last words") as told:
        supervisor.await_ready(WITHIN_S, threading.Event())
    assert told.value.exit_code == ExitCode.NEVER_RETRY


def test_last_words_are_those_of_this_life(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("an older life\n")
    assert last_words(log, since=log.stat().st_size).startswith("it said nothing")
    log.write_bytes(b"x" * (1 << 20) + b"\nend\n")
    assert last_words(log, lines=1).startswith("end (")
