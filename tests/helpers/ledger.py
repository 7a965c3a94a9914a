"""A ledger in memory with workers that speak to it: what the unit tests of the protocol are written in."""

from __future__ import annotations

from antdt_schemas import lineage, records
from antdt_streams.ledger.options import LedgerOptions

from tests.helpers.memory_ledger import MemoryBroker, MemoryLedger

SPEC = records.JobSpec("d", 100, bytes(16), "sequential", 1, 0, 10, 8, 2, 3, "allreduce")


class Bench:
    """Two workers and a ledger. `say` sends one request and returns the replies that came of it."""

    def __init__(
        self, spec: records.JobSpec = SPEC, secret: bytes | None = None, options: LedgerOptions | None = None
    ) -> None:
        self.spec, self.broker = spec, MemoryBroker.founded(spec)
        self.ledger = MemoryLedger(self.broker, secret, options=options)
        self.step, self.lineage = 0, lineage.ROOT

    @property
    def state(self):  # type: ignore[no-untyped-def]
        return self.ledger.office.state

    def request(self, who: str, body: records.RequestBody) -> records.Request:
        """A request of incarnation `who`, named WORKER.LIFE."""
        return records.Request(who.split(".", maxsplit=1)[0], who, 1, body, b"")

    def say(self, who: str, body: records.RequestBody) -> records.Reply:
        """The direct reply to one request, or the first news of it where it is not answered itself."""
        replies = self.ledger.run([self.request(who, body)])
        return next((r for r in replies if r.incarnation == who and r.number == 1), replies[0])

    def join(self, *names: str) -> None:
        """Incarnations of one launch: a later one of a worker is its launcher's restart."""
        for name in names:
            self.say(name, self.a_join())
        self.state.check()

    def a_join(self, launch: str = "bench", place: str = "", *, take_over: bool = False) -> records.Join:
        """The question of a newcomer."""
        return records.Join("worker", "h", 1, "n", "", 0, self.spec, launch, f"user@{launch}:1", place, take_over)

    def lease(self, who: str, samples: int) -> tuple[int, ...]:
        return self.say(who, records.Lease(self.state.members.generation, samples)).leases

    def commit(self, who: str, *ranges: tuple[int, ...], plan: int = 0) -> records.Reply:
        """Commit one step of quintuples, as the first member would."""
        flat = tuple(v for r in ranges for v in r)
        quads = [v for r in ranges for v in (r[0], *r[2:])]
        h = lineage.next_lineage(self.lineage, self.step + 1, quads)
        body = records.Commit(self.state.members.generation, self.step + 1, (flat,), (plan,), h, -1)
        reply = self.say(who, body)
        if reply.status is records.Status.OK:
            self.step, self.lineage = self.step + 1, h
        self.state.check()
        return reply

    def refused(self) -> list[records.Refused]:
        """Every refusal in the log."""
        return [e for e in self.events() if isinstance(e, records.Refused)]

    def events(self) -> list[records.Event]:
        """Every event that counts."""
        from antdt_schemas import codec

        bodies = (codec.decode(p, records.Entry).body for p in self.broker.log)
        return [e for b in bodies if isinstance(b, records.Cycle) for e in b.events]
