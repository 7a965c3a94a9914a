"""Who holds up the others: alive, and not getting anywhere.

Owns what follows from what workers and servers say they are at. Rules
  1. nobody is blamed who waits; nobody is, where nobody waits: what all do alike, however long, is nobody's fault
  2. who has announced how long it takes has that long
  3. who holds up the others is named after the patience, and lost after `stuck_ms`
  4. where all wait for each other for as long, a message is lost: they meet again, and nobody is
  5. some waits have nobody who is waited for: who is in them is stuck, also where nobody waits for it. In a generation
     that it knows to be over; in front of one of servers, which nobody has to meet in; for samples, without a look
  6. who has run out of samples waits for those who have some that nobody else can have, and for the servers
All of it runs in the clock of the requests, and on what heartbeats said lately: other requests may have come since.
What nothing was heard of for a while goes on meanwhile, and nothing follows from it before it is heard again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from antdt_schemas import records

from antdt_streams.ledger.core.dealt import DealtShards
from antdt_streams.ledger.core.shards import Shards
from antdt_streams.ledger.core.state import State

STUCK_MS = 60_000
FRESH_MS = 3_000
HOLDS_UP = {
    "loading": "loading samples",
    "computing": "computing",
    "user": "in the script's own code",
    "saving": "writing a file",
    "serving": "serving",
}
WAITS, IDLE, FORMS, STAYS = "reducing", "idle", "forming", "staying"
WHAT = HOLDS_UP | {
    IDLE: "waiting for samples, and does not look for any",
    FORMS: "entering the generation",
    STAYS: "in a generation that it knows to be over",
    "ending": "leaving",
}
# Of a generation that is not granted yet; whoever is attached waits for it, too.
ASKS = ("waiting", "ready", "attached")
UNKNOWN = 0  # the generation of what a launcher says for a worker


@dataclass(frozen=True, slots=True)
class Standing:
    """What a worker said it is at, in which generation, and when it was heard."""

    phase: str
    phase_ms: int
    allowed_ms: int
    detail: str
    generation: int
    heard_ms: int


@dataclass(slots=True)
class Found:
    """lost: incarnations that are given up, and why. deadlock: why the generation is to be closed; empty: it is not."""

    lost: list[tuple[str, str]] = field(default_factory=list)
    deadlock: str = ""


class Spans:
    """For how long what is seen at each look has been so, within one generation. What nobody speaks of now is as it
    was, for `keep_ms`.
    """

    def __init__(self, keep_ms: int) -> None:
        self.keep_ms, self._generation, self._clock_ms = keep_ms, 0, 0
        self._seen: dict[tuple[str, str], tuple[int, int]] = {}  # of what and whom: since when, and when last

    def begin(self, generation: int, clock_ms: int) -> None:
        """A look."""
        if generation != self._generation:
            self._seen.clear()
        self._generation, self._clock_ms = generation, clock_ms

    def of(self, what: str, name: str = "") -> int:
        """It is so now."""
        since_ms, _ = self._seen.get((what, name), (self._clock_ms, 0))
        self._seen[what, name] = since_ms, self._clock_ms
        return self._clock_ms - since_ms

    def over(self, what: str) -> None:
        """It is not."""
        self._seen.pop((what, ""), None)

    def end(self, is_silent: Callable[[str], bool]) -> None:
        """The look is over: what was not seen in it has ended, unless nothing is heard of whom it concerns."""
        oldest_ms = self._clock_ms - self.keep_ms
        for (what, name), (_, last_ms) in list(self._seen.items()):
            if last_ms < oldest_ms or (last_ms < self._clock_ms and name and not is_silent(name)):
                del self._seen[what, name]


class HoldUps:
    """What is known of where everybody is. Not part of the ledger's state: only what comes of it is in the log."""

    def __init__(self, patience_ms: int, stuck_ms: int = STUCK_MS) -> None:
        self.patience_ms, self.stuck_ms = patience_ms, stuck_ms
        self._said: dict[str, Standing] = {}
        # For how long: who asks for the next generation, who enters one of servers, and who has run out of samples.
        self._asking_ms: dict[str, int] = {}
        self._forming_ms: dict[str, int] = {}
        self._idle_ms: dict[str, int] = {}
        self._spans = Spans(patience_ms)
        self.named: dict[str, str] = {}  # who holds up others now, and what is said of it
        self._news: list[str] = []

    def news(self) -> list[str]:
        """What is to be said aloud since the last call."""
        out, self._news = self._news, []
        return out

    def hear(self, incarnation: str, body: records.Heartbeat, clock_ms: int) -> None:
        """A heartbeat of this incarnation."""
        said = body.phase, int(body.phase_s * 1000), int(body.allowed_s * 1000), body.detail, body.generation
        self._said[incarnation] = Standing(*said, clock_ms)

    def look(self, state: State, clock_ms: int) -> Found:
        """What follows now."""
        live = {name: who.status for name, who in state.members.incarnations.items() if not who.gone}
        self._said = {n: s for n, s in self._said.items() if n in live and clock_ms - s.heard_ms <= FRESH_MS}
        self._spans.begin(state.members.generation, clock_ms)
        asking = [] if state.members.open else [n for n, status in live.items() if status in ASKS]
        self._asking_ms = {name: self._spans.of("asks", name) for name in asking}
        self._forming_ms = {name: self._spans.of("forms", name) for name in self._forming(state)}
        self._idle_ms = {name: self._spans.of("idles", name) for name in self._idle(state)}
        waiting = self._waiting(state)
        found, holding = Found(), dict(self._holding(state, live, waiting))
        for member, waited_ms in holding.items():
            self._judge(found, member, waited_ms, len(waiting))
        waited_ms = self._waited_ms(state, waiting)
        self._spans.end(lambda name: name in live and name not in self._said)
        if waited_ms >= self.stuck_ms and not found.lost:
            found.deadlock = f"all members wait for each other since {waited_ms // 1000} s"
            self._news.append(f"generation {state.members.generation} is closed: {found.deadlock}")
        self.named = {n: said for n, said in self.named.items() if n in holding}
        return found

    # -- who waits

    def _at(self, state: State, phase: str, names: Iterable[str]) -> Iterator[tuple[str, Standing]]:
        """Who of these says that it is at this in the open generation."""
        for name in names if state.members.open else ():
            said = self._said.get(name)
            if said is not None and said.phase == phase and said.generation in (UNKNOWN, state.members.generation):
                yield name, said

    def _idle(self, state: State) -> Iterator[str]:
        """Which attached workers have run out of samples where no others will come. Each looks for them again and
        again, and says so anew: one that is idle for long does not look.
        """
        idle = self._at(state, IDLE, state.members.attached)
        if isinstance(state.shards, Shards) and state.shards.space.closed:
            yield from (name for name, said in idle if said.phase_ms < self.patience_ms)

    def _waiting(self, state: State) -> dict[str, int]:
        """Who waits, and for how long: for the next generation; in an open one its members, or its workers where
        servers are the members.
        """
        members = state.members
        reducing = {name: said.phase_ms for name, said in self._at(state, WAITS, members.attached or members.group)}
        return reducing | self._idle_ms | self._asking_ms

    def _waited_ms(self, state: State, waiting: Mapping[str, int]) -> int:
        """For how long all of them have waited for each other; 0: they do not. Where there are servers: all workers
        that are out of older generations, some of them for servers that answer at once; whoever held up the others may
        be gone since.
        """
        members, attached = state.members, state.members.attached
        there = {name for name in attached if not self._is_behind(state, name)} if attached else set(members.group)
        reducing = [ms for name, ms in waiting.items() if name not in self._idle_ms]
        waits = members.open and len(members.group) + len(attached) > 1 and bool(reducing) and waiting.keys() == there
        waits = waits and not (attached and self._server_is_busy(state))
        if not waits:
            if there <= self._said.keys():
                self._spans.over("all wait")
            return 0
        shortest_ms, all_ms = min(reducing), self._spans.of("all wait")
        return min(shortest_ms, all_ms) if attached else shortest_ms

    def _is_behind(self, state: State, name: str) -> bool:
        said = self._said.get(name)
        return said is not None and UNKNOWN < said.generation < state.members.generation

    def _server_is_busy(self, state: State) -> bool:
        """Whether some server is at something else than to wait for messages."""
        said = (self._said.get(name) for name in state.members.group)
        return any(one is not None and one.phase != "serving" for one in said)

    # -- who is waited for

    def _forming(self, state: State) -> Iterator[str]:
        """Who does not get into an open generation of servers."""
        members = state.members
        if members.servers:
            yield from (name for name, _ in self._at(state, FORMS, (*members.group, *members.attached)))

    def _holding(self, state: State, live: Mapping[str, str], waiting: Mapping[str, int]) -> Iterator[tuple[str, int]]:
        """Who does not get anywhere, and for how long somebody has waited for it, or nobody could be waited for."""
        is_open, longest_ms = state.members.open, max(waiting.values(), default=0)
        exchanging_ms = max((ms for name, ms in waiting.items() if name not in self._idle_ms), default=0)
        for name, said in self._said.items():
            attached = live[name] == "attached"
            if said.phase not in WHAT or said.phase_ms <= said.allowed_ms or name in waiting:
                continue
            if said.phase == STAYS or (said.phase == IDLE and attached and is_open):
                yield name, said.phase_ms
            elif name in self._forming_ms:
                yield name, self._forming_ms[name]
            elif not attached and said.phase in HOLDS_UP:
                yield name, longest_ms
            elif attached and is_open:
                yield name, longest_ms if _has_samples(state, name) else exchanging_ms

    def _judge(self, found: Found, member: str, waited_ms: int, others: int) -> None:
        said = self._said[member]
        held_ms = min(said.phase_ms, waited_ms)
        if held_ms < min(self.patience_ms, self.stuck_ms):
            return
        detail = f" ({said.detail})" if said.detail else ""
        whom = f"holds up {others} others:" if others else "is"
        what = f"{whom} {WHAT[said.phase]} for {said.phase_ms / 1000:.0f} s{detail}"
        if held_ms >= self.stuck_ms:
            found.lost.append((member, what))
        elif member not in self.named:
            self.named[member] = (
                f"{member} {what}; it is given up after {self.stuck_ms // 1000} s unless the script announces it "
                "(agent.pause)"
            )
            self._news.append(self.named[member])


def _has_samples(state: State, who: str) -> bool:
    """Whether it has something to train that nobody else can have before it is done, or gone."""
    shards = state.shards
    if not isinstance(shards, Shards):
        return False
    dealt = isinstance(shards, DealtShards) and who in shards.parts and shards.parts[who].unstarted > 0
    return dealt or shards.held_samples(who, state.members.generation) > 0
