"""Which workers of a launch are started, told to leave, killed and let go, and how the launch ends.

A machine: what has happened comes in, instructions go out. Owns every rule of restarting. Knows no clock and no
process: `launcher` carries the instructions out, and says what came of them.

Rules
  1. A worker that asks for it (75, 76), or dies of a signal, is started again as the next incarnation: restarts_max
     times without progress, which is a step beyond all before that it took part in and that is committed. An end from
     which it has learned to hold less is not counted; where samples are to blame, their attempts come on top.
  2. A worker that is done, was told to leave, or could not save its work on the way is let go; the others go on.
  3. Any other end, and one beyond rule 1, ends the launch: the others are told to leave.
  4. An order is for one incarnation. That is told to leave, and killed when its grace is over; once it is gone the next
     one is started, which counts for nothing in rule 1. With restarts_max 0, or `elsewhere`, nobody is started here for
     an order: the launch ends with 76, so that others start it elsewhere. One for any other incarnation does nothing.
  5. Servers work for workers: SERVERS_LINGER_S after the last worker of their launch has ended they are told to leave.
  6. A launch that is told to end, or that another one takes over from, starts nobody any more: whoever runs is told to
     leave for good, and killed when the grace is over, or when the launch is told once more.
"""

from __future__ import annotations

import math
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from antdt_schemas.errors import ExitCode, how

# Of the grace: whoever kills this process after it must find the workers gone, and everything said.
KILL_SHARE = 0.9
# How a worker ends that was told to, or is done: it is not started again, and the others go on.
DONE = (ExitCode.DONE, ExitCode.INCOMPLETE)
LEFT = (*DONE, ExitCode.DRAINED, ExitCode.KILLED, -signal.SIGTERM)
AGAIN = (ExitCode.RESTART_HERE, ExitCode.RESTART_ELSEWHERE)


class State(Enum):
    """Of a slot. DRAINING: its process was told to leave, and has not ended."""

    WAITING = "waiting"
    RUNNING = "running"
    DRAINING = "draining"
    DONE = "done"


LIVE = (State.RUNNING, State.DRAINING)
SERVERS_LINGER_S = 10.0  # a job that is done tells its servers itself, a moment later


@dataclass(frozen=True, slots=True)
class Rules:
    """restarts_max: of a worker, without progress in between (rule 1). grace_s: between SIGTERM and SIGKILL. take_over:
    whoever runs these workers now is asked to leave. elsewhere: whoever is ordered to start again does so elsewhere.
    """

    restarts_max: int = 3
    grace_s: float = 30.0
    take_over: bool = False
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Restart:
    """An order to start an incarnation's worker again. by, reason: who orders it, and why. news: it was not there
    already when somebody began to read.
    """

    incarnation: str
    by: str
    reason: str
    news: bool = True


@dataclass(frozen=True, slots=True)
class Last:
    """What is known of a worker that has ended, beside its status: see `whereabouts`.

    at: flat triples (epoch, start, length) of the samples that it had at hand, in this `step`. learned: what its end
    says of its memory, as half a sentence. words: why it ended, if it said so. checkpoint: step of the newest that is
    known here.
    """

    joined: bool = False
    taken_part: int = 0
    shrunk: bool = False
    blamed: bool = False
    attempts: int = 0
    at: tuple[int, ...] = ()
    learned: str = ""
    words: str = ""
    checkpoint: int = 0
    step: int = 0

    @property
    def suspects(self) -> tuple[int, ...]:
        return () if self.learned or self.shrunk else self.at


@dataclass(frozen=True, slots=True)
class Start:
    """Start the worker's life of this number. take_over: it may ask whoever runs it to leave."""

    slot: str
    restarts: int
    take_over: bool


@dataclass(frozen=True)
class OfSlot:
    slot: str


class Terminate(OfSlot):
    """Tell its process to leave."""


class Kill(OfSlot):
    """End its process."""


