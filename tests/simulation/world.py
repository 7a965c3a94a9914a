"""A seeded world: the real ledger, workers' sessions and services in virtual time, with an adversary between them.

One seed is one run; nothing is random but `World.rng`. Requests, replies and telemetry are lost, repeated and delayed
all the time, old requests are sent again, and `faults` kills, stops, suspects and revives processes between any two of
their steps. `judge` compares the log, while it grows and in the end, with what really is in models and files.

    python -m tests.simulation SEED          repeats one world and prints every event
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from antdt.worker.session import SessionOptions
from antdt_schemas import codec, records
from antdt_schemas.batches import DROP, EVEN, SMALL
from antdt_schemas.order import FEISTEL, SEQUENTIAL, Order
from antdt_schemas.ranges import Range
from antdt_schemas.topics import replies_partition
from antdt_streams.ledger.core.batches import Batches
from antdt_streams.ledger.options import LedgerOptions
from antdt_streams.runtime.memory import MemoryStore

from tests.simulation.changes import Changes
from tests.simulation.faults import Faults
from tests.simulation.group import Exchange, Group
from tests.simulation.judge import Judge
from tests.simulation.ledgers import Broker, LedgerProcess, knowledge
from tests.simulation.model import Snapshot
from tests.simulation.services import Services, eager_monitor
from tests.simulation.trainer import Died, Ousted, Worker

HOUR_0_MS = 10 * 3_600_000
TICKS_MAX = 60_000
TICKS_TO_END_MAX = 20_000
READMIT_TICKS = 500  # how soon whoever readmits looks whether that was done
REPLY_LOST, REPLY_REPEATED = 0.06, 0.06
REQUEST_LOST, REQUEST_REPEATED, OLD_REQUEST_SENT = 0.03, 0.03, 0.03


class Launch(NamedTuple):
    """Who started a worker, and what of its machine nobody else holds meanwhile."""

    name: str
    place: str
    takes_over: bool = False


def moves(seed: int) -> list[int]:
    """When requests are not any more what they were, in one world of ten."""
    rng = random.Random(f"requests/{seed}")
    return sorted(rng.sample(range(100, 4_000), 4)) if seed % 10 == 0 else []


def strategy_of(seed: int) -> str:
    """In seeds that end in 7, members average once in so many steps."""
    every = random.Random(f"every/{seed}").choice((2, 3, 8))
    return f"local-sgd/every={every}" if seed % 10 == 7 else "allreduce"


def stepped(seed: int, spec: records.JobSpec) -> records.JobSpec:
    """The same job with steps of a fixed size."""
    rng = random.Random(f"steps/{seed}")
    last, least = rng.choice((EVEN, EVEN, SMALL, DROP)), rng.choice((1, 1, 2))
    samples = max(spec.samples, spec.batch_size)
    spec = replace(spec, batches=last, samples=samples, local_batch_min=least, strategy="allreduce")
    spec = replace(spec, order=(SEQUENTIAL, FEISTEL)[seed // 2 % 2])
    return replace(spec, steps=rng.randint(1, 12), epochs=12) if seed % 5 == 3 else spec


def poisoned(seed: int, spec: records.JobSpec) -> dict[int, str]:
    """Samples that cannot be trained on, in some worlds, and what each does: it raises when it is loaded,
    it raises in the step, or it kills.
    """
    rng = random.Random(-1 - seed)
    if spec.max_attempts > 2 or rng.random() < 0.5:
        return {}
    samples = rng.sample(range(spec.samples), rng.choice((1, 1, 2)))
    return {sample: rng.choice(("sample_raises", "step_raises", "sample_kills")) for sample in samples}


class World:
    """The scheduler. `counts` says how often each thing really happened, `lines` what, where `story` asks for it."""

    def __init__(self, seed: int, story: bool = False, *, steps: bool = False) -> None:
        """steps: of a fixed size."""
        self.seed, self.story, self.lines = seed, story, list[str]()
        self.rng = rng = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.tick, self.now_s, self.clock_offset_ms = 0, 1.0, HOUR_0_MS
        self.draw(rng)
        if steps:
            self.spec = stepped(seed, self.spec)
        self.broker = Broker(self, "requests-1" if moves(seed) else "")
        self.broker.now_ms = HOUR_0_MS
        self.wires: dict[str, deque[bytes]] = {}
        self.sent: deque[bytes] = deque(maxlen=64)
        self.collectives: dict[Any, Exchange] = {}
        # What each member really computed for a round: of the models, not of the protocol.
        self.parts: dict[tuple[int | None, int], dict[str, tuple[Range, ...]]] = {}
        self.left, self.gone = set[tuple[int, str]](), set[str]()
        self.groups: dict[tuple[int, tuple[str, ...]], Group] = {}
        self.groups_with: dict[str, list[Group]] = {}
        self.files: dict[str, Snapshot] = {}
        # In one world of five with steps of a fixed size some workers take part with no samples.
        spares = steps and random.Random(f"spares/{seed}").random() < 0.2
        self.services, self.judge = Services(self, self.new_monitor(), spares=spares), self.new_judge(self)
        self.faults = self.new_faults(self, moves(seed))
        self.stores = list[MemoryStore]()
        self.ledgers: list[LedgerProcess] = []
        self.ledger_names = 0
        # The log has lost a tail and nobody has accepted that; and whether a store knows what was in it.
        self.loss = self.loss_is_known = False
        self.workers: dict[str, Worker] = {}
        # Second launches draw by themselves: worlds without one are what they were.
        self.second = random.Random(f"launches/{seed}")
        self.second_at = {self.second.randint(100, 4_000) for _ in range(self.second.choice((0, 0, 1, 3)))}
        self.quits = random.Random(f"quits/{seed}")
        self.quits_at = {self.quits.randint(100, 4_000) for _ in range(self.quits.choice((0, 0, 0, 1, 2)))}
        self.changes = Changes(self, steps=steps)
        self.rivals: list[Worker] = []
        self.first_launch, self.launches = Launch("launch-1", "here"), 1
        self.lives: Counter[str] = Counter()
        self.names = 0
        self.poison, self.mended, self.readmitted_at = poisoned(seed, self.spec), False, -READMIT_TICKS
        self.ever_poison = frozenset(self.poison)
        # What failed or was killed at which samples: flat triples (epoch, start, length) of each incarnation.
        self.failures, self.deaths = dict[str, list[int]](), dict[str, tuple[int, ...]]()
        self.due: list[tuple[int, Any]] = []
        self.next_due = TICKS_MAX
        self.models: dict[tuple[int | None, int], Any] = {}
        self.populate(rng)

    # -- what kind of world it is

    new_monitor = staticmethod(eager_monitor)
    new_judge: type[Judge] = Judge
    new_faults: type[Faults] = Faults
    new_worker: Callable[..., Worker] = Worker

    def draw(self, rng: random.Random) -> None:
        """The job, and how its parts are set."""
        self.tick_s = rng.choice((0.003, 0.01, 0.02))
        self.inline = rng.random() < 0.5
        self.checkpoint_every = rng.choice((50, 10, 2))
        self.commit_steps_max = rng.choice((1, 3, 64))
        self.prunes = rng.random() < 0.5
        self.favours = rng.random() < 0.5
        many = rng.random() < 0.25
        self.spec = records.JobSpec(
            "sim", rng.randint(100, 250) if many else rng.randint(4, 40), bytes(16), "sequential",
            1 if many else rng.randint(1, 3), self.seed, rng.randint(1, 5), rng.randint(4, 8), rng.randint(1, 4),
            rng.choice((1, 2, 99)), strategy_of(self.seed),
        )  # fmt: skip
        self.ledger_options = LedgerOptions(
            patience_ms=int(rng.choice((1_500, 5_000)) * 1_000 * self.tick_s),
            digest_every=rng.choice((1, 3, 10)),
            standby_patience_s=rng.choice((150, 500)) * self.tick_s,
            snapshot_every=rng.choice((50, 200, 1_000)),
        )
        self.session_options = SessionOptions(prefetch_steps=2, prefetch_s=0.0, commit_steps_max=self.commit_steps_max)

    def populate(self, rng: random.Random) -> None:
        """Who is there at the beginning."""
        self.add_ledger()
        if rng.random() < 0.15:
            self.add_ledger(standby=True)
        for _ in range(self.spec.workers_min):
            self.add_worker()

    # -- what the parts use

    def sample(self, epoch: int, position: int) -> int:
        """Which sample is at this position of an epoch."""
        return Order(self.spec.order, self.spec.seed, self.spec.samples).sample(epoch, position)

    def say(self, who: str, *what: Any) -> None:
        """One line of the story."""
        if self.story:
            self.lines.append(f"{self.tick:6d} {who:8} {' '.join(map(str, what))}")

    def count(self, what: str) -> None:
        """It happened."""
        self.counts[what] += 1

    def wire(self, request: records.Request) -> None:
        """A request on its way: those of one incarnation keep their order."""
        payload = codec.encode(request)
        self.wires.setdefault(request.incarnation, deque()).append(payload)
        self.sent.append(payload)
        self.say(request.incarnation, request.body)

    def operator(self, body: records.RequestBody, worker: str = "", incarnation: str = "") -> None:
        """A request of a launcher or an operator."""
        self.say("operator", worker, incarnation, body)
        self.broker.send(records.Request(worker, incarnation, 0, body, b""))

    def post(self, reply: records.Reply) -> None:
        """A reply on its way to whom it is for, be it all that read this partition: lost, or repeated, or neither."""
        if reply.grant is None:
            one = self.process_of(reply.incarnation)
            readers = [one] if one is not None else []
        else:
            partition = replies_partition(reply.worker)
            alive = (w for w in (*self.workers.values(), *self.rivals) if w.alive)
            readers = [w for w in alive if replies_partition(w.session.worker) == partition]
        for worker in readers:
            luck = self.rng.random()
            if luck < REPLY_LOST:
                self.count("reply_lost")
                continue
            worker.inbox.append(reply)
            if luck > 1 - REPLY_REPEATED:
                worker.inbox.append(reply)
                self.count("reply_repeated")

    def process_of(self, incarnation: str) -> Worker | None:
        """The living process that is this incarnation now."""
        worker = self.workers.get(incarnation.rpartition(".")[0])
        for one in (worker, *self.rivals):
            if one is not None and one.alive and one.incarnation == incarnation:
                return one
        return None

    def processes(self) -> list[Worker]:
        """Worker processes that live, and have not ended."""
        some = [w for w in self.workers.values() if w.alive and not w.life.ended]
        return some + [w for w in self.rivals if w.alive and not w.life.ended] if self.rivals else some

    # -- generations

    def group_of(self, grant: records.Grant) -> Group:
        """Its members, as all of them see it."""
        generation, members = grant.generation, tuple(m.incarnation for m in grant.members)
        group = self.groups.get((generation, members))
        if group is None:
            broken = any((generation, m) in self.left or m in self.gone for m in members)
            group = self.groups[generation, members] = Group(generation, members, broken)
            for name in members:
                self.groups_with.setdefault(name, []).append(group)
        return group

    def exchange(self, generation: int | None, name: Any) -> Exchange:
        """A collective of a generation."""
        found = self.collectives.get((generation, name))
        if found is None:
            found = self.collectives[generation, name] = Exchange()
        return found

    def leaves(self, incarnation: str, generation: int) -> None:
        """It takes part in nothing of this generation any more."""
        self.left.add((generation, incarnation))
        for group in self.groups_with.get(incarnation, ()):
            group.broken = group.broken or group.generation == generation

    def ends(self, incarnation: str) -> None:
        """It takes part in nothing any more."""
        self.gone.add(incarnation)
        for group in self.groups_with.get(incarnation, ()):
            group.broken = True

    def one_model(self, worker: Worker, rows: Exchange) -> None:
        """Whoever completes a round holds the same model under the same plan, before it is applied."""
        mine = worker.model.origin, worker.model.step, worker.model.lineage, worker.model.plan
        first, theirs, size = self.models.setdefault((worker.generation, worker.round), (mine, rows, len(rows)))
        assert mine == first, f"{worker.incarnation} and another member hold different models"
        assert theirs is rows and size == len(rows), "members complete different rounds"

    def aim(self, worker: Worker, share: float, why: str) -> None:
        """Kill this worker soon after an interesting moment."""
        if self.faults.budget and self.rng.random() < share:
            self.faults.struck(why)
            self.later(60, lambda: self.kill(worker) if worker.alive and not worker.ended else None)

    # -- processes

    def add_ledger(self, *, standby: bool = False) -> None:
        """A new ledger process, on a store that is new, or that a dead process has left behind. After a loss it is an
        operator's, while no other runs, on the store that knows most.
        """
        if self.loss and self.ledgers:
            return
        self.ledger_names += 1
        name = f"ledger{self.ledger_names}"
        if self.loss:
            store = max(self.stores, key=knowledge)
            self.ledgers.append(LedgerProcess(self, name, store, reason="the disk is gone"))
            return
        used = [ledger.store for ledger in self.ledgers]
        free = [store for store in self.stores if store not in used]
        if not free or self.rng.random() < 0.2:
            self.stores.append(MemoryStore())
            free = self.stores[-1:]
        self.ledgers.append(LedgerProcess(self, name, self.rng.choice(free), standby=standby))

    def next_life(self, name: str) -> int:
        """Number of the next incarnation of a worker."""
        self.lives[name] += 1
        return self.lives[name]

    def add_worker(self) -> None:
        """A worker that was not there before."""
        self.names += 1
        self.start_worker(f"w{self.names - 1}")

    def start_worker(self, name: str) -> None:
        """A new process; another one of this name is dead by now, or somebody else has its place."""
        self.begin(self.new_worker(self, name, self.next_life(name), self.first_launch))

    def begin(self, worker: Worker) -> None:
        """Where the place is taken, the new one is a rival."""
        before = self.workers.get(worker.name)
        if before is not None and before.alive:
            self.rivals.append(worker)
        else:
            self.workers[worker.name] = worker

    def launched_again(self) -> None:
        """The launcher was killed with everybody, and is started again where it was."""
        self.launches += 1
        self.first_launch = Launch(f"launch-{self.launches}", "here")

    def launch_second(self, worker: Worker) -> None:
        """Another launch of a worker that runs."""
        self.launches += 1
        takes_over = self.second.random() < 0.5
        self.count("second_launch_takes_over" if takes_over else "second_launch")
        launch = Launch(f"launch-{self.launches}", f"elsewhere-{self.launches}", takes_over)
        self.begin(self.new_worker(self, worker.name, self.next_life(worker.name), launch))

    def ousted(self, worker: Worker, why: str) -> None:
        """Its process has ended, and its launcher with it."""
        self.count("member_ousted" if worker.session.generation else "occupied")
        self.say(worker.incarnation, f"ends: {why}")
        worker.out_of_generation()
        worker.alive = False
        self.ends(worker.incarnation)

    def promote(self) -> None:
        """A rival whose worker has ended is that worker now."""
        for rival in [r for r in self.rivals if not r.alive or not self.workers[r.name].alive]:
            self.rivals.remove(rival)
            if rival.alive:
                self.workers[rival.name] = rival

    def kill(self, worker: Worker, back: bool = False, code: int = -9) -> None:
        """The process dies here. What it had sent may not have got through; its launcher may tell, or only silence."""
        self.say(worker.incarnation, "is killed")
        worker.alive = False
        self.ends(worker.incarnation)
        self.deaths[worker.incarnation] = worker.at_hand
        wire = self.wires.get(worker.incarnation)
        told = code == 75  # whoever fails says at what before it ends; that may be lost on its way like anything else
        for _ in range(self.rng.randint(0, len(wire)) if wire and not told else 0):
            assert wire is not None
            wire.pop()
        if self.rng.random() < 0.8:
            name, incarnation = worker.name, worker.incarnation
            at_hand = worker.at_hand if code < 0 else ()
            body = records.Exited(code, "killed", at_hand, step=worker.model.step + 1)
            self.later(200, lambda: self.operator(body, name, incarnation))
        others = sum(w.alive for w in self.workers.values())
        state = self.judge.fold.state
        needed = self.spec.workers_min if state is None or state.members.generation == 0 else 1
        if any(rival.name == worker.name for rival in self.rivals):
            return  # somebody waits for its place already
        if back or others < needed or self.rng.random() < 0.6:
            self.later(400, lambda: self.start_worker(worker.name))

    def later(self, ticks_max: int, what: Any) -> None:
        """Do it some time from now."""
        tick = self.tick + self.rng.randint(1, ticks_max)
        self.due.append((tick, what))
        self.next_due = min(self.next_due, tick)

    # -- the scheduler

    def run(self) -> None:
        """Until every worker has ended. Raises AssertionError on any disagreement, or when nothing moves any more."""
        faults, broker, draw, judge, step = self.faults, self.broker, self.rng.random, self.judge, self.step
        scheduled = {*faults.moves, *self.second_at, *self.quits_at, *self.changes.at, TICKS_MAX // 2}
        while self.tick < TICKS_MAX:
            self.tick = tick = self.tick + 1
            self.now_s += self.tick_s * draw() * 2
            broker.now_ms = int(self.now_s * 1000) + self.clock_offset_ms
            if faults.budget or faults.foreigner is not None:
                faults.maybe()
            if tick in scheduled:
                self.do_what_is_scheduled()
            if self.rivals:
                self.promote()
            if tick >= self.next_due:
                self.do_what_is_due()
            step()
            state = judge.fold.state
            if state is not None and state.done is not None and self.over():
                judge.verdict()
                if not self.reopened():
                    return
            assert tick - faults.last_tick < TICKS_TO_END_MAX, "after the last fault the job does not end"
        raise AssertionError("nothing moves any more")

    def do_what_is_scheduled(self) -> None:
        """What this world has at this very tick."""
        if self.tick in self.faults.moves:
            self.faults.requests_moved()
        if self.tick in self.second_at:
            self.faults.second_launch()
        if self.tick in self.quits_at:
            self.faults.script_left()
        if self.tick in self.changes.at:
            self.changes.strike()
        if self.tick == TICKS_MAX // 2:
            self.faults.budget = 0

    def do_what_is_due(self) -> None:
        """What was put off until now."""
        for item in [d for d in self.due if d[0] <= self.tick]:
            self.due.remove(item)
            item[1]()
        self.next_due = min((tick for tick, _ in self.due), default=TICKS_MAX)

    def over(self) -> bool:
        """The job is done, everybody who is alive has ended, and nobody is on the way."""
        if self.tick < self.readmitted_at + READMIT_TICKS:
            return False
        live = [w for w in (*self.workers.values(), *self.rivals) if w.alive]
        return bool(live) and all(w.ended for w in live)

    def reopened(self) -> bool:
        """Whether somebody mends the data, readmits what is in quarantine, and launches the job again."""
        state = self.judge.fold.state
        assert state is not None
        fixed = state.shards if isinstance(state.shards, Batches) else None
        never = state.stop is not None or (fixed is not None and not any(fixed.readmittable()))
        if never or not state.shards.quarantined_total:
            return False
        if not self.mended:
            self.mended, self.faults.last_tick = True, self.tick
            self.poison.clear()
            self.count("readmitted_after_the_end")
        self.readmitted_at = self.tick  # what was asked may be lost with the requests: it is asked again
        self.operator(records.Readmit())
        return True

    def launch_again(self) -> None:
        """Everybody has ended, but the job has not: what was in quarantine was readmitted."""
        state = self.judge.fold.state
        if state is not None and state.done is None and not self.due:
            for number in range(self.spec.workers_min):
                self.start_worker(f"w{number}")

    def step(self) -> None:
        """One step of one part."""
        luck = self.rng.random()
        if luck < 0.30:
            self.step_ledger()
        elif luck < 0.62:
            self.step_training()
        elif luck < 0.80:
            worker = self.some_process()
            if worker is not None:
                worker.talk()
        elif luck < 0.95:
            self.step_network()
        else:
            self.services.step()

    def some_process(self) -> Any:
        """Of those that `processes` has, one that is awake."""
        tick, found = self.tick, (*self.workers.values(), *self.rivals) if self.rivals else self.workers.values()
        return self.one_of([w for w in found if w.alive and w.asleep_until <= tick and not w.life.ended])

    def choose(self, some: list[Any]) -> Any:
        """One that is awake."""
        tick = self.tick
        return self.one_of([x for x in some if x.asleep_until <= tick])

    def one_of(self, awake: list[Any]) -> Any:
        """By chance, or the favourite of this world."""
        if len(awake) < 2:
            return awake[0] if awake else None
        if self.favours and self.rng.random() < 0.4:
            if self.rng.random() < 0.05:
                self.rng.choice(awake).weight = self.rng.random()
            return max(awake, key=lambda x: x.weight)
        return self.rng.choice(awake)

    def step_ledger(self) -> None:
        """One step of one ledger process; a new one starts where none is awake. Standbys have less to do."""
        ledger = None
        if len(self.ledgers) > 1:
            ledger = self.choose([x for x in self.ledgers if not x.stands_by or self.rng.random() < 0.1])
        ledger = ledger or self.choose(self.ledgers)
        if ledger is None:
            if self.rng.random() < 0.1:
                self.add_ledger()
            return
        for _ in ledger.thread:
            return
        self.ledgers.remove(ledger)

    def step_training(self) -> None:
        """One step of one training thread."""
        worker = self.some_process()
        if worker is None:
            if not any(w.alive for w in self.workers.values()) and not self.due:
                self.start_worker("w0")
            elif all(w.ended for w in self.workers.values() if w.alive):
                self.launch_again()
            return
        try:
            for _ in worker.thread:
                if worker.ended:  # the process is over, and whoever still waits for it in a group finds it gone
                    self.ends(worker.incarnation)
                return
        except Died as reason:
            self.say(worker.incarnation, reason)
            self.count(reason.what)
            self.faults.last_tick = self.tick  # each sample that fails is a strike of its own; TICKS_MAX bounds them
            self.kill(worker, back=True, code=reason.code)
            return
        except Ousted as reason:
            self.ousted(worker, str(reason))
            return
        self.ends(worker.incarnation)
        self.say(worker.incarnation, "ends")
        if self.rng.random() < 0.7:
            self.wire(records.Request(worker.name, worker.incarnation, 0, records.Leave(worker.session.generation)))
        if not worker.ended:  # drained
            worker.alive = False
            if worker.life.taken_over:
                self.count("taken_over")
            else:
                self.later(400, lambda: self.start_worker(worker.name))

    def step_network(self) -> None:
        """Some requests of one incarnation arrive."""
        full = [wire for wire in self.wires.values() if wire]
        if not full:
            return
        wire = self.rng.choice(full)
        for _ in range(min(self.rng.randint(1, 3), len(wire))):
            payload, luck = wire.popleft(), self.rng.random()
            if luck < REQUEST_LOST:
                self.count("request_lost")
                continue
            self.broker.send(payload)
            if luck > 1 - REQUEST_REPEATED:
                self.broker.send(payload)
                self.count("request_repeated")
        if self.sent and self.rng.random() < OLD_REQUEST_SENT:
            self.broker.send(self.rng.choice(self.sent))
            self.count("old_request_sent")
