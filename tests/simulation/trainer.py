"""A worker in virtual time: the real Session, Plans, Telemetry and rounds, in the order in which the Agent calls them.

`life` is the training thread and `talk` the thread of the connection; both stop wherever they yield or return, and the
process may be killed, put to sleep or declared lost there. What the Agent does with tensors is a `Model` here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from antdt.connect.client import renew
from antdt.strategies.allreduce.composition import RANGES_MAX, Round, Row
from antdt.worker import checkpoint
from antdt.worker.plans import Plans
from antdt.worker.session import Composition, Phase, Session, SessionOptions, Where
from antdt.worker.telemetry import StepTiming, Telemetry
from antdt_schemas import records
from antdt_schemas.limits import INIT_FILE
from antdt_schemas.ranges import Range

from tests.simulation.model import Model, Snapshot

if TYPE_CHECKING:
    from tests.simulation.world import Launch, World

Steps = Generator[None, None, Any]
PENDING_MAX = 64
SKIPPED_ONE_OF = 16


class Closed(Exception):
    """The generation is over for this member."""


class Died(Exception):
    """The process ends; whoever watches it starts another one."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(what)
        self.what, self.code = what, code


class Ousted(Exception):
    """Somebody else is this worker: the process ends, and its launcher with it."""


class Worker:
    """One process. `left` of the world says who is out of which generation for good."""

    def __init__(self, world: World, name: str, life: int, launch: Launch) -> None:
        self.world, self.name, self.launch = world, name, launch
        options = SessionOptions(prefetch_steps=2, prefetch_s=0.0, commit_steps_max=world.commit_steps_max)
        where = Where("h", 1, name, "", life, launch.name, launch.name, launch.place, launch.takes_over)
        self.session = Session(name, f"{name}.{life}", world.spec, where, options)
        self.plans = Plans(world.spec.batch_size)
        self.telemetry = Telemetry(name, self.incarnation, name, "")
        self.model, self.pending, self.void = Model(self.incarnation), list[Composition](), False
        self.inbox: deque[records.Reply] = deque()
        self.generation: int | None = None
        self.members: tuple[str, ...] = ()
        self.workers: list[str] = []
        self.round, self.decisions_read = 0, 0
        self.alive, self.ended, self.departed = True, False, False
        self.leave_by, self.left_behind, self.taken_over = -1, -1, False
        self.asleep_until, self.weight = 0, world.rng.random()
        self.seconds_per_sample = world.rng.choice((0.01, 0.01, 0.01, 0.05))
        self.written_step, self.previous_total = -1, 1
        self.at_hand: tuple[int, ...] = ()
        self.thread = self.life()

    @property
    def incarnation(self) -> str:
        """Which life of this worker."""
        return self.session.incarnation

    # -- told to leave

    def tell(self) -> None:
        """SIGTERM."""
        if self.leave_by < 0:
            self.leave_by = self.world.tick + self.world.second.randint(300, 3_000)

    @property
    def draining(self) -> bool:
        """Told to leave, by SIGTERM or by whoever takes over."""
        if self.session.told and self.leave_by < 0:
            self.taken_over = True
            self.tell()
        return self.leave_by >= 0

    @property
    def may_go(self) -> bool:
        """Told to leave, and between generations: nothing is lost with this model, or there is no time to wait."""
        nothing = self.void or self.session.generation == 0 or self.model.step in (0, self.left_behind)
        return self.draining and (nothing or self.world.tick > self.leave_by)

    # -- the training thread

    def life(self) -> Steps:
        """Train until the end; each yield is a moment at which anything may happen."""
        while not self.ended:
            if self.departed or (self.generation is None and self.may_go):
                self.out_of_generation()
                return
            try:
                yield from self.enter()
                if not self.ended and self.generation is not None:
                    yield from self.one_round()
            except Closed:
                self.leave()
            yield

    def enter(self) -> Steps:
        """Be a member of a generation that stands, or be at the end."""
        while self.generation is None and not self.ended and not self.may_go:
            phase = self.session.phase
            assert phase is not Phase.FAILED, f"{self.incarnation} was refused: {self.session.reason}"
            if phase is Phase.ENDED:
                self.load(self.world.files[self.session.file])
                self.ended = True
            elif phase is Phase.OUSTED:
                raise Ousted(self.session.reason)
            elif phase is Phase.LOST:
                self.rejoin()
            elif phase is Phase.MEMBER:
                yield from self.form()
            elif phase is Phase.CLOSED:
                self.leave()
            yield

    def form(self) -> Steps:
        """Meet the members of the grant and take over the state of its source, or that of a file."""
        session, grant = self.session, self.session.grant
        assert grant is not None
        self.generation, self.round = grant.generation, 0
        self.members = tuple(m.incarnation for m in grant.members)
        yield
        if grant.source is None and session.rank == 0:
            yield from self.restore(grant.restore_file or "")
        head = self.model.step, self.model.lineage, self.model.plan, self.void
        heads = yield from self.gather("heads", head)
        source = grant.source or self.members[0]
        assert not heads[source][3], "the source of an adoption holds no valid state"
        if len(self.members) > 1 and (len(set(heads.values())) > 1 or self.model.step == 0):
            yield from self.adopt(source)
        while self.plans.newest < self.model.plan and not self.broken():
            yield
        self.workers = [m.worker for m in grant.members]
        self.previous_total, self.written_step = 1, -1
        self.drop_pending()
        pending = [Composition(c.step, c.ranges, b"", c.plan, c.skipped) for c in self.pending]
        session.begin(pending, self.model.lineage)
        self.world.say(self.incarnation, f"stands in generation {self.generation} at step {self.model.step}")

    def restore(self, file: str) -> Steps:
        """Rank 0 loads the file. The model before the first step is kept as one when it is first used."""
        files = self.world.files
        if file == INIT_FILE and file not in files:
            if self.model.step or self.void:
                raise Died("model_before_the_first_step_gone", 42)
            files[file] = Snapshot(self.model, ())
            return
        self.void = True
        yield
        self.load(files[file])

    def adopt(self, source: str) -> Steps:
        """The source's state, whole, or none."""
        snapshot = Snapshot(self.model, tuple(self.pending)) if self.incarnation == source else None
        handed = yield from self.gather("adoption", snapshot)
        if snapshot is None:
            self.void = True
            yield
            yield
            if self.broken() and self.world.rng.random() < 0.5:
                self.world.count("torn_adoption")
                raise Closed
            self.load(handed[source])

    def load(self, snapshot: Snapshot) -> None:
        """Overwrite the model: void until the last byte is there."""
        self.model, self.pending, self.void = snapshot.model, list(snapshot.pending), False

    def one_round(self) -> Steps:
        """Take, announce, reduce, apply, report."""
        session, world = self.session, self.world
        shares = self.plans.shares(self.model.plan, self.workers)
        batch_size = shares[session.rank].batch_size
        leaving, ranges = self.draining, tuple[Range, ...]()
        if not leaving:
            yield from self.await_samples()
            session.leases.batch_size = batch_size
            ranges = tuple(Range(*r) for r in session.leases.take(batch_size, RANGES_MAX))
            yield from self.compute(ranges)
        assert not self.void, "a member without a valid state takes part"
        row = Row(
            samples=sum(r.length for r in ranges),
            plan_seen=self.plans.newest,
            plan=self.model.plan,
            lineage=self.model.lineage,
            step=self.model.step,
            ended=session.phase is Phase.ENDED,
            reference=sum(s.batch_size for s in shares),
            ranges=ranges,
            leaving=leaving,
            checkpoint=session.rank == 0 and world.rng.random() < world.checkpoint_share,
        )
        rows = yield from self.gather(("round", self.round), row)
        result = Round.of([rows[m] for m in self.members])
        if result.total and not world.inline:
            yield from self.gather(("reduce", self.round), self.model.origin)
        self.round, self.previous_total = self.round + 1, result.total
        world.one_model(self, rows)
        if result.total:
            self.apply(result)
        else:
            session.proven(self.model.step)
        self.ended = self.ended or result.ended
        self.drop_pending()
        yield from self.checkpoint(result)

    def compute(self, ranges: tuple[Range, ...]) -> Steps:
        """Load and compute, which some samples do not allow."""
        world = self.world
        self.at_hand = tuple(v for r in ranges for v in (r.epoch, r.start, r.length))
        yield
        for r in ranges:
            for position in range(r.start, r.start + r.length):
                if position in world.poison:
                    self.fail(world.poison[position], (r.epoch, position, 1))
        self.at_hand = ()

    def fail(self, what: str, exactly: tuple[int, int, int]) -> None:
        """It says at what, unless it dies on the spot; then its launcher does."""
        world, session = self.world, self.session
        if what == "sample_kills":
            world.deaths[self.incarnation] = self.at_hand
            raise Died(what, -11)
        where = exactly if what == "sample_raises" else self.at_hand
        world.failures.setdefault(self.incarnation, []).extend(where)
        for i in range(0, len(where), 3):
            body = records.Failed(session.generation, *where[i : i + 3], "", what)
            world.wire(records.Request(self.name, self.incarnation, 0, body, b""))
        raise Died(what, 75)

    def await_samples(self) -> Steps:
        """Wait a little where nothing is held."""
        session = self.session
        for _ in range(6 if not session.leases.answered else 2 if self.previous_total == 0 else 0):
            if session.leases.untaken or session.phase is not Phase.MEMBER:
                return
            yield

    def apply(self, result: Round) -> None:
        """The step is in the model: everybody entered it, so everybody had applied the one before."""
        session, step = self.session, self.model.step + 1
        lineage = result.lineage_after(self.model.lineage, step)
        skipped = self.authors(result, lineage)
        made = result.composition(step, skipped)
        self.model = self.model.then(made.ranges, result.plan, skipped)
        assert self.model.lineage == lineage, "what was added is not what is reported"
        self.pending.append(Composition(step, made.ranges, lineage, made.plan, made.skipped))
        assert len(self.pending) < PENDING_MAX, "steps pile up uncommitted"
        session.proven(step - 1)
        session.applied(self.pending[-1])
        session.leases.observe(result.total, result.rows[0].reference)
        self.world.count("step")
        mine = result.rows[session.rank]
        own_s = 0.02 + mine.samples * self.seconds_per_sample
        self.telemetry.add(StepTiming(session.generation, step, mine.samples, mine.plan, 0.0, own_s, 0.0, 0.0))

    def authors(self, result: Round, lineage: bytes) -> tuple[str, ...] | None:
        """Whose gradient is not finite: it depends on the samples, so on the lineage, and all members see the same."""
        if lineage[0] % SKIPPED_ONE_OF:
            return None
        self.world.count("step_skipped")
        return tuple(w for w, row in zip(self.workers, result.rows, strict=True) if row.samples and lineage[1] % 4)

    def checkpoint(self, result: Round) -> Steps:
        """Files where the rows ask for them, when somebody leaves on purpose, and the final one."""
        session, step, world = self.session, self.model.step, self.world
        leaving = any(row.leaving for row in result.rows)
        if leaving:
            self.left_behind = step
        asked = leaving or (result.total > 0 and any(row.checkpoint for row in result.rows))
        if asked:  # everybody's random state goes into the file: this, too, proves that all have applied the step
            yield from self.gather(("random", self.round), None)
            session.proven(step)
        final = session.finished and session.committed == step
        if session.rank == 0 and (asked or final) and step not in (self.written_step, 0):
            if session.files.newest is None or leaving:
                yield from self.write(step)
        if result.rows[session.rank].leaving:
            session.leaving = True
            for _ in range(world.rng.randint(1, 100)):  # a bounded wait for the commit of this step
                if session.committed >= step and session.files.newest is None:
                    break
                yield
            self.departed = True

    def write(self, step: int) -> Steps:
        """The file first, then its event; what the ledger keeps no longer is removed."""
        session, world = self.session, self.world
        name = checkpoint.file_name(session.generation, self.incarnation, step)
        assert name not in world.files, f"{name} is written twice"
        yield
        world.files[name] = Snapshot(self.model, tuple(self.pending))
        world.count("file_written")
        world.aim(self, 0.15, "killed_after_file")
        self.written_step = step
        yield
        session.files.wrote(records.Checkpoint(session.generation, step, self.model.lineage, name))
        if world.prunes:
            oldest = min(session.files.kept_steps)
            old = [n for n, s in world.files.items() if n != INIT_FILE and s.model.step < oldest]
            for name in old:
                del world.files[name]
                world.count("file_removed")

    def drop_pending(self) -> None:
        """What is committed need not be reported again."""
        self.pending = [c for c in self.pending if c.step > self.session.committed]

    # -- in and out

    def gather(self, name: Any, value: Any) -> Steps:
        """A collective: it completes only where all have entered, and may fail anywhere once somebody is out."""
        world = self.world
        rows = world.collectives.setdefault((self.generation, name), {})
        assert self.incarnation not in rows, f"{self.incarnation} enters {name} of {self.generation} twice"
        rows[self.incarnation] = value
        world.aim(self, 0.003, "killed_in_collective")
        yield
        while True:
            full, broken = len(rows) == len(self.members), self.broken()
            if full and not (broken and world.rng.random() < 0.5):
                if broken:
                    world.count("completed_though_broken")
                    world.aim(self, 0.2, "killed_after_partial_completion")
                return rows
            if broken:
                if full:
                    world.count("failed_though_complete")
                raise Closed
            yield

    def broken(self) -> bool:
        """Somebody is out of the generation, or this member was told that it is closed."""
        session, left = self.session, self.world.left
        if session.generation != self.generation or session.phase not in (Phase.MEMBER, Phase.ENDED):
            return True
        return any((self.generation, m) in left or m in self.world.gone for m in self.members)

    def out_of_generation(self) -> None:
        """Nobody completes a collective with this member any more that it has not entered yet."""
        if self.generation is not None:
            self.world.left.add((self.generation, self.incarnation))
        self.generation, self.workers = None, []

    def leave(self) -> None:
        """Out of the generation, then ask for the next one."""
        self.out_of_generation()
        self.session.regroup(None if self.void else self.model.step, self.model.lineage)

    def rejoin(self) -> None:
        """This incarnation was declared lost: its model is void, and it comes back as a new one."""
        world, old = self.world, self.session
        world.count("rejoined")
        world.say(self.incarnation, f"joins anew: {old.reason}")
        world.gone.add(self.incarnation)
        self.out_of_generation()
        self.void = True
        self.session = renew(old, f"{self.name}.{world.next_life(self.name)}")
        self.telemetry = Telemetry(self.name, self.incarnation, self.name, "")
        self.inbox.clear()

    # -- the thread of the connection

    def talk(self) -> None:
        """Read some of what came, send what is due."""
        world, rng = self.world, self.world.rng
        for _ in range(rng.randint(0, 4)):
            if self.inbox:
                self.session.on_reply(self.inbox.popleft())
        self.read_decisions(rng.randint(0, 2))
        for request in self.session.tick(world.now_s):
            world.wire(request)
            if isinstance(request.body, records.Commit):
                world.aim(self, 0.02, "killed_after_commit_was_sent")
        batch = self.telemetry.batch(world.now_s)
        if batch is not None:
            self.telemetry.sent(world.now_s)
            arrived = world.services.report(batch)
            self.telemetry.acknowledged(len(batch.step), world.now_s, arrived=arrived)

    def read_decisions(self, limit: int) -> None:
        """Decisions in their order, repeats included."""
        for decision in self.world.services.decisions(self.decisions_read, limit):
            self.decisions_read += 1
            if not self.plans.add(decision):
                self.world.count("decision_repeated")
