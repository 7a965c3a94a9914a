"""Time from kill -9 to going on, over real processes: `python -m bench.recovery --json FILE`.

What is timed ends with what a reader of the topics sees, by the monotonic clock of this process:
  one worker of four     the first step that the survivors made without it is committed (steps that were in the model
                         before are committed earlier, and do not count)
  ledger, supervised     a step is committed by the next leader: the supervisor's restart, imports, take-over
  ledger, hot standby    the same, with a second ledger that follows the log
  monitor, controller    its answer to a record that was written to its input after the kill
  everybody              broker apart, all processes are killed and started again: a step is committed. From the start
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from antdt_schemas import codec
from antdt_schemas.records import DeadLetter
from antdt_schemas.topics import DEAD_LETTERS, MEASUREMENTS, STEPS, Topic
from antdt_streams.broker import EmbeddedBroker
from antdt_streams.chaos.launches import Training
from antdt_streams.chaos.world import World
from antdt_streams.kafka.reader import TopicReader
from confluent_kafka import Producer

from bench.common import machine, spread, write

TARGETS_S = {"worker": 1.0, "ledger": 3.0, "ledger_standby": 2.0, "monitor": 5.0, "controller": 5.0, "everybody": 15.0}
WITHIN_S = 60.0
CALM_S = 3.0
WORKERS = 4
# Never at its end while it is measured; steps are short, so that the time of a step is not what is seen.
TRAINING = Training(workers=WORKERS, epochs=10_000, delay_ms=2.0, patience_ms=5000, standby=False)


class Recovery:
    """One world, kept alive in a thread of its own while processes are killed here."""

    def __init__(self, world: World, workers: int = WORKERS) -> None:
        self.world, self.workers = world, workers
        self.progress = world.progress
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._look_after, name="look-after", daemon=True)
        self._thread.start()

    def _look_after(self) -> None:
        while not self._halt.wait(0.02):
            self.world.look()

    def stop(self) -> None:
        """No more restarts."""
        self._halt.set()
        self._thread.join(5)

    def calm(self) -> None:
        """Everybody is there, and steps are committed."""
        p = self.progress
        self.until(lambda: p.members == self.workers)
        self.until(lambda: all(self.world.service(name) for name in self.world.services))
        sleep(CALM_S)  # not to wait for something: what is measured shall not begin amid a start
        seen = p.commits
        self.until(lambda: p.members == self.workers and p.commits > seen + 3)

    def until(self, true: Callable[[], bool]) -> float:
        """Wait for what the log shows; when that was."""
        until, changed = monotonic() + WITHIN_S, self.world.follow.changed
        with changed:
            while not changed.wait_for(true, 0.2):
                assert self._thread.is_alive(), "a process ended for good"
                assert monotonic() < until, f"not within {WITHIN_S:g} s"
        return monotonic()

    def kill(self, name: str, find: Callable[[str], int | None]) -> float:
        """kill -9; when that was."""
        pid = find(name)
        assert pid is not None, name
        at = monotonic()
        os.kill(pid, signal.SIGKILL)
        return at

    # -- what is measured

    def worker(self, number: int) -> float:
        """One worker of four; the one with rank 0 among them."""
        p, before = self.progress, self.progress.generation
        at = self.kill(f"w{number % WORKERS}", self.world.launches.pid)
        return self.until(lambda: p.generation > before and p.step > p.source_step) - at

    def ledger(self, _: int) -> float:
        """Whichever leads."""
        p, before = self.progress, self.progress.leaders
        at = self.kill("ledger", self.world.service_pid)
        self.until(lambda: p.leaders > before)
        seen = p.commits
        return self.until(lambda: p.commits > seen) - at

    def monitor(self, _: int) -> float:
        """Fed with steps."""
        return self._service("monitor", STEPS)

    def controller(self, _: int) -> float:
        """Fed with measurements."""
        return self._service("controller", MEASUREMENTS)

    def _service(self, name: str, topic: Topic) -> float:
        """Until its dead letter of a probe that was written to its input after the kill: that waits for no window."""
        connection, job = self.world.broker.connection, self.world.job
        producer = Producer(connection.producer(linger_ms=0))
        with TopicReader(connection, job, DEAD_LETTERS) as reader:
            reader.follow(0)
            at = self.kill(name, self.world.service_pid)
            producer.produce(topic.name(job), b"probe", partition=0)
            producer.flush(10)
            until = at + WITHIN_S
            while monotonic() < until:
                letters = [codec.decode(raw.value, DeadLetter) for raw in reader.poll(0.02)]
                if any(letter.service == name and letter.payload == b"probe" for letter in letters):
                    return monotonic() - at
        raise AssertionError(f"no dead letter within {WITHIN_S:g} s")

    def everybody(self, _: int) -> float:
        """All but the broker; timed from the moment at which they are started again."""
        world, p = self.world, self.progress
        self.stop()
        before = p.generation
        world.kill_everybody()
        at = monotonic()
        world.launch()
        self._halt.clear()
        self._thread = threading.Thread(target=self._look_after, name="look-after", daemon=True)
        self._thread.start()
        return self.until(lambda: p.generation > before and p.step > p.source_step) - at


@contextmanager
def running(folder: Path, standby: bool) -> Iterator[Recovery]:
    """A world that trains."""
    with EmbeddedBroker(folder / "kafka") as broker:
        world = World(broker, "recovery", folder, replace(TRAINING, standby=standby))
        try:
            world.open()
            recovery = Recovery(world)
            try:
                yield recovery
            finally:
                recovery.stop()
        finally:
            world.close()


def measure(kinds: list[str], times: int) -> dict[str, Any]:
    """Seconds of each kind."""
    out: dict[str, Any] = {"machine": machine(), "targets_s": TARGETS_S}
    for standby in (False, True):
        chosen = [k for k in kinds if (k == "ledger_standby") == standby]
        if not chosen:
            continue
        with tempfile.TemporaryDirectory(prefix="antdt-recovery-") as folder, running(Path(folder), standby) as one:
            for kind in chosen:
                run = getattr(one, kind.removesuffix("_standby"))
                seconds = []
                for number in range(times):
                    one.calm()
                    seconds.append(run(number))
                out[kind] = spread(seconds, 2)
                verdict = "met" if out[kind]["median"] < TARGETS_S[kind] else "MISSED"
                print(
                    f"{kind:<15} median {out[kind]['median']:.2f} s, {out[kind]['min']:.2f} to {out[kind]['max']:.2f} "
                    f"(under {TARGETS_S[kind]:g} s: {verdict})",
                    flush=True,
                )
    out["machine_after"] = machine()
    return out


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--only", choices=TARGETS_S, action="append")
    options = parser.parse_args()
    write(options.json, measure(options.only or list(TARGETS_S), options.times))


if __name__ == "__main__":
    main()
