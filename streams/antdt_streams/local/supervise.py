"""Keeps the services of a job running on one machine: starts, watches, restarts within bounds, stops all."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from antdt_schemas.errors import ExitCode, how
from antdt_schemas.waiting import Waiting

from antdt_streams.host.child import Process, ServiceEnded, spawn
from antdt_streams.host.readiness import ENV_READY_FILE

POLL_S = 0.02
DOUBLINGS_MAX = 30
LAST_BYTES = 16 << 10
# What must never be repeated first; everything else may be started again here.
WORST_FIRST = (ExitCode.NEVER_RETRY, ExitCode.USAGE, ExitCode.BUG, ExitCode.RESTART_HERE)


# Starts a process with this command line and this environment; its output is appended to the file.
Start = Callable[[Sequence[str], Mapping[str, str], Path], Process]


def start_process(command: Sequence[str], environ: Mapping[str, str], output: Path) -> Process:
    with output.open("ab") as out:
        return spawn(command, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)


@dataclass(frozen=True)
class RestartPolicy:
    """A service has `restarts_max` restarts; for each `renew_s` that it answers, it gets one back. So whatever its
    lives and the pauses between them take, one that does not come to work is given up. The pause before a restart
    doubles up to `pause_max_s` while a service does not live for `steady_s`; one that did, and was killed, is back at
    once.

    A service that says "start me here again" (75: the broker is away, the disk is full) is not at fault: it is started
    again and again for `away_max_s`.
    """

    restarts_max: int = 20
    renew_s: float = 60.0
    pause_s: float = 0.05
    pause_max_s: float = 5.0
    steady_s: float = 2.0
    away_max_s: float = 3600.0


@dataclass(slots=True)
class Child:
    """One service process.

    spent: restarts that it has used up. in_a_row: since it last answered for a while. ended: its last exit status.
    told: people know that it does not answer.
    """

    name: str
    command: Sequence[str]
    log: Path
    process: Process | None = None
    started_at: float = 0.0
    due_at: float = 0.0
    ready_at: float | None = None
    restarts: int = 0
    in_a_row: int = 0
    spent: float = 0.0
    short_lives: int = 0
    away_since: float | None = None
    ended: int | None = None
    told: bool = False
    said_from: int = 0

    @property
    def ready_file(self) -> Path:
        return self.log.with_suffix(".ready")

    @property
    def last_words(self) -> str:
        """What it said last, in this life."""
        return last_words(self.log, since=self.said_from)


class Supervisor:
    """Services of one job. `poll` is called often; nothing happens in the background.

    say: takes a line for people whenever a service has ended, or answers again.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        policy: RestartPolicy | None = None,
        start: Start = start_process,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.environ, self.policy, self._start_process = dict(environ), policy or RestartPolicy(), start
        self.say = say
        self.children: dict[str, Child] = {}

    def add(self, name: str, command: Sequence[str], log: Path) -> Child:
        child = self.children[name] = Child(name, command, log)
        self._start(child)
        return child

    def _start(self, child: Child) -> None:
        child.log.parent.mkdir(parents=True, exist_ok=True)
        child.ready_file.unlink(missing_ok=True)
        child.said_from = child.log.stat().st_size if child.log.exists() else 0
        environ = {**self.environ, ENV_READY_FILE: str(child.ready_file.absolute())}
        child.process = self._start_process(child.command, environ, child.log)
        child.started_at, child.ready_at = monotonic(), None

    def poll(self) -> None:
        """Restart what ended.

        Raises:
            ServiceEnded: services ended for good, or too often; the message carries their last words.
        """
        now, given_up = monotonic(), list[Child]()
        for child in self.children.values():
            if child.process is None:
                if now >= child.due_at:
                    child.restarts += 1
                    self._start(child)
                continue
            code = child.process.poll()
            if code is None:
                self._look(child, now)
                continue
            child.ended = code
            answered_s = now - child.ready_at if child.ready_at is not None else 0.0
            if self._has_ended_for_good(child, code, now, answered_s):
                given_up.append(child)
            else:
                self._start_later(child, code, now, answered_s)
        if given_up:
            raise _ended(given_up)

    def _look(self, child: Child, now: float) -> None:
        if child.ready_at is None and child.ready_file.exists():
            child.ready_at = now
            if child.told:
                self.say(f"The {child.name} answers again.")
            child.told = False

    def _start_later(self, child: Child, code: int, now: float, answered_s: float) -> None:
        steady = now - child.started_at >= self.policy.steady_s
        child.short_lives = 0 if steady else min(child.short_lives + 1, DOUBLINGS_MAX)
        pause = min(self.policy.pause_max_s, self.policy.pause_s * 2**child.short_lives)
        child.process, child.due_at = None, now + pause
        child.in_a_row = 1 if answered_s > self.policy.renew_s else child.in_a_row + 1
        if child.in_a_row & (child.in_a_row - 1) == 0:  # the 1st, 2nd, 4th, 8th: a crash loop must not hide all else
            child.told = True
            nth = "2nd" if child.in_a_row == 2 else f"{child.in_a_row}th"
            times = f", for the {nth} time in a row" if child.in_a_row > 1 else ""
            lived = f"after {now - child.started_at:.1f} s"
            self.say(f"The {child.name} {how(code)} {lived}: it is started again{times}. It said: {child.last_words}")

    def _has_ended_for_good(self, child: Child, code: int, now: float, answered_s: float) -> bool:
        child.spent = max(0.0, child.spent - answered_s / self.policy.renew_s) + 1
        if code == ExitCode.RESTART_HERE:
            # What ran for a while in between was not away.
            if child.away_since is None or now - child.started_at > self.policy.renew_s:
                child.away_since = now
            child.spent -= 1
            return now - child.away_since > self.policy.away_max_s
        child.away_since = None
        if code in (ExitCode.DONE, ExitCode.USAGE, ExitCode.NEVER_RETRY):
            return True
        return child.spent > self.policy.restarts_max

    def await_ready(self, timeout_s: float, stopping: threading.Event) -> bool:
        """Watch until every service answers. False: told to stop.

        Raises:
            ServiceEnded: one ended for good, or does not answer within `timeout_s`; who, and its last words.
        """
        began, waiting = monotonic(), Waiting(first_s=10.0)
        while not stopping.wait(POLL_S):
            self.poll()
            late, now = [c for c in self.children.values() if c.ready_at is None], monotonic()
            if not late:
                return True
            if now - began > timeout_s:
                raise _ended(late, f"does not answer within {timeout_s:g} s")
            if waiting.is_due(now):
                names = ", ".join(f"the {c.name}" for c in late)
                self.say(f"Waiting for {names} since {now - began:.0f} s …")
        return False

    def run(self, stopping: threading.Event) -> None:
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
        for child in self.children.values():
            with suppress(OSError):
                child.ready_file.unlink(missing_ok=True)
        self.children.clear()


def _ended(children: Sequence[Child], what: str = "") -> ServiceEnded:
    said = [f"The {c.name} {what or how(c.ended or 0)}: {c.last_words}" for c in children]
    codes = [code for code in WORST_FIRST if any(c.ended == code for c in children)]
    return ServiceEnded(" ".join(said), codes[0] if codes else ExitCode.RESTART_HERE)


def last_words(log: Path, lines: int = 3, since: int = 0) -> str:
    """The last lines of a log behind the byte `since`, on one line."""
    try:
        with log.open("rb") as file:
            file.seek(max(since, log.stat().st_size - LAST_BYTES))
            text = file.read().decode("utf-8", errors="replace").strip().splitlines()
    except OSError:
        return f"see {log}"
    return f"{' | '.join(text[-lines:])} (see {log})" if text else f"it said nothing (see {log})"
