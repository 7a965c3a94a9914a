"""Who holds up the others: alive, and not getting anywhere.

Owns what follows from what workers and servers say they are at. Rules
  1. nobody is blamed who waits; nobody is, where nobody waits: what all do alike, however long, is nobody's fault
  2. who has announced how long it takes has that long
  3. who holds up the others is named after the patience, and lost after `stuck_ms`
  4. where all wait for each other for as long, a message is lost: they meet again, and nobody is
All of it runs in the clock of the requests, and on what heartbeats said lately: other requests may have come since.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from antdt_schemas import records

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
WAITS = "reducing"
# Of a generation that is not granted yet; whoever is attached waits for it, too.
ASKS = ("waiting", "ready", "attached")


@dataclass(frozen=True, slots=True)
class Standing:
    """What a worker said it is at, and when it was heard."""

    phase: str
    phase_ms: int
    allowed_ms: int
    detail: str
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
        self._asking_ms: dict[str, int] = {}
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
        said = body.phase, int(body.phase_s * 1000), int(body.allowed_s * 1000), body.detail
        self._said[incarnation] = Standing(*said, clock_ms)

    def look(self, state: State, clock_ms: int) -> Found:
        """What follows now."""
        live = {name: who for name, who in state.members.incarnations.items() if not who.gone}
        self._said = {n: s for n, s in self._said.items() if n in live and clock_ms - s.heard_ms <= FRESH_MS}
        if state.members.generation != self._generation:  # whoever waited in the last one says so for a while yet
            self._generation, self._all_wait_ms = state.members.generation, None
            self._said = {n: said for n, said in self._said.items() if said.phase != WAITS}
        asking = [] if state.members.open else [n for n, who in live.items() if who.status in ASKS]
        self._asking_ms = {n: self._asking_ms.get(n, clock_ms) for n in asking}
        members = {m: None for m in state.members.group if m in live and live[m].status == "member"}
        if state.members.open:
            members |= state.members.attached
        reducing = {m: s.phase_ms for m, s in self._said.items() if m in members and s.phase == WAITS}
        waiting = (reducing if state.members.open else {}) | {
            n: clock_ms - since for n, since in self._asking_ms.items()
        }
        found = Found()
        holding = [m for m in members if m not in waiting and self._holds_up(m)]
        if waiting and holding:
            self._judge(found, holding, waiting)
        waited_ms = self._waited_ms(state, members, reducing, clock_ms)
        if waited_ms >= self.stuck_ms and not found.lost:
            found.deadlock = f"all members wait for each other since {waited_ms // 1000} s"
            self._news.append(f"generation {state.members.generation} is closed: {found.deadlock}")
        self.named = {n: said for n, said in self.named.items() if n in holding}
        return found

    def _waited_ms(self, state: State, members: dict[str, None], reducing: dict[str, int], clock_ms: int) -> int:
        """For how long all of them have waited for each other; 0: they do not. Where there are servers, all workers:
        servers answer at once, and whoever held up the others may be gone since.
        """
        attached = state.members.attached
        waits = state.members.open and len(members) > 1 and reducing.keys() == (attached or members).keys()
        self._all_wait_ms = (clock_ms if self._all_wait_ms is None else self._all_wait_ms) if waits else None
        if self._all_wait_ms is None:
            return 0
        shortest_ms = min(reducing.values())
        return min(shortest_ms, clock_ms - self._all_wait_ms) if attached else shortest_ms

    def _holds_up(self, member: str) -> bool:
        said = self._said.get(member)
        return said is not None and said.phase in HOLDS_UP and said.phase_ms > said.allowed_ms

    def _judge(self, found: Found, holding: list[str], waiting: dict[str, int]) -> None:
        for member in holding:
            said = self._said[member]
            held_ms = min(said.phase_ms, max(waiting.values()))
            if held_ms < min(self.patience_ms, self.stuck_ms):
                continue
            detail = f" ({said.detail})" if said.detail else ""
            what = f"{HOLDS_UP[said.phase]} for {said.phase_ms / 1000:.0f} s{detail}"
            if held_ms >= self.stuck_ms:
                found.lost.append((member, f"holds up {len(waiting)} others: {what}"))
            elif member not in self.named:
                self.named[member] = (
                    f"{member} holds up {len(waiting)} others: {what}; it is given up after {self.stuck_ms // 1000} s "
                    "unless the script announces it (agent.pause)"
                )
                self._news.append(self.named[member])
