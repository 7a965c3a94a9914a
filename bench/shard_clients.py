"""The processes of `bench.ledger`: a real ledger, and workers that lease and commit without a model.

A member is the real Client with its real Session; in place of training stands an exchange through pipes, which brings
what each member took to all of them, as the reduction does, for a few steps at once. `Asker` is a client of single
requests: it has no thread and no prefetch, so that what it measures is one request.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from time import monotonic, perf_counter, process_time
from typing import Any

from antdt.connect.client import Client, ClientOptions
from antdt.worker.plans import Plans
from antdt.worker.session import Composition, Phase, Session, Where
from antdt.worker.telemetry import Telemetry
from antdt_schemas import codec, lineage, records
from antdt_schemas.connection import Connection
from antdt_schemas.offsets import watermarks
from antdt_schemas.topics import REPLIES, REQUESTS, replies_partition
from antdt_streams.ledger.service import Ledger, LedgerOptions
from confluent_kafka import Consumer, Producer, TopicPartition

from bench.job import job_spec

SPAWN = multiprocessing.get_context("spawn")
WAIT_S = 60.0
PATIENCE_MS = 120_000  # on a busy machine nobody is declared lost: that is not what is measured
RANGES_A_TAKE_MAX = 8
# Steps that the model may be ahead of what is known to be committed. A training run has no such bound and needs none:
# its steps take time. Here they take none, and without a bound the queue of what is to be reported would only grow.
STEPS_AHEAD_MAX = 256
STEPS_AN_EXCHANGE = 16


@dataclass(frozen=True, slots=True)
class Served:
    """What the first member saw committed in the timed part; seconds of the monotonic clock and of its processor."""

    samples: int
    steps: int
    seconds: float
    cpu_s: float


def end_with_parent() -> None:
    """Nothing is left running, even when the benchmark itself is killed."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# -- the ledger


def _serve(connection: Connection, job: str, folder: Path, stop: Pipe, used: Pipe) -> None:
    end_with_parent()
    ledger = Ledger(connection, job, folder, LedgerOptions(patience_ms=PATIENCE_MS))
    threading.Thread(target=lambda: (stop.poll(None), ledger.stopping.set()), daemon=True).start()
    ledger.run()
    used.send(process_time())


@contextmanager
def ledger_process(connection: Connection, job: str, folder: Path, context: Any = SPAWN) -> Iterator[list[float]]:
    """A ledger in a process of its own; the list has its processor seconds once it has ended."""
    (stopped, stop), (mine, theirs), used = context.Pipe(duplex=False), context.Pipe(duplex=False), list[float]()
    process = context.Process(target=_serve, args=(connection, job, folder, stopped, theirs), daemon=True)
    process.start()
    stopped.close()
    theirs.close()
    try:
        yield used
        stop.close()
        used.append(receive(mine))
    finally:
        stop.close()
        process.join(WAIT_S)
        process.kill()


def receive(pipe: Pipe) -> Any:
    """The next object, or RuntimeError when its process died or says nothing for a minute."""
    try:
        if pipe.poll(WAIT_S):
            return pipe.recv()
    except EOFError:
        raise RuntimeError("A process of the benchmark ended without a result; its error is above.") from None
    raise RuntimeError("A process of the benchmark had no result in time.")


# -- members, as the Agent does it


