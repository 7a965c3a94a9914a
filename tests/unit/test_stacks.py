"""The stacks of a process that hangs: taken from outside, whatever it is at, and of nobody whom that would end."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkProcess

import pytest
from antdt.host import stacks, whereabouts
from antdt.host.child import in_child
from antdt.host.whereabouts import THREADS_BYTES, Page, shared
from antdt.launch import stacks as launch
from antdt.launch.feed import Feed, wanted_of
from antdt.launch.slots import Restart
from antdt.launch.stacks import Subject, Wanted, taken
from antdt_schemas import codec, records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import Unavailable, UsageError
from antdt_streams.controller.core.state import ControllerState
from antdt_streams.ledger.core.members import Incarnation
from antdt_streams.monitor.core.state import MonitorState
from antdt_streams.policies.nd import NonDedicated
from antdt_streams.storage.rows import Position
from antdt_streams.views.stacks import absence, silence, waited_for

WANTED = Wanted("w1", "ann asks", 7)
FOR_EVER_S = 3600


def hang_with_the_gil() -> None:
    """No thread of Python runs any more."""
    ctypes.PyDLL(None).sleep(FOR_EVER_S)


def hang_in_a_lock() -> None:
    """As in a collective: the interpreter is free, and nothing comes."""
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


@contextmanager
def child(body: Callable[[], None], page: Page | None = None) -> Iterator[tuple[ForkProcess, int]]:
    """A process with another thread that listens as a worker does, once it does; and where it writes."""
    handle, ready = stacks.memory(), os.pipe()

    def run() -> None:
        stacks.listen(handle)
        thread = threading.Thread(target=time.sleep, args=(FOR_EVER_S,), name="its client", daemon=True)
        thread.start()
        if page is not None:
            page.numbers[whereabouts.MAIN] = threading.get_ident()
            page.numbers[whereabouts.CLIENT] = thread.native_id or 0
            page.enter(whereabouts.At.COMPUTING)
            page.times[whereabouts.SINCE] -= 2.0
            page.name_threads({one.ident or 0: one.name for one in threading.enumerate()})
        os.write(ready[1], b"x")
        body()

    process = in_child(run)
    try:
        assert os.read(ready[0], 1) == b"x"
        time.sleep(0.02)  # it is in its body
        yield process, handle
    finally:
        process.kill()
        process.join()
        for one in (handle, *ready):
            os.close(one)


@pytest.mark.parametrize("body", [hang_with_the_gil, hang_in_a_lock])
def test_a_process_that_hangs_tells_all_its_threads_by_name_with_the_main_one_first(body: Callable[[], None]) -> None:
    page = shared()
    with child(body, page) as (process, handle):
        subject = Subject("w1", "w1.0.run", process.pid or 0, page, handle)
        found = taken(subject, WANTED, "ann@host:1", 48 << 10)
        again = taken(subject, WANTED, "ann@host:1", 100)
    assert found.problem == ""
    main, other = found.text.split("\n\n")
    assert main.startswith("MainThread\n  File ") and f" in {body.__name__}\n" in main
    assert other.startswith("its client\n  File ")
    assert (found.asked, found.pid, found.launcher, found.cut_bytes) == (7, process.pid, "ann@host:1", 0)
    assert len(again.text.encode()) == 100 and again.cut_bytes > 100, "what has no room is counted"


def test_a_process_that_works_goes_on_as_if_nothing_had_been() -> None:
    marks = os.pipe()

    def work() -> None:
        """Sleeps, computes, and waits in a system call, all of which a signal might end."""
        for _ in range(30):
            began_s = time.monotonic()
            time.sleep(0.01)
            assert time.monotonic() - began_s >= 0.01
            sum(range(1000))
        os.write(marks[1], b"done")
        time.sleep(FOR_EVER_S)

    with child(work) as (process, handle):
        for _ in range(3):
            assert "in work" in stacks.dump(process.pid or 0, handle)
        assert os.read(marks[0], 4) == b"done"
    for one in marks:
        os.close(one)


def test_nobody_is_sent_a_signal_that_it_does_not_expect() -> None:
    def forgets() -> None:
        signal.signal(stacks.SIGNAL, signal.SIG_DFL)
        time.sleep(FOR_EVER_S)

    with child(lambda: time.sleep(FOR_EVER_S)) as (process, handle):
        pid = process.pid or 0
        assert stacks.refusal(pid, handle) == ""
        os.kill(pid, signal.SIGSTOP)
        while not (said := stacks.refusal(pid, handle)):
            time.sleep(0.01)
        assert "is stopped" in said and "kill -CONT" in said
        assert "descriptors" in stacks.refusal(pid, 999)
        assert "memfd_create" in stacks.refusal(pid, -1)
    assert "its process is gone" in stacks.refusal(pid, handle)
    with child(forgets) as (process, handle):
        pid = process.pid or 0
        while not (said := stacks.refusal(pid, handle)):
            time.sleep(0.01)
        assert f"has taken signal {stacks.SIGNAL:d} for itself" in said
        assert process.is_alive()
    assert "no process of it runs" in taken(Subject("w1", "w1.0.r", 0, shared(), -1), WANTED, "l", 100).problem


def test_threads_are_told_by_name_and_frames_of_the_launcher_are_left_out() -> None:
    dumped = (
        'Thread 0x00007f01 (most recent call first):\n  File "b.py", line 2 in young\n\n'
        'Thread 0x00007f02 [old] (most recent call first):\n  File "c.py", line 3 in old\n\n'
        'Current thread 0x00007f03 (most recent call first):\n  File "t.py", line 1 in train\n  File "<frozen runpy>", '
        'line 88 in _run_code\n  File "l.py", line 4 in main\n'
    )
    assert stacks.told(dumped, {0x7F03: "MainThread", 0x7F02: "old"}, 0x7F03, launch.OUTSIDE) == (
        'MainThread\n  File "t.py", line 1 in train\n\nold\n  File "c.py", line 3 in old\n\n'
        'a thread without a name (0x7f01)\n  File "b.py", line 2 in young'
    )
    assert stacks.told("", {}, 0) == ""


def test_names_of_threads_are_kept_on_the_page_and_never_beyond_it() -> None:
    page = shared()
    page.say(whereabouts.NAME, "n" * 600)
    page.name_threads({1: "MainThread", 0x7F00: "a\nb  c"})
    assert page.threads() == {1: "MainThread", 0x7F00: "a b c"}
    page.name_threads(dict.fromkeys(range(1000), "x" * 50))
    found = page.threads()
    assert 50 < len(found) < 1000 and sum(len(f"{i:x} {n}\n") for i, n in found.items()) <= THREADS_BYTES
    assert page.said(whereabouts.NAME) == "n" * 511
    page.clear()
    assert page.threads() == {}


# -- from the operator to the launcher


def test_the_controllers_answer_names_whose_stacks_are_wanted_and_changes_nothing() -> None:
    state = ControllerState(NonDedicated())
    before = state.digest()
    (answer,) = state.process(records.Steering("ann", stack="w1"), Position(0, 12), 1000)
    assert (answer.action, answer.target, answer.plan) == (records.Action.NONE, "w1", 0)
    assert answer.reason == "ann asks for the stacks of w1"
    assert wanted_of(codec.encode(answer)) == ("w1", "ann asks for the stacks of w1", 12)
    assert state.digest() == before
    (other,) = state.process(records.Steering("ann"), Position(0, 13), 1000)
    assert other.target == "" and wanted_of(codec.encode(other)) is None
    assert wanted_of(b"junk") is wanted_of(None) is None


def test_the_monitor_makes_nothing_of_stacks() -> None:
    state = MonitorState()
    before = state.digest()
    assert state.process(stack(), Position(0, 3), 1000) == []
    assert state.digest() == before


def stack(phase: str = "reducing") -> records.Stack:
    return records.Stack("w1", "w1.0.run", 7, "ann@host:1", 9, phase, 12.0, "", "MainThread", 0, "")


def test_whom_a_worker_waits_for_is_told_from_what_the_others_say() -> None:
    def says(phase: str, age_s: float = 0.5) -> dict[str, object]:
        return {"phase": phase, "phase_s": 11.0, "allowed_s": 0.0, "detail": "sample 3", "age_s": age_s}

    said = {
        "w0.0.run": says("computing"), "w1.0.run": says("reducing"), "w2.0.run": says("reducing"),
        "w3.0.run": says("loading", age_s=60.0),
    }  # fmt: skip
    assert list(waited_for(stack(), said)) == [
        "reducing for 12.0 s (sample 3)", "waits for w0, which is computing for 11.0 s (sample 3)"
    ]  # fmt: skip
    assert list(waited_for(stack("computing"), {})) == ["computing for 12.0 s"]
    assert list(waited_for(stack(""), {})) == ["not in its loop over the Agent"]


def incarnation(worker: str, launch_id: str, launcher: str, status: str = "member") -> Incarnation:
    return Incarnation(worker, "worker", "h", 1, "n", "", 0, status, launch=launch_id, launcher=launcher)


def test_who_does_not_answer_is_told_and_since_when() -> None:
    known = {
        "w0.0.run": incarnation("w0", "run", "ann@elsewhere:12"),
        "w1.0.run": incarnation("w1", "run", f"ann@{os.uname().nodename}:{os.getpid()}"),
        "w2.0.0a1b2c3d": incarnation("w2", "othr", "ann@elsewhere:77"),
        "w3.0.run": incarnation("w3", "run", "l", "lost"),
        "w4.0.run": incarnation("w4", "run", "ann@e:12"), "w4.1.9f": incarnation("w4", "run", "ann@e:12"),
    }  # fmt: skip
    heard = {"w0.0.run": {"phase": "reducing", "phase_s": 40.0, "detail": "", "age_s": 2.0}}
    said = str(silence("w0", known, heard, 15.0))
    assert "The launcher of w0, ann@elsewhere:12, has not answered for 15 s: it is of an older version, stopped" in said
    assert "w0 itself was heard 2 s ago: reducing for 40.0 s." in said
    assert "its process runs, and is of an older version, or cut off" in str(silence("w1", known, {}, 15.0))
    torchrun = str(silence("w2", known, {}, 15.0))
    assert "was not started by `antdt launch`, but by torchrun or by hand, as ann@elsewhere:77" in torchrun
    assert "w2 itself has not said lately what it is at" in torchrun and "`py-spy dump --pid 77`" in torchrun
    assert "The launcher of w4" in str(silence("w4", known, {}, 15.0)), "it came back under another name by itself"
    assert absence("j", "w0", known) is None
    gone, none = absence("j", "w3", known), absence("j", "w9", known)
    assert isinstance(gone, Unavailable) and "its last life, w3.0.run, was lost" in str(gone)
    assert isinstance(none, UsageError) and "Who has: w0, w1, w2, w3, w4" in str(none)


def test_py_spy_is_asked_only_of_who_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(launch, "native", lambda pid: asked.append(pid) or "\n\nwith the frames of C")
    page = shared()
    with child(hang_in_a_lock, page) as (process, handle):
        subject = Subject("w1", "w1.0.run", process.pid or 0, page, handle)
        assert "frames of C" not in taken(subject, WANTED, "l", 9999).text
        page.times[whereabouts.SINCE] -= 60.0
        assert taken(subject, WANTED, "l", 9999).text.endswith("with the frames of C")
    assert asked == [process.pid]


def test_without_py_spy_or_where_it_fails_the_stacks_are_those_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.shutil, "which", lambda name: None)
    assert launch.native(1) == ""
    monkeypatch.setattr(launch.shutil, "which", lambda name: "/bin/false")
    assert launch.native(1) == "\n\nwith the frames of C, by py-spy:\nit says nothing"


def test_a_launcher_answers_for_its_own_workers_one_question_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    go = os.pipe()

    def answer(_: launch.Stacks, subject: Subject, wanted: Wanted) -> None:
        os.write(writing, f"{subject.worker}@{wanted.asked} ".encode())
        os.read(go[0], 1)

    monkeypatch.setattr(launch.Stacks, "_answer", answer)
    mine = {"w1": Subject("w1", "w1.0.run", 1, shared(), -1)}
    launcher = launch.Stacks(Connection("h:1"), "j", "ann@host:1", mine.get, lambda: None)
    for asked in (7, 8, 9):
        launcher.ask(Wanted("w1", "ann asks", asked))
        launcher.ask(Wanted("w2", "ann asks", asked))
        launcher.look()
        if asked == 7:
            assert os.read(reading, 99) == b"w1@7 "
    (first,) = launcher._children.values()
    os.write(go[1], b"x")
    first.join()
    launcher.look()
    assert os.read(reading, 99) == b"w1@9 ", "the newest of those that waited"
    os.write(go[1], b"x")
    for child_ in launcher._children.values():
        child_.join()
    launcher.look()
    assert not launcher._children and not launcher._wanted
    for one in (reading, writing, *go):
        os.close(one)


def test_a_feed_tells_orders_and_who_wants_stacks_apart() -> None:
    feed = Feed(Connection("h:1"), "j", list)
    feed._handle, writing = os.pipe()
    os.set_blocking(feed._handle, False)
    os.write(writing, b'{"hears": 3}\n{"stack": ["w1", "ann asks", 12]}\n{"order": ["w1.0.r", "nd", "slow"]}\n')
    assert feed._read() == [Wanted("w1", "ann asks", 12), Restart("w1.0.r", "nd", "slow", True)]
    os.close(feed._handle)
    os.close(writing)


def test_of_what_py_spy_says_the_launchers_frames_are_left_out_and_long_names_cut() -> None:
    said = (
        f'Process 9: python\nPython v3.11\n\nThread 9 (idle): "MainThread"\n    {"c10d::Work" * 40} (libtorch.so)\n'
        "    train (train.py:18)\n    _run_code (<frozen runpy>:88)\n    main (launcher.py:3)\n"
        'Thread 10 (idle): "antdt-client"\n    run (threading.py:982)\n'
    )
    main, other = launch.inner(said).split("\n\n")
    assert main.splitlines()[0] == 'Thread 9 (idle): "MainThread"' and main.endswith("…\n    train (train.py:18)")
    assert other == 'Thread 10 (idle): "antdt-client"\n    run (threading.py:982)'
