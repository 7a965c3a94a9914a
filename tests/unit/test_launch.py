"""The launcher's parts: who may run a worker, how many there are, what they say, and how often they come back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from antdt.connect.settings import Settings
from antdt.host import whereabouts
from antdt.launch.feed import Feed
from antdt.launch.launcher import Launcher, LaunchOptions
from antdt.launch.nodes import first_and_world, servers_here, workers_here
from antdt.launch.output import LINE_BYTES_MAX, Stream
from antdt.launch.places import Places
from antdt_schemas.connection import Connection
from antdt_schemas.errors import Occupied, UsageError
from antdt_schemas.launch_locks import Holder, ask_to_leave, is_free, this_process

from tests.helpers.job_processes import is_feed
from tests.helpers.loading import children, gone
from tests.helpers.warm import python

# -- locks


def launch(folder: Path, name: str) -> Places:
    return Places(folder, "job", Holder(name, f"{name}@host:1", "today", 2.0))


def test_one_launch_of_a_machine_runs_a_worker_and_the_next_is_told_who(tmp_path: Path) -> None:
    first, second = launch(tmp_path, "first"), launch(tmp_path, "second")
    assert first.take(["w0", "w1"]) == {}
    held = second.take(["w0", "w1", "w2"])
    assert list(held) == ["w0", "w1"]
    assert "w0 and w1 are run here by first@host:1 since today" in str(second.refusal(held))
    assert not is_free(tmp_path, "w0")
    place = first.place("w0")
    assert place and place != first.place("w1")
    first.release("w0")
    assert is_free(tmp_path, "w0")
    assert list(second.take(["w0", "w1"])) == ["w1"]
    assert second.place("w0") == place, "whoever holds it has outlived the one before"


def test_a_lock_is_free_when_its_process_is_gone(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal; from pathlib import Path; from antdt_schemas.launch_locks import *;"
        "print(take(Path(sys.argv[1]), 'w0', this_process('x', 1)).place, flush=True); os.kill(os.getpid(), 9)"
    )
    place = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    mine = launch(tmp_path, "next")
    assert mine.take(["w0"]) == {}
    assert mine.place("w0") == place.stdout.strip()


def test_a_launch_that_is_asked_to_leave_knows_by_whom_and_old_wishes_are_not_for_it(tmp_path: Path) -> None:
    first, second = launch(tmp_path, "first"), launch(tmp_path, "second")
    first.take(["w0"])
    assert first.wanted_by() == ""
    waited = []

    def moment() -> bool:
        first._looked_at_s = 0.0
        waited.append(first.wanted_by())
        if waited[-1]:
            first.release("w0")
        return True

    second.take_over(["w0"], second.take(["w0"]), moment, lambda text: None)
    assert waited == ["second@host:1"]
    ask_to_leave(tmp_path, "w0", Holder("first"), "somebody")
    assert second.wanted_by() == "", "it is not the one that was asked"


def test_a_launch_that_does_not_leave_is_not_awaited_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antdt.launch.places.MARGIN_S", -2.0)
    first, second = launch(tmp_path, "first"), launch(tmp_path, "second")
    first.take(["w0"])
    with pytest.raises(Occupied, match="did not leave within 0 s"):
        second.take_over(["w0"], second.take(["w0"]), lambda: True, lambda text: None)


def test_who_has_no_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("antdt_schemas.launch_locks.getpass.getuser", nobody)
    assert this_process("x", 1).launcher.startswith(f"uid{os.getuid()}@")


def test_a_worker_that_was_started_by_hand_is_a_launch_of_its_own() -> None:
    environ = {"ANTDT_JOB": "job", "ANTDT_KAFKA_BOOTSTRAP_SERVERS": "h:1"}
    one, other = Settings.of(environ), Settings.of(environ)
    assert one.launch and one.launch != other.launch
    assert (one.place, one.take_over, one.grace_s) == ("", False, 30.0)
    with pytest.raises(UsageError, match="ANTDT_GRACE_S"):
        Settings.of(environ | {"ANTDT_GRACE_S": "soon"})


# -- how many


def test_workers_are_counted_as_torchrun_does() -> None:
    assert workers_here("3") == 3
    assert workers_here("cpu") == os.cpu_count()
    assert workers_here("0") == 0, "a machine with servers only"
    for text in ("-1", "all", ""):
        with pytest.raises(UsageError, match="auto, gpu or cpu"):
            workers_here(text)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (("1", 0, -1, 0), (0, 4)),
        (("3", 2, -1, 0), (8, 12)),
        (("1:3", 2, -1, 0), (8, 12)),
        (("2:3", 0, -1, 0), (0, 8)),
        (("1", 0, 5, 0), (5, 4)),
        (("1", 0, 5, 9), (5, 9)),
    ],
)
def test_ranks_follow_from_the_number_of_this_machine(said: tuple[str, int, int, int], found: tuple[int, int]) -> None:
    assert first_and_world(4, *said) == found


@pytest.mark.parametrize(("nnodes", "rank"), [("0", 0), ("two", 0), ("2", 2), ("1:2", 2), ("1", -1)])
def test_a_machine_that_is_not_among_them_is_refused(nnodes: str, rank: int) -> None:
    with pytest.raises(UsageError, match="--n"):
        first_and_world(4, nnodes, rank, -1, 0)


def test_a_machine_without_workers_says_how_many_there_are_elsewhere() -> None:
    assert first_and_world(0, "1", 0, -1, 3) == (0, 3)
    with pytest.raises(UsageError, match="--world-size"):
        first_and_world(0, "1", 0, -1, 0)


@pytest.mark.parametrize(
    ("servers", "here", "first_server", "node_rank", "first_rank", "found"),
    [
        (2, -1, -1, 0, -1, [0, 1]),
        (2, -1, -1, 1, -1, []),
        (2, -1, -1, 0, 0, [0, 1]),
        (2, -1, -1, 0, 3, []),  # a machine that is not the first one, and says so by the rank of its first worker
        (4, 2, -1, 1, -1, [2, 3]),
        (3, 1, 2, 0, 4, [2]),
        (3, 0, -1, 0, 0, []),
    ],
)
def test_servers_are_on_the_first_machine_or_where_they_are_said_to_be(
    servers: int, here: int, first_server: int, node_rank: int, first_rank: int, found: list[int]
) -> None:
    assert list(servers_here(servers, here, first_server, node_rank, first_rank)) == found


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ((2, 1, 2), "s2 being the first: --servers 2 are s0 to s1"),
        ((2, 3, 0), "--servers 2 are s0 to s1"),
        ((0, 1, 0), "say with --servers how many"),
        ((2, -1, 1), "--servers-here"),
    ],
)
def test_a_server_that_the_job_does_not_have_is_refused(said: tuple[int, int, int], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        servers_here(*said, 0, 0)


def test_a_launch_of_nobody_is_refused() -> None:
    with pytest.raises(UsageError, match="--servers-here"):
        Launcher(LaunchOptions(workers=0, world_size=2, servers=2, script=("train.py",)), {})


# -- what they say


def test_lines_carry_the_name_of_their_worker_whatever_pieces_they_come_in() -> None:
    stream = Stream("w0", 1)
    out = b"".join(stream.lines(piece) for piece in (b"on", b"e\ntwo\r", b"\nthree\n\nfour", b""))
    assert out == b"[w0] one\n[w0] two\n[w0] three\n[w0] \n"
    assert stream.lines(b"", last=True) == b"[w0] four\n"
    assert stream.lines(b"", last=True) == b""


def test_a_progress_bar_stays_one() -> None:
    stream = Stream("w1", 2)
    out = b"".join(stream.lines(b"\r%d%%" % percent) for percent in (0, 50, 100)) + stream.lines(b"\ndone\n")
    assert out == b"[w1] 0%\r[w1] 50%\r[w1] 100%\n[w1] done\n"


def test_a_line_without_an_end_is_cut_not_kept() -> None:
    stream = Stream("w0", 1)
    out = stream.lines(b"x" * (LINE_BYTES_MAX + 1))
    assert out == b"[w0] " + b"x" * (LINE_BYTES_MAX + 1) + b"\n"


def test_nothing_is_lost_when_a_worker_ends(tmp_path: Path) -> None:
    code = (
        "import os, sys; from antdt.launch import process\n"
        "from antdt.host import whereabouts; from antdt.launch.output import Output\n"
        "out = Output(); streams = out.open('w0')\n"
        "life = process.Life(whereabouts.shared(), None, (streams[0].writing, streams[1].writing))\n"
        "one = process.start([sys.argv[1]], dict(os.environ), life); out.started(streams)\n"
        "while one.exitcode is None: out.pump(0.01)\n"
        "out.close(streams)"
    )
    script = tmp_path / "says.py"
    script.write_text("import sys\nfor n in range(20_000): print('line', n)\nsys.stderr.write('last words')\n")
    done = python(code, str(script), folder=tmp_path)
    assert done.stdout.splitlines() == [f"[w0] line {n}" for n in range(20_000)]
    assert done.stderr == "[w0] last words\n"


# -- how they end, and come back


def test_a_worker_leaves_also_when_it_is_told_where_python_swallows_exceptions(tmp_path: Path) -> None:
    script = tmp_path / "swallows.py"
    script.write_text(
        "import os, signal, time\n"
        "class Swallows:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(1)\n"
        "Swallows()\n"
        "for n in range(600):\n"
        "    time.sleep(0.1)\n"
    )
    code = (
        "import os, sys; from antdt.launch import process; from antdt.host import whereabouts\n"
        "one = process.start([sys.argv[1]], dict(os.environ), process.Life(whereabouts.shared()))\n"
        "one.join(20); print(one.exitcode); one.kill()\n"
    )
    done = python(code, str(script), folder=tmp_path)
    assert done.stdout.split() == ["143"], done.stderr
    assert "ignored" not in done.stderr


def test_a_worker_is_told_to_leave_from_its_first_moment_on(tmp_path: Path) -> None:
    """Whenever it comes, also between the fork and the script: it ends with 143, never of the signal itself."""
    script = tmp_path / "sleeps.py"
    script.write_text("import time\ntime.sleep(60)\n")
    code = (
        "import os, sys, signal, time; from antdt.launch import process; from antdt.host import whereabouts\n"
        "process.preload(os.environ); heard = []; signal.signal(signal.SIGTERM, lambda *_: heard.append(os.getpid()))\n"
        "for n in range(20):\n"
        "    one = process.start([sys.argv[1]], dict(os.environ), process.Life(whereabouts.shared()))\n"
        "    time.sleep(0.0005 * n); os.kill(one.pid, signal.SIGTERM); one.join(20); print(one.exitcode)\n"
        "assert not heard"
    )
    done = python(code, str(script), folder=tmp_path)
    assert done.stdout.split() == ["143"] * 20, done.stderr


def lived(script: Path) -> subprocess.CompletedProcess[str]:
    """A worker's life with this script; the last that is printed is its status."""
    code = (
        "import os, sys; from antdt.launch import process; from antdt.host import whereabouts\n"
        "one = process.start([sys.argv[1]], dict(os.environ), process.Life(whereabouts.shared()))\n"
        "one.join(20); print(one.exitcode)"
    )
    return python(code, str(script), folder=script.parent)


