"""Whatever befalls the workers of a launch, in whatever order: its rules of restarting hold."""

from __future__ import annotations

import signal

from antdt.launch.slots import (
    AGAIN,
    DONE,
    LEFT,
    End,
    Instruction,
    Kill,
    Last,
    Release,
    Report,
    Restart,
    Rules,
    Say,
    Slots,
    Start,
    Terminate,
)
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

KILL = -signal.SIGKILL
# Those first that a launch lives through.
AGAIN_CODES = (75, 76, KILL, -signal.SIGSEGV)
CODES = (*AGAIN_CODES * 4, 0, 1, 3, 42, 137, 143, -signal.SIGTERM)
NAMES = ("w0", "w1", "w2")
LASTS = st.builds(
    Last,
    joined=st.booleans(),
    taken_part=st.integers(0, 3),
    shrunk=st.sampled_from([False, False, True]),
    blamed=st.sampled_from([False, False, True]),
    attempts=st.integers(0, 2),
    at=st.sampled_from([(), (), (0, 4, 4)]),
    learned=st.sampled_from(["", "", "for lack of memory"]),
)


class Launches(RuleBasedStateMachine):
    """One launch. What runs here is what the machine has started and nobody has ended."""

    @initialize(restarts_max=st.integers(0, 3), take_over=st.booleans(), late=st.booleans())
    def begin(self, restarts_max: int, take_over: bool, late: bool) -> None:
        self.rules = Rules(restarts_max, 10.0, take_over)
        self.slots = Slots(NAMES, "run", self.rules)
        self.now_s, self.told, self.told_at_once = 0.0, 0, False
        self.running: dict[str, str] = {}  # incarnation by worker
        self.lives: list[str] = []
        self.asked: dict[str, float] = {}  # incarnations that were asked to leave, and when
        self.killed: set[str] = set()
        self.obeyed: set[str] = set()
        self.let_go: set[str] = set()
        self.joined: set[str] = set()
        self.in_a_row = dict.fromkeys(NAMES, 0)  # restarts that count, without progress
        self.best = dict.fromkeys(NAMES, 0)
        self.end: int | None = None
        for name in NAMES[:1] if late else NAMES:
            self.do(self.slots.start(name))

    def do(self, instructions: list[Instruction]) -> None:
        for one in instructions:
            assert self.end is None, "the launch has ended"
            match one:
                case Start(name, restarts, take_over):
                    assert name not in self.running and name not in self.let_go, "two at a time, or none any more"
                    assert not self.told, "nobody is started by a launch that was told to end"
                    assert take_over == (self.rules.take_over and name not in self.joined)
                    life = self.slots.life(name, restarts)
                    assert life not in self.lives, "twice"
                    self.running[name] = life
                    self.lives.append(life)
                case Terminate(name):
                    assert self.running[name] not in self.asked, "once"
                    self.asked[self.running[name]] = self.now_s
                case Kill(name):
                    life = self.running[name]
                    late = self.now_s > self.asked[life] + 0.9 * self.rules.grace_s
                    assert life not in self.killed and (late or self.told > 1), "it has its grace"
                    self.killed.add(life)
                case Release(name):
                    assert name not in self.running and name not in self.let_go
                    self.let_go.add(name)
                case Report(name, incarnation):
                    assert incarnation == self.ended, "of whoever has just ended"
                case Say(text):
                    assert text and "\n" not in text
                case End(status):
                    assert not self.running
                    self.end = status

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 2), code=st.sampled_from(CODES), last=LASTS)
    def ends(self, which: int, code: int, last: Last) -> None:
        name = list(self.running)[which % len(self.running)]
        self.ended = life = self.running.pop(name)
        self.joined |= {name} if last.joined else set()
        ending, ordered = self.slots.ending, life in self.obeyed and not self.slots.ending
        if last.taken_part > self.best[name]:
            self.best[name], self.in_a_row[name] = last.taken_part, 0
        if not ordered and not last.shrunk and code not in LEFT:
            self.in_a_row[name] += 1
        self.do(self.slots.on_exit(name, code, self.now_s, last))
        again = name in self.running
        if ending or code in DONE or (code > 0 and code not in (*LEFT, *AGAIN)):
            assert not again
        elif ordered:
            assert again == (self.rules.restarts_max > 0), "an order is carried out"
            assert again or self.end == 76 or self.slots.ending
        elif code in LEFT:
            assert not again
        else:
            attempts = last.attempts if last.blamed or (last.at and not last.learned and not last.shrunk) else 0
            assert again == (self.in_a_row[name] <= self.rules.restarts_max + attempts)
        assert again or name in self.let_go
        if again:
            number = int(life.split(".")[1])
            assert self.running[name] == self.slots.life(name, number + 1), "the next one"

    @precondition(lambda self: self.end is None)
    @rule(life=st.one_of(st.integers(0, 5), st.sampled_from(["w0.0.other", "w9.0.run", "w1"])), news=st.booleans())
    def is_ordered(self, life: int | str, news: bool) -> None:
        incarnation = life if isinstance(life, str) else self.lives[-1 - life % len(self.lives)]
        before = dict(self.asked)
        self.do(self.slots.on_order(Restart(incarnation, "somebody", "reasons", news), self.now_s))
        new = {one for one in self.asked if one not in before}
        obeys = incarnation in self.running.values() and incarnation not in before and not self.slots.ending
        assert new == ({incarnation} if obeys else set()), "that one, once, and nobody else"
        self.obeyed |= new

    @rule(passes_s=st.floats(0.0, 20.0))
    def time_passes(self, passes_s: float) -> None:
        self.now_s += passes_s
        self.do(self.slots.on_tick(self.now_s))
        late = {one for one in self.running.values() if self.now_s > self.asked.get(one, 1e9) + 9.0}
        assert late <= self.killed, "nobody is waited for beyond the grace"

    @precondition(lambda self: self.end is None and len(self.lives) > 5)
    @rule(wanted=st.booleans())
    def is_to_end(self, wanted: bool) -> None:
        before = self.slots.ending
        if wanted and not before:
            self.do(self.slots.on_wanted("user@host:1", self.now_s))
        else:
            self.told += 1
            self.do(self.slots.on_told(self.told, self.now_s))
        assert before or set(self.running.values()) <= set(self.asked)

    @invariant()
    def ends_with_its_last_worker(self) -> None:
        if hasattr(self, "slots"):
            assert (self.end is None) == bool(self.running)


TestLaunches = Launches.TestCase
