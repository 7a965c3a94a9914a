"""Several instances of a service on folders of their own: one works, the others stand by, whatever happens to it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from antdt_schemas.errors import ExitCode
from antdt_schemas.records import Action
from antdt_schemas.topics import DEAD_LETTERS, DECISIONS, MEASUREMENTS, STEPS, Topic
from antdt_streams.controller.service import service as controller_service
from antdt_streams.monitor.service import service as monitor_service
from antdt_streams.runtime.runner import Identity, Runner
from antdt_streams.runtime.service import Batch, Service
from antdt_streams.storage.snapshots import newest

from tests.helpers.counting import COUNTING, steps
from tests.helpers.memory_service import MemoryDriver
from tests.helpers.running import PATIENCE_S, Running, mixed, until
from tests.helpers.service_process import AntdtProcess, Process
from tests.replay.control_loop import Loop

pytestmark = pytest.mark.kafka


def works(process: Process) -> bool:
    """Whether it has a partition, as far as it knows."""
    said = process.logged()
    return said.count("event=assigned") > said.count("event=released") + said.count("event=lost")


@contextmanager
def fed(running: Running) -> Iterator[None]:
    """The input grows all the time, so that whatever happens, happens in the middle of something."""
    enough, seeds = threading.Event(), count()

    def feed() -> None:
        while not enough.wait(0.02):
            running.write(mixed(60, next(seeds)))

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


@pytest.mark.dear
def test_whatever_happens_to_the_one_that_works_the_other_goes_on(running: Running, tmp_path: Path) -> None:
    """Killed, asked to stop, suspended and woken when the other has its work, and killed with its disk gone."""
    flags = ("--nameless", "--session-timeout-ms", "1500", "--snapshot-every", "700")
    with ExitStack() as stack, fed(running):

        def begin(folder: Path) -> Process:
            return stack.enter_context(running.service(folder, *flags))

        pair = {folder: begin(folder) for folder in (tmp_path / "a", tmp_path / "b")}
        for what in ("kill", "suspend", "stop", "wipe", "suspend", "kill"):
            until(lambda: any(works(process) for process in pair.values()), "somebody works")
            at = len(running.raws(MEASUREMENTS))
            until(lambda: len(running.raws(MEASUREMENTS)) > at, f"progress before: {what}")  # noqa: B023
            (folder,) = (folder for folder, process in pair.items() if works(process))
            (other,) = (process for process in pair.values() if process is not pair[folder])
            victim = pair[folder]
            {"stop": victim.stop, "suspend": victim.suspend}.get(what, victim.kill)()
            until(lambda: works(other), f"a take-over after: {what}")  # noqa: B023
            if what == "suspend":
                victim.wake()
                until(lambda: "event=lost" in victim.logged(), "it knows")  # noqa: B023
                continue
            if what == "wipe":
                shutil.rmtree(folder)
            pair[folder] = begin(folder)
    with running.service(tmp_path / "c", *flags) as last:
        until(running.caught_up, "the end of the input")
        last.stop()
    running.assert_exact(tmp_path / "c")
    repeats = len(running.raws(MEASUREMENTS)) - len(running.records(MEASUREMENTS))
    assert repeats > 0, "nothing was taken over in the middle of something"


@pytest.mark.dear
def test_a_named_instance_hands_over_when_it_stops_and_not_before(running: Running, tmp_path: Path) -> None:
    """Its session lasts 30 s: what is there before that was not waited for."""
    a, b, c = (tmp_path / name for name in "abc")
    with ExitStack() as stack:
        first, second = (stack.enter_context(running.service(folder)) for folder in (a, b))
        until(lambda: works(first) or works(second), "one works")
        if works(second):
            (a, first), (b, second) = (b, second), (a, first)
        until(lambda: "standing-by" in second.logged(), "the other stands by")
        running.write(mixed(500, 1))
        until(running.caught_up, "the first part")
        first.kill()
        running.write(mixed(500, 2))
        again = stack.enter_context(running.service(a))
        until(running.caught_up, "the second part")
        assert works(again)
        assert not works(second), "a restart moved the partition"

        assert again.stop() == ExitCode.DRAINED
        until(lambda: works(second), "the other takes over", 15.0)
        assert "next_offset=1000 from=snapshot" in second.logged()
        assert running.members() == 1, "who stops leaves"

        twin = stack.enter_context(running.service(c, "--instance", b.name))
        assert second.process.wait(PATIENCE_S) == ExitCode.NEVER_RETRY
        assert f"Another process runs as instance {b.name}" in second.logged()
        running.write(mixed(500, 3))
        until(running.caught_up, "the third part")
        assert twin.stop() == ExitCode.DRAINED
    running.assert_exact(c)


def test_a_wiped_folder_is_restored_from_a_snapshot_when_the_input_is_gone(running: Running, tmp_path: Path) -> None:
    folder = tmp_path / "counting"
    running.write(mixed(3000, 1))
    with running.service(folder, "--snapshot-every", "1000") as process:
        until(running.caught_up, "the end of the input")
        process.kill()
    shutil.rmtree(folder)
    assert len(running.raws(STEPS)) == 3000
    found = newest(running.connection, running.job, "counting")
    assert found is not None
    running.delete_before(found.next_offset)
    running.write([steps("w0", 1)] * 10)
    with running.service(folder) as process:
        until(running.caught_up, "the end of the input")
        assert f"next_offset={found.next_offset} from=snapshot" in process.logged()
        process.stop()
    running.assert_exact(folder)


class OfOnePartition(MemoryDriver):
    """An undisturbed instance of the counting service that has read one partition."""

    def __init__(self, running: Running, partition: int) -> None:
        super().__init__(COUNTING, running.job)
        runner = Runner(COUNTING, Identity(running.job, "memory"), self, self, partition)
        runner.take(Batch(partition, 0, running.raws(STEPS, partition)))

    def send(self, topic: str, value: bytes, partition: int) -> None:
        super().send(topic, value, 0)


def test_partitions_that_somebody_adds_are_shared_and_taken_over(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it runs that is harmless; a job is not begun on such a topic, since nobody writes into the others."""
    monkeypatch.setenv("ANTDT_KAFKA_TOPIC_METADATA_REFRESH_INTERVAL_MS", "250")
    flags = ("--nameless", "--session-timeout-ms", "1500")
    with ExitStack() as stack:
        pair = [stack.enter_context(running.service(tmp_path / name, *flags)) for name in "ab"]
        until(lambda: any(works(p) for p in pair) and any("standing-by" in p.logged() for p in pair), "one stands by")
        running.write(mixed(300, 1))
        running.add_partitions(2)
        until(lambda: all(works(p) for p in pair), "the one that stood by has the new one")
        running.write(mixed(300, 2), partition=1)
        running.write(mixed(300, 3))
        until(lambda: (running.committed(0), running.committed(1)) == (600, 300), "both partitions")
        victim = next(p for p in pair if "event=assigned partition=1" in p.logged())
        victim.kill()
        running.write(mixed(300, 4), partition=1)
        running.write(mixed(300, 5))
        until(lambda: (running.committed(0), running.committed(1)) == (900, 600), "all of both by the other one")
        for partition in (0, 1):
            expected = OfOnePartition(running, partition)
            for topic in (MEASUREMENTS, DEAD_LETTERS):
                assert running.records(topic, partition) == expected.outputs(topic)
        late = stack.enter_context(running.service(tmp_path / "c", *flags))
        assert late.process.wait(PATIENCE_S) == ExitCode.NEVER_RETRY
        assert f"partitions of {DEAD_LETTERS.name(running.job)} differs: expected 1, found 2" in late.logged()


