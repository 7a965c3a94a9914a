"""A seeded world: the real ledger core and the real worker sessions in virtual time, with an adversary between them.

One seed is one run. Faults: lost, repeated and late replies; repeated old requests; ledgers killed between any two
steps of a cycle; ledgers that sleep, are superseded and wake up; workers killed, declared lost while they live, and
collectives that end for some members and not for others. What really is in a model is recorded beside the protocol, and
compared with what the log says in the end.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field, replace

from antdt.client import renew
from antdt.session import Composition, Phase, Session, SessionOptions, Where
from antdt_schemas import codec, lineage, records
from antdt_schemas.errors import Superseded
from antdt_streams.ledger.core import rows
from antdt_streams.ledger.memory import MemoryBroker, MemoryLedger

TICKS_MAX = 40_000


@dataclass(frozen=True)
class Model:
    """What is in a model: its steps, really applied. `first` is the oldest step whose composition is still carried."""

    steps: tuple[Composition, ...] = ()

    @property
    def step(self) -> int:
        return len(self.steps)

    @property
    def lineage(self) -> bytes:
        return self.steps[-1].lineage if self.steps else lineage.ROOT

    def applied(self, ranges: tuple[int, ...]) -> Model:
        quads = [v for i in range(0, len(ranges), 5) for v in (ranges[i], *ranges[i + 2 : i + 5])]
        h = lineage.next_lineage(self.lineage, self.step + 1, quads)
        return Model((*self.steps, Composition(self.step + 1, ranges, h, 0)))


@dataclass
class Worker:
    """One worker: its session, and the part of the Agent that matters here."""

    name: str
    session: Session
    model: Model | None = None
    alive: bool = True
    inbox: deque[records.Reply] = field(default_factory=deque)
    generation: int = 0
    round: int = 0
    entered: bool = False
    left: set[int] = field(default_factory=set)
    ended: bool = False
    file: tuple[str, Model] | None = None


class World:
    """The scheduler and its adversary. `counts` says how often each fault really happened."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.spec = records.JobSpec(
            "sim", rng.randint(4, 40), bytes(16), "sequential", rng.randint(1, 3), seed, rng.randint(1, 5),
            rng.randint(4, 8), rng.randint(1, 3), rng.choice([1, 2, 99]), "allreduce",
        )  # fmt: skip
        self.broker = MemoryBroker(self.spec, patience_ms=20_000, digest_every=rng.choice([1, 3, 10]))
        self.ledger: MemoryLedger | None = MemoryLedger(self.broker)
        self.zombies: list[MemoryLedger] = []
        self.files: dict[str, Model] = {"init": Model()}
        self.counts: Counter[str] = Counter()
        self.budget = rng.choice([0, 3, 6, 12])
        self.workers: dict[str, Worker] = {}
        self.names = 0
        self.rounds: dict[tuple[int, int], dict[str, tuple[tuple[int, ...], bool]]] = {}
        self.handed: dict[int, Model] = {}
        self.sent: deque[records.Request] = deque(maxlen=64)
        self.now_s = 1.0
        for _ in range(self.spec.workers_min):
            self.add_worker()

    def add_worker(self) -> None:
        name = f"w{self.names}"
        self.names += 1
        session = Session(name, f"{name}.0", self.spec, Where("h", 1), SessionOptions(prefetch_steps=2, prefetch_s=0.0))
        session.batch_size = self.rng.randint(1, 4)
        self.workers[name] = Worker(name, session, Model())

    # -- one tick

    def run(self) -> None:
        """Until every worker has ended. Raises AssertionError on any disagreement, or when nothing moves any more."""
        for tick in range(TICKS_MAX):
            self.now_s += 0.02
            self.broker.now_ms = int(self.now_s * 1000)
            if self.budget and self.rng.random() < 0.01:
                self.fault()
            self.rng.choice((self.step_ledger, self.step_ledger, self.step_worker, self.step_worker, self.deliver))()
            live = [w for w in self.workers.values() if w.alive]
            if live and all(w.ended for w in live):
                self.check()
                return
            if not live:
                self.add_worker()
            if tick == TICKS_MAX // 2:
                self.budget = 0
        raise AssertionError("nothing moves any more")

    def step_ledger(self) -> None:
        rng = self.rng
        if self.zombies and self.ledger is not None and rng.random() < 0.1:
            self.wake_zombie()
        if self.ledger is None:
            self.ledger = MemoryLedger(self.broker)
        office = self.ledger.office
        if office.pending is None:
            self.ledger.append(limit=rng.choice((1, 2, 5, 50)))
            return
        before = len(self.broker.replies)
        self.ledger.read_back()
        office.state.check()
        for reply in self.broker.replies[before:]:
            self.post(reply)

    def wake_zombie(self) -> None:
        zombie = self.zombies.pop()
        self.counts["zombie_ledger_woke"] += 1
        if zombie.office.pending is None and not zombie.append(limit=3):
            return
        before = len(self.broker.replies)
        try:
            zombie.read_back()
        except Superseded:
            self.counts["zombie_ledger_superseded"] += 1
        assert len(self.broker.replies) == before, "a zombie ledger has replied"

    def post(self, reply: records.Reply) -> None:
        worker = next((w for w in self.workers.values() if w.session.incarnation == reply.incarnation), None)
        if worker is None or not worker.alive:
            return
        luck = self.rng.random()
        if luck < 0.08:
            self.counts["reply_lost"] += 1
            return
        worker.inbox.append(reply)
        if luck > 0.92:
            worker.inbox.append(reply)
            self.counts["reply_repeated"] += 1

    def deliver(self) -> None:
        ready = [w for w in self.workers.values() if w.alive and w.inbox]
        for worker in self.rng.sample(ready, self.rng.randint(0, len(ready))):
            for _ in range(self.rng.randint(1, 4)):
                if worker.inbox:
                    worker.session.on_reply(worker.inbox.popleft())

    def step_worker(self) -> None:
        live = [w for w in self.workers.values() if w.alive and not w.ended]
        if not live:
            return
        worker = self.rng.choice(live)
        for request in worker.session.tick(self.now_s):
            self.broker.send(request)
            self.sent.append(request)
        if self.sent and self.rng.random() < 0.05:
            self.broker.send(self.rng.choice(self.sent))
            self.counts["old_request_resent"] += 1
        self.train(worker)

    # -- training

    def train(self, worker: Worker) -> None:
        session = worker.session
        assert session.phase is not Phase.FAILED, f"{worker.name}: {session.reason}"
        if session.phase is Phase.ENDED:
            worker.ended = True
        elif session.phase is Phase.LOST:
            self.counts["rejoined"] += 1
            worker.model, worker.generation, worker.entered = None, 0, False
            worker.session = renew(session, f"{worker.name}.{session.where.restarts + 1}")
            worker.session.batch_size = session.batch_size
            worker.inbox.clear()
        elif session.phase is Phase.CLOSED or (worker.generation and self.broken(worker)):
            self.leave(worker)
        elif session.phase is Phase.MEMBER:
            if worker.generation != session.generation:
                self.enter(worker)
            elif not worker.entered:
                self.compose(worker)
            else:
                self.complete(worker)

    def leave(self, worker: Worker) -> None:
        worker.left.add(worker.session.generation)
        worker.generation, worker.entered = 0, False
        claim = None if worker.model is None else worker.model.step
        worker.session.regroup(claim, worker.model.lineage if worker.model else b"")

    def members(self, generation: int) -> list[Worker | None]:
        grant = next(
            w.session.grant for w in self.workers.values() if w.session.grant and w.session.generation == generation
        )
        assert grant is not None
        by_incarnation = {w.session.incarnation: w for w in self.workers.values() if w.alive}
        return [by_incarnation.get(m.incarnation) for m in grant.members]

    def broken(self, worker: Worker) -> bool:
        generation = worker.session.generation
        return any(m is None or generation in m.left for m in self.members(generation))

    def enter(self, worker: Worker) -> None:
        """Adopt: the source hands out its state, everybody else takes it, possibly torn."""
        session = worker.session
        grant = session.grant
        assert grant is not None
        source = grant.members[0].incarnation if grant.restore_file is not None else grant.source
        if source == session.incarnation:
            if grant.restore_file is not None:
                worker.model = self.files[grant.restore_file]
            assert worker.model is not None, "the source has no valid state"
            self.handed[session.generation] = worker.model
        elif session.generation not in self.handed:
            return
        elif worker.model is None or worker.model.lineage != self.handed[session.generation].lineage:
            if self.rng.random() < 0.1 and self.broken(worker):
                worker.model = None
                self.counts["torn_adoption"] += 1
                self.leave(worker)
                return
            worker.model = self.handed[session.generation]
        worker.generation, worker.round, worker.entered = session.generation, 0, False
        session.begin([c for c in worker.model.steps if c.step > session.committed], worker.model.lineage)

    def compose(self, worker: Worker) -> None:
        session = worker.session
        taken = tuple(v for r in session.take(session.batch_size, 8) for v in r)
        key = (worker.generation, worker.round)
        self.rounds.setdefault(key, {})[session.incarnation] = (taken, session.phase is Phase.ENDED)
        worker.entered = True

    def complete(self, worker: Worker) -> None:
        session = worker.session
        assert session.grant is not None
        rows_ = self.rounds[(worker.generation, worker.round)]
        names = [m.incarnation for m in session.grant.members]
        if len(rows_) < len(names):
            return
        if self.broken(worker) and self.rng.random() < 0.5:
            self.counts["failed_though_complete"] += 1
            self.leave(worker)
            return
        assert worker.model is not None
        session.proven(worker.model.step)
        ranges = tuple(v for n in names for v in rows_[n][0])
        if ranges:
            worker.model = worker.model.applied(ranges)
            session.applied(worker.model.steps[-1])
            session.observe(sum(ranges[4::5]), self.spec.batch_size)
            self.counts["step"] += 1
        worker.round, worker.entered = worker.round + 1, False
        self.checkpoint(worker)

    def checkpoint(self, worker: Worker) -> None:
        session, model = worker.session, worker.model
        assert model is not None
        if session.rank != 0 or session.checkpoint is not None:
            return
        final = session.finished and session.committed == model.step
        if (final or self.rng.random() < 0.03) and model.step:
            name = f"g{session.generation}-{session.incarnation}-{model.step}"
            if final and name in self.files:
                return
            self.files[name] = model
            session.checkpoint = records.Checkpoint(session.generation, model.step, model.lineage, name)

    # -- faults

    def fault(self) -> None:
        self.budget -= 1
        live = [w for w in self.workers.values() if w.alive and not w.ended]
        kind = self.rng.choice(("ledger_killed", "ledger_slept", "worker_killed", "worker_suspected", "newcomer"))
        if kind == "ledger_killed":
            self.ledger = None
        elif kind == "ledger_slept" and self.ledger is not None:
            self.zombies.append(self.ledger)
            self.ledger = None
        elif kind in ("worker_killed", "worker_suspected") and live:
            worker = self.rng.choice(live)
            session = worker.session
            body = records.Exited(-9, "killed")
            self.broker.send(records.Request(worker.name, session.incarnation, 0, body, b""))
            if kind == "worker_killed":
                worker.alive = False
                if self.rng.random() < 0.7:
                    self.add_worker()
        elif kind == "newcomer" and len(self.workers) < 7:
            self.add_worker()
        else:
            return
        self.counts[kind] += 1

    # -- the judge

    def check(self) -> None:
        """Log, ledgers and the final model agree, and every sample is where it must be exactly once."""
        fold = self.broker.fold()
        state = fold.state
        assert state is not None
        assert state.done is not None
        state.check()
        stored = dict(rows.all_rows(state))
        assert dict(rows.all_rows(rows.load(self.spec, stored))) == stored
        model = self.files[state.done]
        assert model.lineage == state.lineage
        seen: Counter[tuple[int, int]] = Counter()
        for composition in model.steps:
            r = composition.ranges
            for i in range(0, len(r), 5):
                seen.update((r[i + 2], p) for p in range(r[i + 3], r[i + 3] + r[i + 4]))
        for epoch in range(self.spec.epochs):
            apart = state.epoch(epoch).quarantined
            for position in range(self.spec.samples):
                assert seen[epoch, position] == (not apart.contains(position)), (epoch, position)
        self.counts["quarantined"] += state.quarantined_total
        self.counts["void_entry"] += fold.void_entries
        self.counts["rolled_back"] += sum(_rollbacks(p) for p in self.broker.log)
        self.counts["generation"] += state.generation


def _rollbacks(payload: bytes) -> int:
    body = codec.decode(payload, records.Entry).body
    return sum(isinstance(e, records.RolledBack) for e in body.events) if isinstance(body, records.Cycle) else 0


__all__ = ["World", "replace"]
