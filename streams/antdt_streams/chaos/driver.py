"""Carries a schedule out upon a world: each fault at its time, undone at its time, everything noted.

A fault whose victim is not there (it is being restarted) waits for it; one that comes after the end of the run is
noted as not carried out. After the last one the run must end by itself within a bound.
"""

from __future__ import annotations

import re
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic

from antdt_schemas.deafness import strike
from antdt_schemas.errors import AntdtError, UsageError

from antdt_streams.chaos.full import FullDisk
from antdt_streams.chaos.schedule import STOPS, TAKES_OVER, Fault, Kind
from antdt_streams.chaos.world import World
from antdt_streams.host.child import send
from antdt_streams.host.files import write_whole

LOOK_S = 0.02
TRAINS = re.compile(r"[ws]\d+")  # a worker, or a server of parameters
LAUNCH_AFTER_S = 0.5


@dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds: until the first step is committed, for the run to end after the last fault, to wait for a victim."""

    begin_s: float = 60.0
    end_s: float = 90.0
    victim_s: float = 30.0


@dataclass(slots=True)
class Carried:
    """What became of a schedule. `failure` is empty if the run ended by itself."""

    done: list[Fault] = field(default_factory=list)
    failure: str = ""


class Driver:
    def __init__(
        self, world: World, faults: Sequence[Fault], stopping: threading.Event | None, bounds: Bounds | None = None
    ) -> None:
        self.world, self.bounds = world, bounds or Bounds()
        self.stopping = stopping or threading.Event()
        self.left = sorted(faults, key=lambda f: f.at_s)
        self.carried = Carried()
        self._undo: list[tuple[float, Callable[[], object]]] = []  # at what time, and how
        self._full: list[FullDisk] = []
        self._asked: list[Fault] = []
        self._began = 0.0

    def run(self) -> Carried:
        """From the first committed step to the end of the workers. Raises KeyboardInterrupt when told to stop."""
        try:
            self._await_first_step()
            self._began = monotonic()
            self._follow()
        except UsageError:
            raise
        except AntdtError as error:
            self.carried.failure = str(error)
        finally:
            for _, act in self._undo:
                act()
            self.world.wait_for_broker()
        return self.carried

    def _await_first_step(self) -> None:
        until = monotonic() + self.bounds.begin_s
        while not self.world.progress.commits:
            if self._pause() or monotonic() > until:
                words, waits = self.world.launches.last_words, self.world.waits()
                raise AntdtError(f"No step was committed within {self.bounds.begin_s:g} s: {words}\n{waits}")

    def _follow(self) -> None:
        bound = self._began + (self.left[-1].at_s if self.left else 0.0) + self.bounds.end_s
        while not self._pause():
            now = monotonic()
            for later in [one for one in self._undo if now >= one[0]]:
                self._undo.remove(later)
                later[1]()
                bound = max(bound, now + self.bounds.end_s)
            while self.left and now - self._began >= self.left[0].at_s:
                if self._strike(self.left[0]):
                    self.carried.done.append(self.left.pop(0))
                    bound = max(bound, now + self.bounds.end_s)
                elif now - self._began >= self.left[0].at_s + self.bounds.victim_s:
                    self.left.pop(0)
                else:
                    break
            bound = max(bound, self.world.mended_at_s + self.bounds.end_s)  # another launch has as long as the first
            if now > bound:
                last = f"the last fault: step {self.world.progress.step}.\n{self.world.waits()}"
                raise AntdtError(f"The run did not end within {self.bounds.end_s:g} s of {last}")

    def _pause(self) -> bool:
        """Look after the processes, wait a little. True once the workers have ended well."""
        for full in self._full:
            full.strike()
        ended = self.world.look()
        if not ended and self.stopping.wait(LOOK_S):
            raise KeyboardInterrupt
        return ended

    def _later(self, after_s: float, act: Callable[[], object]) -> None:
        self._undo.append((monotonic() + after_s, act))

    # -- the faults

    def _strike(self, fault: Fault) -> bool:
        """Carry one out; False while its victim is not there."""
        kind, world, target = fault.kind, self.world, fault.targets[0]
        if kind in (Kind.KILL_EVERYBODY, Kind.PREEMPT_EVERYBODY):
            return self._kill_everybody(fault)
        if kind in (Kind.BROKER_KILL, Kind.BROKER_STOP):
            return self._take_broker(fault)
        if kind is Kind.CLOCK_BROKER:
            return world.broker_ready and world.clocks[target].set(fault.shift_s)
        if kind is Kind.CLOCK_SERVICE:
            child = world.service(target)
            return child is not None and world.clocks[child.name].set(fault.shift_s)
        if kind is Kind.WIPE_SERVICE:
            return self._wipe(target)
        if kind in (Kind.DEAF_SERVICE, Kind.DEAF_WORKER):
            return self._deafen(target)
        if kind is Kind.SECOND_LAUNCH:
            return world.launches.launch_second(target == TAKES_OVER)
        if kind is Kind.FULL_DISK:
            return self._fill_disk(fault)
        if kind is Kind.POISON_SAMPLE:
            world.poison_sample(*fault.targets)
            return True
        if kind is Kind.TERM_LONG_STEP and not self._in_long_step(fault):
            return False
        return self._signal(fault)

    def _signal(self, fault: Fault) -> bool:
        kind, world = fault.kind, self.world
        find = world.launches.pid if TRAINS.fullmatch(fault.targets[0]) else world.service_pid
        pids = [pid for pid in map(find, fault.targets) if pid is not None]
        if len(pids) < len(fault.targets):
            return False
        verb = kind.partition("-")[0]
        number = {"term": signal.SIGTERM, "stop": signal.SIGSTOP}.get(verb, signal.SIGKILL)
        struck = [send(pid, number) for pid in pids]
        if kind in STOPS:
            self._later(fault.for_s, lambda: [send(pid, signal.SIGCONT) for pid in pids])
        elif kind in (Kind.TERM_WORKER, Kind.TERM_LONG_STEP):
            world.launches.leaving[fault.targets[0]] = pids[0]
        return all(struck)

    def _in_long_step(self, fault: Fault) -> bool:
        """The worker is told to begin one, and has."""
        file = self.world.launches.faults / "slow" / fault.targets[0]
        if fault not in self._asked:
            self._asked.append(fault)
            write_whole(file, f"{fault.for_s}".encode())
        return not file.exists()

    def _fill_disk(self, fault: Fault) -> bool:
        full = FullDisk(lambda: self.world.pids(fault.targets[0]))
        if not full.strike():
            return False
        self._full.append(full)

        def relieve() -> None:
            self._full.remove(full)
            full.relieve()

        self._later(fault.for_s, relieve)
        return True

    def _kill_everybody(self, fault: Fault) -> bool:
        world = self.world
        if world.launches.pid("w0") is None:
            return False
        world.kill_everybody(fault.for_s)
        self._later(LAUNCH_AFTER_S, world.launch)
        return True

    def _take_broker(self, fault: Fault) -> bool:
        world = self.world
        if not world.broker_ready:
            return False
        if fault.kind is Kind.BROKER_KILL:
            world.broker.kill()
        else:
            world.broker.stop()
        self._later(fault.for_s, world.start_broker)
        return True

    def _deafen(self, name: str) -> bool:
        """For good: a client that heard again later would have missed what came meanwhile."""
        child = self.world.service(name)
        if child is None and self.world.launches.pid(name) is None:
            return False
        strike(self.world.deaf_file(child.name if child is not None else name))
        return True

    def _wipe(self, name: str) -> bool:
        """Kill a service and remove its state before it is started again."""
        child = self.world.service(name)
        if child is None or child.process is None:
            return False
        child.process.kill()
        child.process.wait(10)
        shutil.rmtree(self.world.state_folder(child.name), ignore_errors=True)
        return True