class Member:
    """One worker without a model: takes, exchanges, reports. The order of calls is that of the Agent."""

    def __init__(self, connection: Connection, job: str, rank: int, members: int, batch: int, shard_size: int) -> None:
        spec = job_spec(shard_size, members)
        worker, self.batch = f"w{rank}", batch
        session = Session(worker, f"{worker}.0.{os.getpid()}", spec, Where("127.0.0.1", 1))
        self.session = session
        telemetry = Telemetry(worker, session.incarnation, "node", "cpu")
        self.client = Client(ClientOptions(connection, job), session, Plans(batch * members), telemetry)
        self.client.start()
        if not self.client.wait(lambda: session.phase is Phase.MEMBER, WAIT_S):
            raise RuntimeError(f"{worker} was not granted a place.")
        self.step, self.lineage = 0, lineage.ROOT
        with self.client.changed:
            session.leases.batch_size = batch
            session.begin((), self.lineage)

    def take(self) -> list[array[int]]:
        """The samples of the next few steps; waits for the first of them where training would go on meanwhile."""
        self.client.wait(lambda: self.session.leases.untaken > 0, WAIT_S)
        out = []
        for _ in range(STEPS_AN_EXCHANGE):
            with self.client.changed:
                taken = self.session.leases.take(self.batch, RANGES_A_TAKE_MAX)
            out.append(array("q", [x for piece in taken for x in piece]))
        return out

    def applied(self, ranges: array[int]) -> None:
        """A step with these ranges is in everybody's model."""
        self.step += 1
        quadruples = [x for i in range(0, len(ranges), 5) for x in (ranges[i], *ranges[i + 2 : i + 5])]
        self.lineage = lineage.next_lineage(self.lineage, self.step, quadruples)
        with self.client.changed:
            self.session.applied(Composition(self.step, tuple(ranges), self.lineage, 0))
            self.session.proven(self.step - 1)
            phase = self.session.phase
        if phase is not Phase.MEMBER:
            raise RuntimeError(f"{self.session.worker} is {phase}: {self.session.reason}")


def follow(
    connection: Connection, job: str, rank: int, members: int, batch: int, shard_size: int, leader: Pipe
) -> None:
    """A member other than the first: until the first one has no more steps."""
    end_with_parent()
    member = Member(connection, job, rank, members, batch, shard_size)
    while True:
        leader.send(member.take())
        steps = leader.recv()
        if steps is None:
            break
        for ranges in steps:
            member.applied(ranges)
    member.client.stop(leave=False)


def lead(
    connection: Connection,
    job: str,
    members: int,
    batch: int,
    shard_size: int,
    others: list[Pipe],
    seconds: tuple[float, float],
    result: Pipe,
) -> None:
    """The first member: it commits. `seconds`: of warming up, of the timed part."""
    end_with_parent()
    member = Member(connection, job, 0, members, batch, shard_size)
    session, sizes = member.session, [0]
    began_at, began_step, began_cpu_s = 0.0, 0, 0.0
    switch_at = monotonic() + seconds[0]
    while True:
        taken = [member.take(), *map(receive, others)]
        if monotonic() > switch_at:
            if began_at:
                break
            began_at, began_step, began_cpu_s = perf_counter(), session.committed, process_time()
            switch_at = monotonic() + seconds[1]
        steps = [sum(parts, array("q")) for parts in zip(*taken, strict=True)]
        steps = [ranges for ranges in steps if ranges]
        for other in others:
            other.send(steps)
        for ranges in steps:
            sizes.append(sizes[-1] + sum(ranges[4::5]))
            member.applied(ranges)
        if member.step - session.committed > STEPS_AHEAD_MAX:
            member.client.wait(lambda: member.step - session.committed <= STEPS_AHEAD_MAX, WAIT_S)
    committed = session.committed
    samples = sizes[committed] - sizes[began_step]
    served = Served(samples, committed - began_step, perf_counter() - began_at, process_time() - began_cpu_s)
    for other in others:
        other.send(None)
    member.client.stop(leave=False)
    result.send(served)


# -- single requests


