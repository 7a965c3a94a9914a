"""What a worker tells of the samples that made it fail, without a ledger, and what a launcher makes of its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import torch
from antdt.connect.last_word import LastWord
from antdt.data.loading import DataProcessDied, LoadingOptions, SampleFailed, loader_of
from antdt.data.sources import MapSource, position_key, source_of
from antdt.driving import blame
from antdt.driving.blame import Witness, narrowed
from antdt.driving.holds import Holds
from antdt.host import whereabouts
from antdt.host.whereabouts import At, Page, Standing
from antdt.launch import process, vouch
from antdt.worker.session import Phase, Session, Where
from antdt_schemas import records
from antdt_schemas.errors import ExitCode, Unavailable, UsageError
from antdt_schemas.ranges import Range

from tests.helpers.ledger import SPEC
from tests.helpers.loading import Numbers, gone

PART = [Range(1, 1, 0, 10, 4), Range(2, 1, 0, 40, 2)]


def spoiled(at: int, error: Callable[[], BaseException] = lambda: ValueError("bad")) -> Any:
    """A data set whose sample at this index raises."""

    def spoil(index: int) -> None:
        if index == at:
            raise error()

    return Numbers(spoil=spoil)


class Heard:
    """Takes what a Witness says, in place of a connection to a broker."""

    def __init__(self) -> None:
        self.session = Session("w0", "w0.0", SPEC, Where("h", 1))
        self.bodies: list[Any] = []
        self.stopped = False

    def say(self, body: records.RequestBody) -> None:
        self.bodies.append(body)

    @property
    def where(self) -> list[tuple[int, int, int]]:
        flat = [n for b in self.bodies for n in (b.epoch, b.start, b.length, *b.more)]
        return [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 3)]


@pytest.fixture(autouse=True)
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    """This process's own, new."""
    made = Page()
    monkeypatch.setattr(whereabouts, "_mine", made)
    return made


def witnessed(dataset: Any, part: list[Range] = PART, workers: int = 0, **options: Any) -> Heard:
    """Loads a batch, which fails, as the Agent does."""
    source, heard = source_of(dataset, shuffle=False, collate=options.pop("collate", list)), Heard()
    loader = loader_of(source, workers, 0, LoadingOptions(**options))
    try:
        with pytest.raises((ValueError, RuntimeError, SampleFailed, DataProcessDied)) as caught:
            loader.fetch(part)
        Witness(heard, source, Holds(Page())).saw(caught.value, part, loading=True)  # type: ignore[arg-type]
    finally:
        loader.close()
    return heard


