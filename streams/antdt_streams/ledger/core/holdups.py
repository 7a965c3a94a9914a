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
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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


class HoldUps:
    """What is known of where everybody is. Not part of the ledger's state: only what comes of it is in the log."""

    def __init__(self, patience_ms: int, stuck_ms: int = STUCK_MS) -> None:
        self.patience_ms, self.stuck_ms = patience_ms, stuck_ms
        self._said: dict[str, Standing] = {}
        # Since when: who asks for the next generation, who enters one of servers, and who has run out of samples.
        self._asking_ms: dict[str, int] = {}
        self._forming_ms: dict[str, int] = {}
        self._idle_ms: dict[str, int] = {}
        self._all_wait_ms: int | None = None
        self._generation = 0
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
        if state.members.generation != self._generation:
            self._generation, self._all_wait_ms = state.members.generation, None
        is_open = state.members.open
        asking = [] if is_open else [n for n, status in live.items() if status in ASKS]
        self._asking_ms = _since(self._asking_ms, asking, clock_ms)
        self._forming_ms = _since(self._forming_ms, self._forming(state), clock_ms)
        self._idle_ms = _since(self._idle_ms, self._idle(state), clock_ms)
        waiting = self._waiting(state, clock_ms) if is_open else {n: clock_ms - s for n, s in self._asking_ms.items()}
        found, holding = Found(), dict(self._holding(state, live, waiting, clock_ms))
        for member, waited_ms in holding.items():
            self._judge(found, member, waited_ms, len(waiting))
        waited_ms = self._waited_ms(state, waiting, clock_ms)
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

    def _waiting(self, state: State, clock_ms: int) -> dict[str, int]:
        """Who waits in the open generation, and for how long: members, or workers where servers are the members."""
        members = state.members
        reducing = {name: said.phase_ms for name, said in self._at(state, WAITS, members.attached or members.group)}
        return reducing | {name: clock_ms - since for name, since in self._idle_ms.items()}

    def _waited_ms(self, state: State, waiting: dict[str, int], clock_ms: int) -> int:
        """For how long all of them have waited for each other; 0: they do not. Where there are servers: all workers
        that are out of older generations, some of them for servers that answer at once; whoever held up the others may
        be gone since.
        """
        members, attached = state.members, state.members.attached
        there = {name for name in attached if not self._is_behind(state, name)} if attached else set(members.group)
        reducing = [ms for name, ms in waiting.items() if name not in self._idle_ms]
        waits = members.open and len(members.group) + len(attached) > 1 and bool(reducing) and waiting.keys() == there
        waits = waits and not (attached and self._server_is_busy(state))
        self._all_wait_ms = (clock_ms if self._all_wait_ms is None else self._all_wait_ms) if waits else None
        if self._all_wait_ms is None:
            return 0
        shortest_ms = min(reducing)
        return min(shortest_ms, clock_ms - self._all_wait_ms) if attached else shortest_ms

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

    def _holding(
        self, state: State, live: Mapping[str, str], waiting: Mapping[str, int], clock_ms: int
    ) -> Iterator[tuple[str, int]]:
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
                yield name, clock_ms - self._forming_ms[name]
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


def _since(before: dict[str, int], names: Iterable[str], clock_ms: int) -> dict[str, int]:
    """Since when each of these has been among them without a break."""
    return {name: before.get(name, clock_ms) for name in names}


def _has_samples(state: State, who: str) -> bool:
    """Whether it has something to train that nobody else can have before it is done, or gone."""
    shards = state.shards
    if not isinstance(shards, Shards):
        return False
    dealt = isinstance(shards, DealtShards) and who in shards.parts and shards.parts[who].unstarted > 0
    return dealt or shards.held_samples(who, state.members.generation) > 0