def test_who_is_told_to_leave_while_it_ends_does_all_that_belongs_to_its_end(tmp_path: Path) -> None:
    """And ends with its own status: another worker that failed for the same reason has the launcher end all of them."""
    script = tmp_path / "ends.py"
    script.write_text(
        "import atexit, os, signal, sys\n"
        "atexit.register(print, 'to its end')\n"
        "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGTERM), print('on')))\nsys.exit(2)\n"
    )
    done = lived(script)
    assert (done.stdout.split(), done.stderr) == (["on", "to", "its", "end", "2"], "")


def test_a_script_that_holds_up_its_end_was_told_all_the_same(tmp_path: Path) -> None:
    script = tmp_path / "goes_on.py"
    script.write_text(
        "import os, signal\nfrom antdt.host import told\nassert told.at_s() is None\n"
        "try:\n    os.kill(os.getpid(), signal.SIGTERM)\nexcept SystemExit as end:\n    print(end.code)\n"
        "assert told.at_s() is not None\n"
    )
    done = lived(script)
    assert done.stdout.split() == ["143", "0"], done.stderr


def test_last_words_and_numbers_outlive_each_other() -> None:
    page = whereabouts.shared()
    numbers = whereabouts.JOINED, whereabouts.TAKEN_PART, whereabouts.CHECKPOINT
    assert ([page.numbers[n] for n in numbers], page.said(whereabouts.WORDS)) == ([0, 0, 0], "")
    page.note(7, 5)
    page.say(whereabouts.WORDS, "two\nlines " + "ä" * 5_000)
    page.note(8, 5)
    assert [page.numbers[n] for n in numbers] == [1, 8, 5]
    assert page.said(whereabouts.WORDS).startswith("two lines ää")


# -- orders


def test_who_follows_the_decisions_begins_again_and_a_broker_that_is_away_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("antdt.launch.feed.REACH_S", 0.1)
    monkeypatch.setattr("antdt.launch.feed.PAUSE_S", 0.0)
    feed, pids = Feed(Connection("127.0.0.1:1"), "job", list), set[int]()
    try:
        while len(pids) < 3:
            assert feed.look() == []
            pids |= {pid for pid in children(os.getpid()) if is_feed(pid)}
            assert len(feed.handles) == (feed._child is not None)
    finally:
        feed.close()
    assert feed.handles == []
    assert gone(list(pids))
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1, "once"
    assert "orders to start a worker again are not heard for now: antdt.job.decisions/0 cannot be read" in said[0]