class Release(OfSlot):
    """It is not started again: somebody else may run it."""


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the ledger how an incarnation has ended, and which samples, in which step, may be the reason."""

    slot: str
    incarnation: str
    code: int
    at: tuple[int, ...]
    step: int = 0


@dataclass(frozen=True, slots=True)
class Say:
    """One sentence for whoever looks."""

    text: str


@dataclass(frozen=True, slots=True)
class End:
    """Nobody runs any more: the launch ends with this status."""

    status: int


Instruction = Start | Terminate | Kill | Release | Report | Say | End


@dataclass(slots=True)
class Slot:
    """One worker. order: why it drains, if it is to be started again. killed: why it was killed, if it was.
    renamed: the incarnation that its process is by now, where it was given up and has come back by itself.
    """

    name: str
    state: State = State.WAITING
    restarts: int = 0
    deaths: int = 0
    taken_part: int = 0
    joined: bool = False
    order: Restart | None = None
    kill_at_s: float = math.inf
    killed: str = ""
    code: int = 0
    renamed: str = ""

    @property
    def lives(self) -> bool:
        return self.state in LIVE


class Slots:
    """The workers of one launch, and its servers, which are slots like them; `servers` names these.

    Invariants: a slot has at most one process; an order is carried out once; whoever is let go is never started again;
    nobody lives when the launch ends.
    """

    def __init__(self, names: Sequence[str], run_id: str, rules: Rules, servers: Sequence[str] = ()) -> None:
        self.run_id, self.rules, self.servers = run_id, rules, frozenset(servers)
        self.slots = {name: Slot(name) for name in names}
        self.ending = self.ended = False
        self.ends = Counter[int]()  # how processes have ended, by exit status
        self._status, self._wanted_by = 0, ""
        self._told = self._told_before = 0
        self._idle_since_s = math.inf

    def life(self, name: str, restarts: int) -> str:
        """The incarnation that a worker's life of this number is."""
        return f"{name}.{restarts}.{self.run_id}"

    def incarnation(self, name: str) -> str:
        slot = self.slots[name]
        return slot.renamed or self.life(name, slot.restarts)

    def unkilled(self, name: str) -> bool:
        """Whether a SIGKILL that ends its process is not from here: it may say something of the machine's memory."""
        return not self.ending and not self.slots[name].killed

    # -- what happens

    def start(self, name: str) -> list[Instruction]:
        assert self.slots[name].state is State.WAITING and not self.ending, name
        return self._start(self.slots[name])

    def on_renamed(self, name: str, incarnation: str) -> None:
        """The ledger had given it up: its process is another incarnation now."""
        if self.slots[name].lives:
            self.slots[name].renamed = incarnation

    def on_order(self, order: Restart, now_s: float) -> list[Instruction]:
        """Somebody orders an incarnation's worker to be started again. A repeat does nothing."""
        slot = self.slots.get(order.incarnation.rsplit(".", 2)[0])
        if slot is None:  # a worker of another launch
            return []
        current = self.incarnation(slot.name)
        if order.incarnation == current and slot.state is State.RUNNING:
            slot.state, slot.order = State.DRAINING, order
            slot.kill_at_s = now_s + KILL_SHARE * self.rules.grace_s
            text = f"{current} is told to leave, to be started again, as {order.by} orders: {order.reason}"
            return [Say(text), Terminate(slot.name)]
        if not order.news:
            return []
        why = f"the worker is {current} now" if slot.lives else "the worker has ended"
        if order.incarnation == current and slot.lives:
            why = "it is leaving already"
        return [Say(f"{order.incarnation} is not started again, as {order.by} orders: {why}")]

    def on_exit(self, name: str, code: int, now_s: float, last: Last) -> list[Instruction]:
        """The process of a worker has ended. code: its exit status; negative for a signal."""
        slot = self.slots[name]
        assert slot.lives, f"{name} has no process: it is {slot.state.value}"
        slot.joined = slot.joined or last.joined
        self.ends[code] += 1
        out: list[Instruction] = []
        if code in (-signal.SIGTERM, -signal.SIGKILL) or not (self.ending or code in LEFT):
            asked = code == -signal.SIGKILL and not self.unkilled(name)
            told = ExitCode.KILLED if asked else code
            out.append(Report(name, self.incarnation(name), told, last.suspects, last.step))
        if self.ending or code in DONE or (code in LEFT and slot.order is None):
            return [*out, *self._let_go(slot, code, last), *self._end_if_all_have()]
        again = code in LEFT or code < 0 or code in AGAIN
        if slot.order is not None and again:
            return out + self._as_ordered(slot, code, last, now_s)
        if again and self._may_start_again(slot, last):
            slot.restarts += 1
            words = f"{how(code)}{last.learned and f' {last.learned}'}"
            return [*out, Say(f"{name} {words}: started again ({slot.restarts})"), *self._start(slot)]
        status = code if code > 0 else 128 - code
        return [*out, *self._let_go(slot, code, last), *self.end(status, now_s)]

    def on_told(self, times: int, now_s: float) -> list[Instruction]:
        """The launch itself is told to end, for so many times by now: once, with a grace; twice, at once."""
        self._told = times
        if not self.ending:
            return self.end(0, now_s)
        at_once = times > max(self._told_before, 1)
        return self._kill(list(self.slots.values()), "it was to end at once") if at_once else []

    def on_wanted(self, by: str, now_s: float) -> list[Instruction]:
        self._wanted_by = by
        return self.end(ExitCode.NEVER_RETRY, now_s)

    def on_tick(self, now_s: float) -> list[Instruction]:
        late = [slot for slot in self.slots.values() if now_s > slot.kill_at_s]
        return [
            *self._kill(late, f"it did not leave in time (--grace-s {self.rules.grace_s:g})"),
            *self._dismiss_servers(now_s),
        ]

    def end(self, status: int, now_s: float) -> list[Instruction]:
        """All are to leave for good. status: of the launch, unless it follows from how they do."""
        if self.ending:
            return []
        self.ending, self._status, self._told_before = True, status, self._told
        out: list[Instruction] = []
        for slot in self.slots.values():
            if slot.state is State.RUNNING:
                slot.state, slot.kill_at_s = State.DRAINING, now_s + KILL_SHARE * self.rules.grace_s
                out.append(Terminate(slot.name))
        return out + self._end_if_all_have()

    # -- what follows

    def _dismiss_servers(self, now_s: float) -> list[Instruction]:
        workers = [slot for slot in self.slots.values() if slot.name not in self.servers]
        if self.ending or not self.servers or not all(slot.state is State.DONE for slot in workers):
            return []
        self._idle_since_s = min(self._idle_since_s, now_s)
        if now_s - self._idle_since_s < SERVERS_LINGER_S:
            return []
        return [Say("no worker is left: the servers are told to leave"), *self.end(0, now_s)]

    def _start(self, slot: Slot) -> list[Instruction]:
        assert slot.state is not State.DONE and not self.ending, slot.name
        slot.state, slot.order, slot.kill_at_s, slot.killed = State.RUNNING, None, math.inf, ""
        slot.renamed = ""
        # Once: whoever was granted its place, and dies, comes back to that or not at all.
        return [Start(slot.name, slot.restarts, self.rules.take_over and not slot.joined)]

    def _as_ordered(self, slot: Slot, code: int, last: Last, now_s: float) -> list[Instruction]:
        """It has left, or died on its way: its next incarnation begins, here or elsewhere."""
        self._renew(slot, last)
        words = f"{how(code)}{last.learned and f' {last.learned}'}"
        if code == ExitCode.DRAINED:
            words += ": it has left"
        elif slot.killed or code in LEFT:
            words += f": {slot.killed or 'it could not save its work'}; {_redone(last)}"
        if self.rules.elsewhere or self.rules.restarts_max == 0:
            slot.state, slot.code = State.DONE, ExitCode.RESTART_ELSEWHERE
            option = "--restart-elsewhere" if self.rules.elsewhere else "--max-restarts 0"
            elsewhere = f"; it is to be started elsewhere, as ordered ({option})"
            said = Say(f"{slot.name} {words}{elsewhere}")
            return [Release(slot.name), said, *self.end(ExitCode.RESTART_ELSEWHERE, now_s)]
        slot.restarts += 1
        return [Say(f"{slot.name} {words}; started again as ordered ({slot.restarts})"), *self._start(slot)]

    def _may_start_again(self, slot: Slot, last: Last) -> bool:
        """While restarts are left; each one that came to something is given back."""
        self._renew(slot, last)
        if not last.shrunk:  # it does not begin as it did
            slot.deaths += 1
        # More often where samples are to blame, which are tried so often only.
        more = last.attempts if last.blamed or last.suspects else 0
        return slot.deaths <= self.rules.restarts_max + more

    def _renew(self, slot: Slot, last: Last) -> None:
        if last.taken_part > slot.taken_part:
            slot.taken_part, slot.deaths = last.taken_part, 0

    def _kill(self, slots: Sequence[Slot], why: str) -> list[Instruction]:
        found = [slot for slot in slots if slot.state is State.DRAINING and not slot.killed]
        for slot in found:
            slot.killed = why
        return [Kill(slot.name) for slot in found]

    def _let_go(self, slot: Slot, code: int, last: Last) -> list[Instruction]:
        slot.state, slot.code = State.DONE, code
        why = slot.killed if code == -signal.SIGKILL else ""
        words = last.words
        if code == ExitCode.DRAINED:
            words = "it was told to, and has left"
        elif code in (ExitCode.KILLED, -signal.SIGTERM) or why:
            words = f"{why or 'it was told to, and could not save its work'}; {_redone(last)}"
        said = [Say(f"{slot.name} {how(code)}{words and f': {words}'}")] if code != ExitCode.DONE else []
        return [Release(slot.name), *said]

    def _end_if_all_have(self) -> list[Instruction]:
        if self.ended or any(slot.lives for slot in self.slots.values()):
            return []
        self.ended = self.ending = True
        if self._wanted_by:
            text = f"antdt launch: {self._wanted_by} takes over: this launch has ended"
            return [Say(text), End(ExitCode.NEVER_RETRY)]
        return [End(self._status or self._verdict())]

    def _verdict(self) -> int:
        """Nobody failed: what has become of the work."""
        codes = {slot.code for slot in self.slots.values() if slot.state is State.DONE}
        if ExitCode.INCOMPLETE in codes and not self._told:
            return ExitCode.INCOMPLETE
        codes = {ExitCode.DONE if code == ExitCode.INCOMPLETE else code for code in codes}
        if ExitCode.DONE in codes and (not self._told or codes == {ExitCode.DONE}):
            return ExitCode.DONE
        return ExitCode.DRAINED if codes <= {ExitCode.DONE, ExitCode.DRAINED} else ExitCode.KILLED


def _redone(last: Last) -> str:
    return f"what is in no checkpoint is done again (the newest that is known here is of step {last.checkpoint})"