class Asker:
    """A client without thread, session and prefetch: sends requests, waits for their answers."""

    def __init__(self, connection: Connection, job: str, rank: int, members: int, shard_size: int) -> None:
        self.spec, self.size = job_spec(shard_size, members), shard_size
        self.worker = f"w{rank}"
        self.incarnation = f"{self.worker}.0.{os.getpid()}"
        self.generation = self.number = 0
        self._topic, topic = REQUESTS.name(job), REPLIES.name(job)
        self._producer = Producer(connection.producer(**{"linger.ms": 0}))
        self._consumer = Consumer(connection.consumer())
        partition = replies_partition(self.worker)
        end = watermarks(self._consumer, topic, partition)[1]
        self._consumer.assign([TopicPartition(topic, partition, end)])
        join = records.Join("worker", "127.0.0.1", 1, "node", "cpu", 0, self.spec)
        until = monotonic() + WAIT_S
        while not self.generation:
            self.send(join)
            self.replies(0.5)
            if monotonic() > until:
                raise RuntimeError(f"{self.worker} was not granted a place.")

    def send(self, body: records.RequestBody) -> int:
        """Send one request; returns its number."""
        self.number += 1
        request = records.Request(self.worker, self.incarnation, self.number, body, b"")
        self._producer.produce(self._topic, codec.encode(request), self.worker, 0)
        self._producer.poll(0)
        return self.number

    def replies(self, wait_s: float) -> list[records.Reply]:
        """The answers to this incarnation that are there, and news of its grant; waits for the first message."""
        first = self._consumer.poll(wait_s)
        if first is None:
            return []
        out = [codec.decode(m.value(), records.Reply) for m in (first, *self._consumer.consume(999, 0))]
        for grant in [r.grant for r in out if r.grant is not None]:
            if any(m.incarnation == self.incarnation for m in grant.members):
                self.generation = grant.generation
        return [r for r in out if r.incarnation == self.incarnation]

    def answer(self, number: int) -> records.Reply:
        """The answer to a request; RuntimeError when it is not OK or does not come."""
        until = monotonic() + WAIT_S
        while monotonic() < until:
            for reply in self.replies(1.0):
                if reply.number == number:
                    if reply.status is not records.Status.OK:
                        raise RuntimeError(f"{self.worker}: {reply.status} {reply.reason}")
                    return reply
        raise RuntimeError(f"{self.worker}: request {number} was not answered.")

    def lease(self, shards: int) -> int:
        """Ask to hold so many shards."""
        return self.send(records.Lease(self.generation, shards * self.size))

    def commit(self, step: int, quintuple: tuple[int, ...]) -> int:
        """Report a step of one range."""
        return self.send(records.Commit(self.generation, step, (quintuple,), (0,), b"", -1))

    def close(self) -> None:
        """Release the connections."""
        self._producer.flush(5)
        self._consumer.close()


def one_at_a_time(connection: Connection, job: str, shard_size: int, seconds: float) -> tuple[list[float], list[float]]:
    """Milliseconds of each lease and each commit of one shard, one request in flight, the first half second apart."""
    asker = Asker(connection, job, 0, 1, shard_size)
    leases_ms, commits_ms = list[float](), list[float]()
    begin, step = monotonic() + 0.5, 0
    while (now := monotonic()) < begin + seconds:
        started = perf_counter()
        reply = asker.answer(asker.lease(1))
        leased = perf_counter()
        step += 1
        asker.answer(asker.commit(step, reply.leases[:5]))
        committed = perf_counter()
        if now >= begin:
            leases_ms.append((leased - started) * 1e3)
            commits_ms.append((committed - leased) * 1e3)
    asker.close()
    return leases_ms, commits_ms


def ask(
    connection: Connection, job: str, rank: int, members: int, shard_size: int, window: int, first: list[Pipe] | Pipe,
    seconds: float, result: Pipe | None,
) -> None:  # fmt: skip
    """One of the clients whose every request covers one shard, `window` of them in flight.

    first: the pipe to the first member, or for itself the pipes of the others. Rounds: everybody leases a window of
    shards, one by one; the first member commits all of them, one by one; then the next round.
    """
    end_with_parent()
    asker = Asker(connection, job, rank, members, shard_size)

    def leased() -> list[tuple[int, ...]]:
        numbers = [asker.lease(i + 1) for i in range(window)]
        flat = asker.answer(numbers[-1]).leases
        assert len(flat) == 5 * window, (len(flat), window)
        return [flat[i : i + 5] for i in range(0, len(flat), 5)]

    if not isinstance(first, list):
        while first.recv():
            first.send(leased())
        asker.close()
        return
    step, began, began_step = 0, monotonic(), 0
    warm = False
    while True:
        now = monotonic()
        if not warm and now - began > 1.0:
            warm, began, began_step = True, now, step
        if warm and now - began >= seconds:
            break
        for other in first:
            other.send(True)
        mine = leased()
        number = -1
        for quintuple in (*mine, *(q for other in first for q in receive(other))):
            step += 1
            number = asker.commit(step, quintuple)
        asker.answer(number)
    assert result is not None
    result.send(Served((step - began_step) * shard_size, step - began_step, monotonic() - began, 0.0))
    for other in first:
        other.send(False)
    asker.close()
