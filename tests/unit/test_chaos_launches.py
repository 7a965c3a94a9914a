"""What a launch of the chaos suite may end with, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from antdt_schemas.errors import ExitCode, Unavailable
from antdt_streams.chaos import launches
from antdt_streams.chaos.launches import ALL, Launches, Training


class Fake:
    """A launcher."""

    def __init__(self, pid: int, command: Sequence[str]) -> None:
        self.pid, self.command, self.code = pid, command, None

    pid: int
    code: int | None

    def poll(self) -> int | None:
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        assert self.code is not None
        return self.code

    def terminate(self) -> None:
        self.code = ExitCode.DRAINED

    def kill(self) -> None:
        self.code = -9


class Place:
    """Launches that start nothing: `free` are the workers that nobody runs."""

    def __init__(self, folder: Path) -> None:
        self.started: list[Fake] = []
        self.free: set[str] = set()
        self.launches = Launches("job", Training(workers=2), folder, folder, {}, self.start)
        self.launches.launch()

    def start(self, command: Sequence[str], environ: Mapping[str, str], output: Path) -> Fake:
        self.started.append(Fake(10_000_000 + len(self.started), command))
        return self.started[-1]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    made = Place(tmp_path)
    monkeypatch.setattr(launches, "is_free", lambda _, worker: worker in made.free)
    return made


def test_a_second_launch_must_be_refused_while_the_first_one_runs(place: Place) -> None:
    assert place.launches.launch_second(take_over=False)
    first, second = place.started
    assert not place.launches.launch_second(take_over=False), "one at a time"
    second.code = ExitCode.NEVER_RETRY
    assert place.launches.look() is None
    assert place.launches.launch_second(take_over=False)
    place.started[-1].code = ExitCode.DONE
    with pytest.raises(Unavailable, match="A second launch"):
        place.launches.look()
    first.code = ExitCode.DONE
    assert place.launches.look() is ExitCode.DONE, "the first one had ended: the job was its own"


def test_one_that_takes_over_makes_the_first_one_end(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place.launches.launch_second(take_over=True)
    first, second = place.started
    assert "--take-over" in second.command
    assert place.launches.look() is None
    first.code = ExitCode.NEVER_RETRY
    assert place.launches.look() is None
    second.code = ExitCode.INCOMPLETE
    assert place.launches.look() is ExitCode.INCOMPLETE

    place.launches.running = {ALL: first}
    first.code = second.code = None
    monkeypatch.setattr(launches, "DISPLACED_S", -1.0)
    assert place.launches.launch_second(take_over=True)
    with pytest.raises(Unavailable, match="did not leave its workers"):
        place.launches.look()


def test_nobody_else_is_launched_while_somebody_leaves_or_is_away(place: Place) -> None:
    place.free = {"w1"}
    assert not place.launches.launch_second(take_over=True)
    place.free = set()
    place.launches.leaving["w0"] = 1 << 30
    assert not place.launches.launch_second(take_over=True)
    place.free = {"w0"}
    assert place.launches.look() is None
    assert list(place.launches.running) == [ALL, "w0"]


def test_a_status_that_nobody_asked_for_is_told(place: Place) -> None:
    place.started[0].code = ExitCode.NEVER_RETRY
    with pytest.raises(Unavailable, match="ended with status 42"):
        place.launches.look()