# -- the real ones


def slow_in_turns(worker: int, now_s: float) -> float:
    """Another worker is slow every few seconds, so that there is something to decide again and again."""
    return 3.0 if worker == int(now_s / 6) % 4 else 1.0


def outputs(running: Running, service: Service, topic: Topic) -> list[Any]:
    """What an undisturbed service makes of its input as it lies there, repeats included."""
    driver = MemoryDriver(service, running.job)
    driver.topics.logs[service.input.name(running.job)] = running.raws(service.input)
    driver.run()
    return driver.outputs(topic)


def test_monitor_and_controller_decide_the_same_whoever_is_killed(running: Running, tmp_path: Path) -> None:
    records = Loop.of(slow_in_turns).run(600).records
    flags = ("--session-timeout-ms", "1500")
    with ExitStack() as stack:

        def begin(name: str, instance: str) -> Process:
            return stack.enter_context(AntdtProcess(running.connection, running.job, name, tmp_path / instance, *flags))

        places = [(name, instance) for name in ("monitor", "controller") for instance in "ab"]
        processes = {place: begin(*place) for place in places}
        for number, killed in enumerate(["monitor", "controller", "monitor", "controller"]):
            part = len(records) // 4
            before = len(running.raws(MEASUREMENTS))
            running.write(records[number * part : (number + 1) * part if number < 3 else None])
            until(lambda: len(running.raws(MEASUREMENTS)) > before, "measurements")  # noqa: B023
            until(lambda: any(works(processes[killed, i]) for i in "ab"), "somebody works")  # noqa: B023
            instance = next(i for i in "ab" if works(processes[killed, i]))
            processes[killed, instance].kill()
            processes[killed, instance] = begin(killed, instance)
        measured = outputs(running, monitor_service(), MEASUREMENTS)
        until(lambda: running.records(MEASUREMENTS) == measured, "all measurements")
        decided = outputs(running, controller_service(), DECISIONS)
        until(lambda: len(running.records(DECISIONS)) == len(decided), "all decisions")
        for process in processes.values():
            assert process.stop() == ExitCode.DRAINED
    assert running.records(DECISIONS) == decided
    plans = [decision.plan for decision in decided if decision.action is not Action.NONE]
    assert plans == list(range(1, len(plans) + 1))
    assert running.raws(DEAD_LETTERS) == []
    assert len(decided) >= 3