class AtOnce(Numbers):
    """Gives many samples by one call."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_raises_is_named_exactly(workers: int) -> None:
    heard = witnessed(spoiled(12), workers=workers, chunk_size=4 * bool(workers))
    assert heard.where == [(0, 12, 1)]
    assert heard.bodies[0].key == "index 12"
    assert heard.bodies[0].reason.endswith("ValueError: bad")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_chunk_that_is_loaded_at_once_is_narrowed_by_loading_one_at_a_time(workers: int) -> None:
    heard = witnessed(AtOnce(spoil=spoiled(41).spoil), workers=workers)
    assert heard.where == [(0, 41, 1)]


def test_what_fails_only_together_is_named_together() -> None:
    def collate(samples: list[Any]) -> Any:
        if len(samples) > 1:
            raise ValueError("sizes differ")
        return samples

    assert witnessed(Numbers(), collate=collate).where == [(0, 10, 4), (0, 40, 2)]


def test_what_fails_to_be_collated_by_itself_is_named() -> None:
    def collate(samples: list[Any]) -> Any:
        if any(sample["number"] == 11 for sample in samples):
            raise ValueError("no image")
        return samples

    assert witnessed(Numbers(), collate=collate).where == [(0, 11, 1)]


def test_a_data_process_names_the_sample_that_it_died_of_not_the_first_that_it_was_to_load() -> None:
    def spoil(index: int) -> None:
        if index == 13:
            os._exit(9)

    heard = witnessed(Numbers(spoil=spoil), workers=1, chunk_size=4)
    assert heard.where == [(0, 13, 1)]
    assert "while it was loading sample 13 (position 13 of epoch 0)" in heard.bodies[0].reason


@pytest.mark.parametrize(
    "error", [Unavailable("away"), UsageError("no"), MemoryError(), torch.OutOfMemoryError(), OSError(28, "")]
)
def test_what_says_something_of_the_world_or_the_machine_speaks_against_no_sample(error: Exception, page: Page) -> None:
    heard = Heard()
    Witness(heard, source_of(Numbers()), Holds(Page())).saw(error, PART)  # type: ignore[arg-type]
    assert heard.bodies == []
    assert not page.numbers[whereabouts.BLAMED]


def test_an_exception_in_the_loops_body_is_heard_of_when_it_ends_the_process(
    page: Page, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    heard, holds = Heard(), Holds(page)
    holds.tries(8)
    witness = Witness(heard, source_of(Numbers(), shuffle=False), holds)  # type: ignore[arg-type]
    witness.listen()
    witness.left_with(PART)
    assert witness.waits
    error = RuntimeError("the loss is not finite")
    sys.excepthook(RuntimeError, error, None)
    assert heard.where == [(0, 10, 4), (0, 40, 2)]
    assert page.numbers[whereabouts.BLAMED]
    assert "the loss is not finite" in capsys.readouterr().err
    sys.excepthook(RuntimeError, error, None)
    assert len(heard.bodies) == 1, "once, and in one request"
    witness.left_with(PART)
    sys.excepthook(MemoryError, MemoryError(), None)
    assert (len(heard.bodies), holds.limit) == (1, 4), "its next life takes half"
    assert page.numbers[whereabouts.SHRUNK]
    witness.left_with(PART)
    heard.stopped = True
    sys.excepthook(RuntimeError, error, None)
    sys.excepthook(MemoryError, MemoryError(), None)
    assert (len(heard.bodies), holds.limit) == (1, 4), "it broke out of the loop, and something behind it has failed"


@pytest.mark.parametrize("ends", [False, True])
def test_an_exception_that_the_script_has_caught_is_warned_of(
    ends: bool, page: Page, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "excepthook", lambda *_: None)
    monkeypatch.setattr(blame, "UNHEARD_S", 30.0 if ends else 0.01)
    at_exit = list[tuple[Any, ...]]()
    monkeypatch.setattr(blame.atexit, "register", lambda *given: at_exit.append(given))
    monkeypatch.setattr(blame.atexit, "unregister", lambda act: at_exit.clear())
    witness = Witness(Heard(), source_of(Numbers()), Holds(page))  # type: ignore[arg-type]
    witness.listen()
    witness.left_with(PART)
    assert witness.over(lambda: "behind step 3: it is in a file.")
    if ends:
        sys.excepthook(RuntimeError, RuntimeError("no"), None)
    else:
        until = monotonic() + 10
        while not caplog.records and monotonic() < until:
            sleep(0.001)
    for act, *given in list(at_exit):
        act(*given)
    assert not at_exit, "nothing of it is kept"
    said = "w0 left the loop by an exception that has not ended the script, behind step 3: it is in a file."
    assert caplog.messages == ([] if ends else [said]), "once, or not at all"


class Folder(Numbers):
    """As torchvision's folders: pairs of path and class."""

    samples = tuple((f"cats/{n}.png", 0) for n in range(300))


def test_the_key_is_the_data_sets_own_name() -> None:
    source = source_of(Folder(), seed=3)
    assert isinstance(source, MapSource) and source.has_names
    index = int(source.indices(1, 7, 1)[0])
    assert position_key(source, 1, 7) == f"cats/{index}.png"
    assert not source_of(Numbers()).has_names
    assert narrowed(source, PART) is None


# -- the end of a process


def run_of(script: str, folder: Path) -> tuple[int, Page]:
    """Status of a script that is run as a launcher runs it, and its page."""
    file, shared = folder / "script.py", whereabouts.shared()
    file.write_text(script)
    child = process.start([str(file)], dict(os.environ), process.Life(shared, folder / "log"))
    child.join(30)
    assert child.exitcode is not None
    return child.exitcode, shared


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("", ExitCode.DONE),
        ("PAGE.numbers[w.INCOMPLETE] = 1", ExitCode.INCOMPLETE),
        ("PAGE.numbers[w.INCOMPLETE] = 1; sys.exit(7)", 7),
        ("raise ValueError('mine')", ExitCode.BUG),
        ("PAGE.numbers[w.BLAMED] = 1; raise ValueError('mine')", ExitCode.RESTART_HERE),
        ("PAGE.numbers[w.BLAMED] = 1", ExitCode.DONE),
        ("raise OSError(28, 'ValueError: mine')", ExitCode.RESTART_HERE),
        ("raise FileNotFoundError(2, 'ValueError: mine')", ExitCode.BUG),
    ],
)
def test_how_a_worker_ends(script: str, status: int, tmp_path: Path) -> None:
    head = (
        "import sys\nfrom antdt.host import whereabouts as w\n"
        "PAGE, sys.stderr = w.mine(), open(2, 'w', closefd=False)\n"
    )
    found, _ = run_of(head + script, tmp_path)
    assert found == status
    assert ("ValueError: mine" in (tmp_path / "log").read_text()) == ("raise" in script)


