"""The launchers of one run and their workers: started, found by name, replaced, met by a second launch.

Owns which exit statuses are right at what time. Must not know services or the broker.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from antdt_schemas.errors import ExitCode, Unavailable
from antdt_schemas.launch_locks import folder_of, is_free

from antdt_streams.host.child import Process, alive, outputs, send
from antdt_streams.local.supervise import Start, last_words

RESTARTS_MAX = 1000
# Between two launches: the grace of the one that leaves, and what that takes beside.
DISPLACED_S = 50.0
ALL = "all"
LAUNCH_AGAIN = (ExitCode.RESTART_HERE, ExitCode.RESTART_ELSEWHERE)
LEFT = (ExitCode.DRAINED, ExitCode.KILLED)
FINISHED = (ExitCode.DONE, ExitCode.INCOMPLETE)
DISPLACED = (ExitCode.NEVER_RETRY, *LAUNCH_AGAIN, *FINISHED)


@dataclass(frozen=True, slots=True)
class Training:
    """What is trained: enough samples to last as long as the faults, each with a delay in place of an accelerator.

    one_by_one: each sample is loaded by itself, so that single ones can be bad. max_attempts: of a shard. unit_size:
    samples of a unit that is bitwise the same whoever computes it; 0: none. topic: they are records of a topic.
    servers: of parameters; mode and backup say how. data: digits, or mnist:DIR.
    """

    workers: int = 4
    samples: int = 1437
    epochs: int = 6
    batch_size: int = 32
    delay_ms: float = 4.0
    checkpoint_every: int = 20
    patience_ms: int = 2000
    seed: int = 0
    standby: bool = True
    one_by_one: bool = False
    max_attempts: int = 1000
    unit_size: int = 0
    topic: bool = False
    servers: int = 0
    mode: str = "bsp"
    backup: int = 0
    data: str = "digits"


class Launches:
    """Of one job. `folder` holds what the workers write, `data` is the data folder of `antdt up`."""

    def __init__(
        self, job: str, training: Training, folder: Path, data: Path, environ: Mapping[str, str], start: Start
    ) -> None:
        self.job, self.training, self.environ, self._start = job, training, environ, start
        self.records, self.logs, self.result = folder / "records", folder / "logs", folder / "result.json"
        self.faults = folder / "faults"
        for name in ("deaf", "slow"):
            (self.faults / name).mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        self._locks = folder_of(data, job)
        self.running: dict[str, Process] = {}  # launchers, by the worker that they run, or ALL
        self.leaving: dict[str, int] = {}  # workers that were told to leave, and their process
        self._second: Process | None = None
        self._displaced: list[Process] = []
        self._displaced_until_s = 0.0

    def launch(self, which: str = ALL) -> None:
        """Start the launcher of all workers, the first time or after it was killed, or one for a worker that left."""
        self.running[which] = self._launcher(which)

    def _launcher(self, which: str = ALL, *options: str) -> Process:
        t = self.training
        ranks = ["-n", "1", "--first-rank", which[1:]] if which != ALL else ["-n", str(t.workers)]
        if t.servers:  # only the launch of all starts them
            ranks += ["--servers", str(t.servers), *(["--servers-here", "0"] if which != ALL else [])]
        command = [sys.executable, "-m", "antdt.launch", "--job", self.job, *ranks, "--world-size", str(t.workers)]
        command += ["--max-restarts", str(RESTARTS_MAX), "--logs", str(self.logs), *options, "--"]
        command += ["-m", "antdt.examples.recorded", "--record", str(self.records), "--seed", str(t.seed)]
        command += ["--data", t.data] if t.data != "digits" else []
        command += ["--samples", str(t.samples), "--epochs", str(t.epochs), "--batch-size", str(t.batch_size)]
        command += ["--delay-ms", str(t.delay_ms), "--checkpoint-every", str(t.checkpoint_every)]
        command += ["--result", str(self.result), "--faults", str(self.faults), "--max-attempts", str(t.max_attempts)]
        command += ["--topic", f"{self.job}.digits"] if t.topic else []
        command += ["--one-by-one"] if t.one_by_one else []
        command += ["--unit-size", str(t.unit_size)] if t.unit_size else []
        command += ["--mode", t.mode, "--backup", str(t.backup)] if t.servers else []
        return self._start(command, self.environ, self.logs / "launcher.log")

    def look(self) -> ExitCode | None:
        """Keep the workers running. Once all launches have ended well: DONE, or INCOMPLETE where one of them said so.

        Raises:
            Unavailable: a launch ended as it should not have.
        """
        if self._second is not None:
            self._look_at_second(self._second)
        self._look_at_displaced()
        for worker in [w for w, pid in self.leaving.items() if not alive(pid)]:
            self._replace(worker)
        codes = {which: launcher.poll() for which, launcher in self.running.items()}
        for which, code in codes.items():
            if code in LAUNCH_AGAIN:
                self._launch_again(which)
            elif code in LEFT:
                del self.running[which]  # each of its workers was told to leave, and is launched by itself
            elif code is not None and code not in FINISHED:
                raise Unavailable(f"The workers ended with status {code}: {self.last_words}")
        if not codes or self.leaving or self._second is not None or any(c not in FINISHED for c in codes.values()):
            return None
        return ExitCode.INCOMPLETE if ExitCode.INCOMPLETE in codes.values() else ExitCode.DONE

    @property
    def last_words(self) -> str:
        return last_words(self.logs / "launcher.log")

    # -- one after the other

    def _replace(self, worker: str) -> None:
        """One that was told to leave is gone: it is launched by itself once its launcher has let it go, as people do
        who read what that says. One that was killed on the way is started again by its launcher, and stays.
        """
        if self._second is None and is_free(self._locks, worker):
            del self.leaving[worker]
            self.launch(worker)
        elif self.pid(worker) is not None:
            del self.leaving[worker]

    def _launch_again(self, which: str) -> None:
        """As whatever starts launchers does: the broker was away. Those that were launched by themselves stay so."""
        if self._second is not None or self._displaced:
            return
        del self.running[which]
        others = {*self.running, *self.leaving}
        workers = [f"w{rank}" for rank in range(self.training.workers)] if which == ALL else [which]
        if which == ALL and others.isdisjoint(workers):
            self.launch()
            return
        for worker in workers:
            if worker not in others:
                self.launch(worker)

    # -- a second launch of the same workers

    def launch_second(self, take_over: bool) -> bool:
        """Beside those that run: it must end at once, or make them end. False while not all workers are run."""
        ranks = range(self.training.workers)
        held = not any(is_free(self._locks, f"w{rank}") for rank in ranks)
        if self._second is not None or self._displaced or self.leaving or not held:
            return False
        if take_over:
            self._displaced, self._displaced_until_s = list(self.running.values()), monotonic() + DISPLACED_S
            self.running = {ALL: self._launcher(ALL, "--take-over")}
        else:
            self._second = self._launcher()
        return True

    def _look_at_second(self, second: Process) -> None:
        code = second.poll()
        if code == ExitCode.NEVER_RETRY:
            self._second = None
        elif code is not None or self._workers_of(second):
            if all(launcher.poll() is not None for launcher in self.running.values()):
                # The first one ended before it came, so the job is its own now.
                self.running, self._second = {ALL: second}, None
            else:
                raise Unavailable(f"A second launch runs workers that the first one runs, or ended with {code}.")

    def _look_at_displaced(self) -> None:
        for launcher in list(self._displaced):
            code = launcher.poll()
            if code in DISPLACED:
                self._displaced.remove(launcher)
            elif code is not None:
                raise Unavailable(f"A launch whose workers another one took over ended with status {code}.")
            elif monotonic() > self._displaced_until_s:
                raise Unavailable(f"A launch did not leave its workers to another one in {DISPLACED_S:g} s.")

    # -- the processes

    def pid(self, worker: str) -> int | None:
        """The process of a worker, known by the log that it writes to."""
        log = f"/{worker}.log"
        found = (pid for launcher in self.running.values() for pid, out in outputs(launcher.pid) if out.endswith(log))
        return next(found, None)

    def pids(self) -> list[int]:
        return [pid for launcher in self.running.values() for pid in self._workers_of(launcher)]

    def _workers_of(self, launcher: Process) -> list[int]:
        names = tuple(f"/w{rank}.log" for rank in range(self.training.workers))
        names += tuple(f"/s{part}.log" for part in range(self.training.servers))
        return [pid for pid, out in outputs(launcher.pid) if out.endswith(names)]

    def _launchers(self) -> list[Process]:
        second = [self._second] if self._second is not None else []
        return [*self.running.values(), *self._displaced, *second]

    def kill(self) -> None:
        """All of them and their workers, by SIGKILL; `launch` starts them again."""
        launchers, workers = self._launchers(), self.pids()
        for pid in (*(launcher.pid for launcher in launchers), *workers):
            send(pid, signal.SIGKILL)
        for launcher in launchers:
            launcher.wait(10)
        self.running.clear()
        self.leaving.clear()
        self._displaced, self._second = [], None

    def tell(self) -> list[Process]:
        """SIGTERM to all of them, which they pass on to their workers."""
        launchers = self._launchers()
        for launcher in launchers:
            send(launcher.pid, signal.SIGTERM)
        return launchers
