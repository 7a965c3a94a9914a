"""A real ledger on a real broker, in a thread of the test; and a worker that speaks to it by hand."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType

from antdt_schemas import codec, lineage, records, topics
from antdt_schemas.connection import Connection
from antdt_streams.kafka.reader import TopicReader, decoded
from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.options import LedgerOptions
from antdt_streams.ledger.service import Ledger
from confluent_kafka import Producer

SPEC = records.JobSpec("d", 1000, bytes(16), "sequential", 1, 0, 8, 8, 1, 3, "allreduce")
WITHIN_S = 30.0


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait for a condition, within a bound."""
    until = monotonic() + WITHIN_S
    while not holds():
        assert monotonic() < until, f"not within {WITHIN_S} s: {what}"
        sleep(0.02)  # between two looks


class LedgerThread:
    """Runs a Ledger until the block is left. `error` is what ended it."""

    def __init__(self, connection: Connection, job: str, folder: Path, **options: object) -> None:
        self.ledger = Ledger(connection, job, folder, LedgerOptions(**options))  # type: ignore[arg-type]
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.ledger.run()
        except BaseException as error:  # noqa: BLE001  the test looks at it
            self.error = error

    def __enter__(self) -> LedgerThread:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.ledger.stopping.set()
        self.join()
        if error is None and self.error is not None:
            raise self.error

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(WITHIN_S)
        assert not self._thread.is_alive(), "the ledger does not end"


class Asker:
    """One worker by hand: it asks until it is answered."""

    def __init__(self, connection: Connection, job: str, incarnation: str = "w0.0") -> None:
        self.job, self.incarnation, self.worker = job, incarnation, incarnation.split(".", maxsplit=1)[0]
        self.producer = Producer(connection.producer(**{"linger.ms": 0}))
        self.reader = TopicReader(connection, job, topics.REPLIES)
        self.reader.follow(0)
        self.numbers = itertools.count(1)
        self.step, self.lineage, self.generation = 0, lineage.ROOT, 0
        self.grant: records.Grant | None = None

    def close(self) -> None:
        self.reader.__exit__()

    def ask(self, body: records.RequestBody) -> records.Reply:
        """The answer to one request."""
        number, until, sent_at = next(self.numbers), monotonic() + WITHIN_S, 0.0
        request = records.Request(self.worker, self.incarnation, number, body, b"")
        while monotonic() < until:
            if monotonic() - sent_at > 1.0:
                self.producer.produce(topics.REQUESTS.name(self.job), codec.encode(request), self.worker, 0)
                self.producer.poll(0)
                sent_at = monotonic()
            for _, reply in decoded(self.reader.poll(0.05), records.Reply):
                if reply.grant is not None and self.incarnation in [m.incarnation for m in reply.grant.members]:
                    self.grant = reply.grant
                if reply.incarnation == self.incarnation and reply.number == number:
                    return reply
        raise AssertionError(f"no answer to {body}")

    def join(self, spec: records.JobSpec = SPEC) -> records.Grant:
        """Join, and wait for the grant."""
        until, self.grant = monotonic() + WITHIN_S, None
        while monotonic() < until:
            self.ask(records.Join("worker", "h", 1, "n", "", 0, spec, "one launch"))
            if self.grant is not None:
                self.generation = self.grant.generation
                return self.grant
        raise AssertionError("no grant")

    def train(self, steps: int, samples: int = 8) -> None:
        """Lease and commit that many steps, as the only member."""
        for _ in range(steps):
            lease = self.ask(records.Lease(self.generation, samples)).leases
            taken = (*lease[:4], samples)
            at = lineage.next_lineage(self.lineage, self.step + 1, (taken[0], *taken[2:]))
            body = records.Commit(self.generation, self.step + 1, (taken,), (0,), at, -1)
            reply = self.ask(body)
            assert reply.status is records.Status.OK, reply
            self.step, self.lineage = self.step + 1, at

    def checkpoint(self, file: str) -> None:
        """Tell of a durable file."""
        reply = self.ask(records.Checkpoint(self.generation, self.step, self.lineage, file))
        assert reply.status is records.Status.OK, reply


@contextmanager
def asker(connection: Connection, job: str, incarnation: str = "w0.0") -> Iterator[Asker]:
    """An Asker that is closed in the end."""
    one = Asker(connection, job, incarnation)
    try:
        yield one
    finally:
        one.close()


def replayed(connection: Connection, job: str) -> Fold:
    """The log from its first entry on."""
    fold = Fold()
    with TopicReader(connection, job, topics.SHARD_LOG) as reader:
        for raw in reader.to_end():
            fold.read(raw.offset, raw.value)
    return fold


def digest_of(fold: Fold) -> str:
    assert fold.state is not None
    return rows.digest(fold.state).hex()