def test_a_launch_says_what_is_missing() -> None:
    pages = [Page(), Page()]
    pages[1].say(whereabouts.MISSING, "1 sample is in quarantine: position 3 of epoch 0")
    assert vouch.missing(pages, "j") == (
        "antdt launch: 1 sample is in quarantine: position 3 of epoch 0. The rest is done. "
        "Mend the data and run `antdt readmit j`, then launch again."
    )


def test_a_process_that_was_given_up_and_does_not_move_ends_itself_and_says_where_it_was(tmp_path: Path) -> None:
    def stuck() -> None:
        handle = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, 2)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        page = Page()
        page.enter(At.LOADING)
        session = Session("w0", "w0.0", SPEC, Where("h", 1))
        session.phase, session.reason = Phase.LOST, "holds up 1 others"
        word = LastWord(page, grace_s=0.05)
        while True:
            word.look(session)

    child = process.in_child(stuck)
    child.join(30)
    assert child.exitcode == ExitCode.RESTART_HERE
    said = (tmp_path / "log").read_text()
    assert "w0.0 was given up (holds up 1 others), and its training thread does not move: loading for 0 s." in said
    assert "in stuck" in said, "the stack of the thread that is stuck"


def test_who_moves_or_has_announced_how_long_it_takes_is_not_ended() -> None:
    page, session = Page(), Session("w0", "w0.0", SPEC, Where("h", 1))
    word = LastWord(page, grace_s=5.0)
    session.phase = Phase.LOST
    page.enter(At.USER)
    assert not word.is_stuck(session, 0.0)
    page.progress()
    assert not word.is_stuck(session, 6.0)
    assert word.is_stuck(session, 12.0)
    page.enter(At.USER, "evaluation", 60.0)
    assert not word.is_stuck(session, 13.0)
    assert not word.is_stuck(session, 30.0)
    session.phase = Phase.MEMBER
    assert not word.is_stuck(session, 60.0)


@pytest.mark.parametrize("phase", ["forming", "reducing", "idle", "ending"])
def test_a_process_that_lets_no_thread_speak_waits_for_nobody_whatever_it_says(phase: str) -> None:
    """Whatever comes, it cannot go on; how long it has really waited before is nobody's fault."""
    said = vouch.said_of(Standing(phase, 500.0, 0.0, "the gradients"), 3.0)
    assert said == Standing("user", 3.0, 0.0, phase)


def test_of_one_that_computes_its_launcher_says_what_it_is_at() -> None:
    assert vouch.said_of(Standing("computing", 500.0, 9.0, "x"), 3.0) == Standing("computing", 500.0, 9.0, "x")
    assert vouch.said_of(Standing("loading", 1.0), 3.0) == Standing("loading", 3.0)


def test_nobody_speaks_for_a_process_that_is_stopped_or_dead() -> None:
    import signal
    import time

    page = whereabouts.shared()
    child = process.in_child(lambda: time.sleep(60))
    watch = vouch.Watch({"w0": page}, lambda name, restarts: f"{name}.{restarts}", None)  # type: ignore[arg-type]
    assert child.pid is not None
    vouch.began(page, child.pid, 0)
    assert list(watch.silent()) == [], "it has not begun to speak"
    page.times[whereabouts.BEAT] = time.monotonic() - 60
    list(watch.silent())
    assert list(watch.silent()) == ["w0"]
    page.progress()
    assert list(watch.silent()) == [], "it moves"
    os.kill(child.pid, signal.SIGSTOP)
    while vouch.state_of(child.pid) != "T":
        pass
    assert list(watch.silent()) == []
    child.kill()
    assert gone([child.pid])
    assert list(watch.silent()) == []
