"""A job without broker and workers: requests as Agents write them, decided by the ledger's own core, entry by entry.

It holds no more than what is on lease, so a log of any length can be made and thrown away as it goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter, process_time

from antdt_schemas import codec, lineage, records
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.leader import Incoming, InOffice
from antdt_streams.ledger.core.versions import FOLD_VERSION

CYCLE_MS = 5
GENERATION = 1


@dataclass(frozen=True)
class Shape:
    """How big things are: a member's samples in a step and in a lease are `shards_*` times `shard_size`.

    steps_together: members that take part in each step; 1 makes steps of a single range.
    """

    members: int = 4
    shard_size: int = 8
    shards_a_take: int = 8
    takes_a_lease: int = 2
    leases_a_cycle: int = 8
    steps_a_commit: int = 64
    members_a_step: int = 4

    @property
    def lease_samples(self) -> int:
        """Samples that one lease request asks for."""
        return self.shard_size * self.shards_a_take * self.takes_a_lease


ONE_SHARD_A_REQUEST = Shape(shards_a_take=1, takes_a_lease=1, steps_a_commit=1, members_a_step=1)


def job_spec(shard_size: int, members: int) -> records.JobSpec:
    """A job that no benchmark reaches the end of."""
    return records.JobSpec("bench", 10**9, bytes(16), "feistel-1", 100, 0, shard_size, 256, members, 4, "allreduce")


class Job:
    """One job: `entries()` makes its log; `ledger_s` and `ledger_cpu_s` are what its core took for it."""

    def __init__(self, shape: Shape, digest_every: int = 1_000) -> None:
        self.shape, self.spec = shape, job_spec(shape.shard_size, shape.members)
        self.digest_every = digest_every
        self.ledger_s = self.ledger_cpu_s = 0.0
        self.requests = self.events = self.pairs = self.bytes = 0
        self._number = self._now_ms = 0
        self._step, self._lineage = 1, lineage.ROOT
        self._held: list[list[tuple[int, ...]]] = [[] for _ in range(shape.members)]
        self._offset = 0

    def entries(self) -> Iterator[tuple[int, bytes]]:
        """(offset, entry) without end: the log from Genesis on."""
        fold = Fold()
        run = "bench-run"
        genesis = records.Genesis(run, "bench", "bench", self.spec, FOLD_VERSION, "none", self.digest_every, 10**9)
        for body in (genesis, records.Leader(run, "bench-leader", "bench", FOLD_VERSION)):
            payload = codec.encode(records.Entry(body))
            fold.read(self._offset, payload)
            yield self._append(payload)
        office = InOffice(fold)
        join = records.Join("worker", "host", 1, "node", "hardware", 0, self.spec)
        yield self._cycle(office, [self._request(m, join) for m in range(self.shape.members)])[0]
        while True:
            entry, replies = self._cycle(office, [*self._commits(), *self._leases()])
            for reply in replies:
                if reply.leases:
                    member = int(reply.worker[1:])
                    self._held[member] = [reply.leases[i : i + 5] for i in range(0, len(reply.leases), 5)]
            yield entry

    def _append(self, payload: bytes) -> tuple[int, bytes]:
        entry = self._offset, payload
        self._offset += 1
        self.bytes += len(payload)
        return entry

    def _cycle(
        self, office: InOffice, requests: list[records.Request]
    ) -> tuple[tuple[int, bytes], list[records.Reply]]:
        """One cycle. Timed is what the ledger does: from the bytes of the requests to the bytes of the replies."""
        first = office.state.requests_next
        self._now_ms += CYCLE_MS
        arrived = [Incoming(first + i, self._now_ms, codec.encode(r)) for i, r in enumerate(requests)]
        before_s, before_cpu_s = perf_counter(), process_time()
        payload, taken = office.propose(arrived)
        cycle = office.read_back(self._offset, payload)
        assert cycle is not None
        replies = [office.reply(answer) for answer in cycle.answers]
        for reply in replies:
            codec.encode(reply)
        self.ledger_s += perf_counter() - before_s
        self.ledger_cpu_s += process_time() - before_cpu_s
        assert taken == len(requests), "the cycle was cut: make it smaller"
        assert not office.state.refused, [r.reason for r in replies]
        self.requests += taken
        self.events += len(cycle.body.events)
        self.pairs = office.state.shards.committed_total // self.spec.shard_size
        return self._append(payload), replies

    def _request(self, member: int, body: records.RequestBody) -> records.Request:
        self._number += 1
        return records.Request(f"w{member}", f"w{member}.0", self._number, body, b"")

    def _leases(self) -> list[records.Request]:
        """Every member tops up, lease by lease; what it held is committed by the requests ahead of these."""
        size = self.shape.lease_samples
        return [
            self._request(member, records.Lease(GENERATION, size * (number + 1)))
            for number in range(self.shape.leases_a_cycle)
            for member in range(self.shape.members)
        ]

    def _commits(self) -> list[records.Request]:
        """Everything that is held, taken step by step and reported by the first member."""
        takes = [self._takes(leases) for leases in self._held]
        together = self.shape.members_a_step
        steps = [
            [x for take in row[at : at + together] for x in take]
            for row in zip(*takes, strict=True)
            for at in range(0, len(row), together)
        ]
        out = []
        for at in range(0, len(steps), self.shape.steps_a_commit):
            part = [tuple(flat) for flat in steps[at : at + self.shape.steps_a_commit]]
            first = self._step
            for flat in part:
                quadruples = [x for i in range(0, len(flat), 5) for x in (flat[i], *flat[i + 2 : i + 5])]
                self._lineage = lineage.next_lineage(self._lineage, self._step, quadruples)
                self._step += 1
            commit = records.Commit(GENERATION, first, tuple(part), (0,) * len(part), self._lineage, -1)
            out.append(self._request(0, commit))
        return out

    def _takes(self, leases: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        size = self.shape.shard_size * self.shape.shards_a_take
        return [
            (number, token, epoch, start + at, size)
            for number, token, epoch, start, length in leases
            for at in range(0, length, size)
        ]
