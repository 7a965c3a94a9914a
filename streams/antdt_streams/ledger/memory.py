"""The ledger on a log in memory: the same core, no broker. For tests, simulation and benchmarks."""

from __future__ import annotations

from collections.abc import Iterable

from antdt_schemas import codec, records
from antdt_schemas.errors import Superseded
from antdt_schemas.topics import RECORD_BYTES_MAX

from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.leader import Crowded, Incoming, InOffice, PoisonRequest
from antdt_streams.ledger.core.versions import FOLD_VERSION


class MemoryBroker:
    """Topics of one job as lists; time is what the caller says."""

    def __init__(
        self, spec: records.JobSpec, patience_ms: int = 5_000, digest_every: int = 10, requests_topic: str = ""
    ) -> None:
        self.requests_topic, self.requests_low = requests_topic, 0
        genesis = records.Genesis(
            "run-1", "memory", "test", spec, FOLD_VERSION, "none", digest_every, patience_ms, requests_topic
        )
        self.log: list[bytes] = [codec.encode(records.Entry(genesis))]
        self.requests: list[tuple[int, bytes]] = []
        self.replies: list[records.Reply] = []
        self.now_ms = 1_000
        self.leaders = 0

    def send(self, request: records.Request | bytes) -> int:
        """Append a request; returns its offset."""
        payload = request if isinstance(request, bytes) else codec.encode(request)
        self.requests.append((self.now_ms, payload))
        return self.requests_high - 1

    @property
    def requests_high(self) -> int:
        """Offset of the next request."""
        return self.requests_low + len(self.requests)

    def incoming(self, start: int, limit: int) -> list[Incoming]:
        """Requests from an offset on."""
        assert self.requests_low <= start <= self.requests_high, "where they are not must be noticed"
        part = self.requests[start - self.requests_low :][:limit]
        return [Incoming(start + i, time_ms, payload) for i, (time_ms, payload) in enumerate(part)]

    def fold(self) -> Fold:
        """A new reader that has read everything."""
        fold = Fold()
        for offset, payload in enumerate(self.log):
            fold.read(offset, payload)
        return fold


class MemoryLedger:
    """One ledger process on a MemoryBroker; throw it away to crash it, at any point of a cycle."""

    def __init__(
        self, broker: MemoryBroker, secret: bytes | None = None, record_bytes_max: int = RECORD_BYTES_MAX
    ) -> None:
        self.broker = broker
        broker.leaders += 1
        leader = records.Leader("run-1", f"leader-{broker.leaders}", "test", FOLD_VERSION)
        broker.log.append(codec.encode(records.Entry(leader)))
        self.office = InOffice(broker.fold(), secret, record_bytes_max=record_bytes_max)
        self.waiting: list[Incoming] = []

    def append(self, limit: int = 1_000) -> bool:
        """Steps 1 to 3 of a cycle: decide what is there and append it. False: nothing was there."""
        requests = self.broker.incoming(self.office.state.requests_next, limit)
        if not requests:
            return False
        while True:
            try:
                payload, _ = self.office.propose(requests)
            except PoisonRequest as poison:
                self._again({poison.offset: str(poison)})
            except Crowded as crowded:
                self._again({})
                requests = requests[: crowded.fits]
            else:
                self.broker.log.append(payload)
                return True

    def _again(self, poisoned: dict[int, str]) -> None:
        office = self.office
        self.office = InOffice(
            self.broker.fold(), office.secret, {**office.poisoned, **poisoned}, office.record_bytes_max
        )

    def read_back(self) -> list[records.Reply]:
        """Steps 4 to 6: read the log, then reply. Raises Superseded."""
        out: list[records.Reply] = []
        for offset in range(self.office.fold.position.next_offset, len(self.broker.log)):
            cycle = self.office.read_back(offset, self.broker.log[offset])
            if cycle is not None:
                out += map(self.office.reply, cycle.answers)
        self.broker.replies += out
        return out

    def run(self, requests: Iterable[records.Request] = ()) -> list[records.Reply]:
        """Send requests, run cycles until all are consumed, return the replies."""
        for request in requests:
            self.broker.send(request)
        out: list[records.Reply] = []
        while self.append():
            out += self.read_back()
        return out


__all__ = ["MemoryBroker", "MemoryLedger", "Superseded"]
