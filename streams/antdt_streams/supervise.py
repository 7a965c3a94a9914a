"""Keeps the services of a job running on one machine: starts, watches, restarts within bounds, stops all."""

from __future__ import annotations

import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Protocol

from antdt_schemas.errors import ExitCode, Unavailable

from antdt_streams.broker.child import spawn

POLL_S = 0.02
DOUBLINGS_MAX = 30


class Process(Protocol):
    """What is used here of Popen."""

    pid: int

    def poll(self) -> int | None:
        """Its exit status, once it has ended."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, once it has ended; or TimeoutExpired."""

    def terminate(self) -> None:
        """SIGTERM."""

    def kill(self) -> None:
        """SIGKILL."""


# Starts a process with this command line and this environment; its output is appended to the file.
Start = Callable[[Sequence[str], Mapping[str, str], Path], Process]


def start_process(command: Sequence[str], environ: Mapping[str, str], output: Path) -> Process:
    """A Start: a new program."""
    with output.open("ab") as out:
        return spawn(command, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)


@dataclass(frozen=True)
class RestartPolicy:
    """At most `restarts_max` within `window_s`. The pause before one doubles up to `pause_max_s` while a service does
    not live for `steady_s`; one that did, and was killed, is back at once.

    A service that says "start me here again" (75: the broker is away, the disk is full) is not at fault: it is started
    again and again for `away_max_s`.
    """

    restarts_max: int = 20
    window_s: float = 60.0
    pause_s: float = 0.05
    pause_max_s: float = 5.0
    steady_s: float = 2.0
    away_max_s: float = 3600.0


@dataclass(slots=True)
class Child:
    """One service process."""

    name: str
    command: Sequence[str]
    log: Path
    process: Process | None = None
    starts: deque[float] = field(default_factory=deque)
    started_at: float = 0.0
    due_at: float = 0.0
    restarts: int = 0
    short_lives: int = 0
    away_since: float | None = None


class Supervisor:
    """Services of one job. `poll` is called often; nothing happens in the background."""

    def __init__(
        self, environ: Mapping[str, str], policy: RestartPolicy | None = None, start: Start = start_process
    ) -> None:
        self.environ, self.policy, self._start_process = dict(environ), policy or RestartPolicy(), start
        self.children: dict[str, Child] = {}

    def add(self, name: str, command: Sequence[str], log: Path) -> Child:
        """Start a service; its output goes to `log`."""
        child = self.children[name] = Child(name, command, log)
        self._start(child)
        return child

    def _start(self, child: Child) -> None:
        child.log.parent.mkdir(parents=True, exist_ok=True)
        child.process = self._start_process(child.command, self.environ, child.log)
        child.started_at = monotonic()
        child.starts.append(child.started_at)

    def poll(self) -> None:
        """Restart what ended.

        Raises:
            Unavailable: a service ended for good, or too often; the message carries its last words.
        """
        now = monotonic()
        for child in self.children.values():
            if child.process is None:
                if now >= child.due_at:
                    child.restarts += 1
                    self._start(child)
                continue
            code = child.process.poll()
            if code is None:
                continue
            while child.starts and now - child.starts[0] > self.policy.window_s:
                child.starts.popleft()
            if self._has_ended_for_good(child, code, now):
                raise Unavailable(f"The {child.name} ended with status {code}: {last_words(child.log)}")
            steady = now - child.started_at >= self.policy.steady_s
            child.short_lives = 0 if steady else min(child.short_lives + 1, DOUBLINGS_MAX)
            pause = min(self.policy.pause_max_s, self.policy.pause_s * 2**child.short_lives)
            child.process, child.due_at = None, now + pause

    def _has_ended_for_good(self, child: Child, code: int, now: float) -> bool:
        if code == ExitCode.RESTART_HERE:
            # What ran for a while in between was not away.
            if child.away_since is None or now - child.started_at > self.policy.window_s:
                child.away_since = now
            return now - child.away_since > self.policy.away_max_s
        child.away_since = None
        if code in (ExitCode.DONE, ExitCode.USAGE, ExitCode.NEVER_RETRY):
            return True
        return len(child.starts) > self.policy.restarts_max

    def run(self, stopping: threading.Event) -> None:
        """Watch until told to stop."""
        while not stopping.wait(POLL_S):
            self.poll()

    def stop(self, grace_s: float = 5.0) -> None:
        """SIGTERM to all, then SIGKILL after `grace_s`."""
        live = [c.process for c in self.children.values() if c.process is not None and c.process.poll() is None]
        for process in live:
            process.terminate()
        until = monotonic() + grace_s
        for process in live:
            try:
                process.wait(max(0.05, until - monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)
        self.children.clear()


def last_words(log: Path, lines: int = 3) -> str:
    """The last lines of a log, on one line."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return f"see {log}"
    return f"{' | '.join(text[-lines:])} (see {log})" if text else f"it said nothing (see {log})"
