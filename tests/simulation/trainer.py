"""A worker in virtual time: the very `Life` that an Agent drives, with its Session, Plans and Telemetry.

`live` is the training thread and `talk` the thread of the connection; both stop wherever they yield or return, and the
process may be killed, put to sleep or declared lost there. What an Agent does with tensors is a `Model` here.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from antdt.connect.client import renew
from antdt.data.sources import split
from antdt.files import checkpoint
from antdt.strategies.allreduce.composition import Round, Row
from antdt.strategies.base import GenerationClosed, Outcome, Part, Timings
from antdt.worker import instructions as ask
from antdt.worker.leaving import LEAVE_SHARE
from antdt.worker.life import Life
from antdt.worker.outside import LifeOptions, Outside
from antdt.worker.plans import Plans, Share
from antdt.worker.session import Composition, Phase, Session, Where
from antdt.worker.telemetry import StepTiming, Telemetry
from antdt_schemas import records
from antdt_schemas.errors import Occupied, Refused, Unavailable, UsageError
from antdt_schemas.limits import INIT_FILE
from antdt_schemas.ranges import Range

from tests.simulation.group import Concluded, Exchange, Group
from tests.simulation.model import FOR_EVER_S, Model, Replica, Snapshot

if TYPE_CHECKING:
    from tests.simulation.world import Launch, World

Steps = Generator[None, None, Any]
LEAVE_EARLY_S = 20.0
SKIPPED_ONE_OF = 16
FILE_FAILS = 0.02
READ_MAX, DECISIONS_MAX = range(5), range(3)  # of what has come, in one turn


class Died(Exception):
    """The process ends; whoever watches it starts another one."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(what)
        self.what, self.code = what, code


class Ousted(Exception):
    """Somebody else is this worker: the process ends, and its launcher with it."""


class Loads:
    """What loads samples and computes with them, which some do not allow."""

    world: World
    name: str
    session: Session
    model: Model
    at_hand: tuple[int, ...]
    generation: int | None

    def compute(self, ranges: Sequence[Range]) -> Steps:
        """Load and compute."""
        world = self.world
        self.at_hand = tuple(v for r in ranges for v in (r.epoch, r.start, r.length))
        yield
        for r in ranges:
            for position in range(r.start, r.start + r.length):
                sample = world.sample(r.epoch, position)
                if sample in world.poison:
                    world.judge.may_fail(r.epoch, position, self.generation)
                    self.fail(world.poison[sample], (r.epoch, position, 1))
        self.at_hand = ()

    def fail(self, what: str, exactly: tuple[int, int, int]) -> None:
        """It says at what, unless it dies on the spot; then its launcher does."""
        world, session, incarnation = self.world, self.session, self.session.incarnation
        if what == "sample_kills":
            world.deaths[incarnation] = self.at_hand
            raise Died(what, -11)
        where = exactly if what == "sample_raises" else self.at_hand
        world.failures.setdefault(incarnation, []).extend(where)
        if where:
            body = records.Failed(session.generation, *where[:3], "", what, self.model.step + 1, tuple(where[3:]))
            world.wire(records.Request(self.name, incarnation, 0, body, b""))
        raise Died(what, 75)


class Worker(Replica, Loads):
    """One process, which is the strategy and the files of its life, too. `left` of the world says who is out of which
    generation for good. `quits`: its script leaves the loop. `stops`: it wants no more steps, for this reason; it is
    empty where another one's does.
    """

    def __init__(self, world: World, name: str, life: int, launch: Launch) -> None:
        super().__init__(f"{name}.{life}")
        self.world, self.name, self.launch = world, name, launch
        where = Where("h", 1, name, "", life, launch.name, launch.name, launch.place, launch.takes_over)
        spec = replace(world.spec, batch_size=world.changes.stated) if world.spec.batches else world.spec
        self.session = Session(name, f"{name}.{life}", spec, where, world.session_options)
        self.stops: str | None = None
        self.plans = Plans(world.spec.batch_size)
        self.telemetry = Telemetry(name, self.incarnation, name, "")
        self.inbox: deque[records.Reply] = deque()
        self.generation: int | None = None
        self.group: Group | None = None
        self.round, self.decisions_read = 0, 0
        self.quits, self.quit_at_s = False, 0.0
        self.alive, self.asleep_until, self.weight = True, 0, world.rng.random()
        self.seconds_per_sample = world.rng.choice((0.01, 0.01, 0.01, 0.05))
        self.written_step, self.owes, self.may_try, self.owes_init = -1, False, True, False
        self.at_hand: tuple[int, ...] = ()
        self.part: Part | None = None
        self.optimizer_steps = 1
        self.life = self._life()
        self.thread = self.live()

    def _life(self) -> Life:
        world = self.world
        ticks = random.Random(f"grace/{world.seed}/{self.incarnation}").randint(300, 3_000)
        grace_s = ticks * world.tick_s / LEAVE_SHARE
        said = LifeOptions("sim", world.spec.workers_min, FOR_EVER_S, world.checkpoint_every, grace_s)
        outside = Outside(lambda: world.now_s, nullcontext(), lambda _, what: world.say(self.incarnation, what))
        return Life(self.session, self.plans, self, self, said, outside)

    @property
    def incarnation(self) -> str:
        """Which life of this worker."""
        return self.session.incarnation

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.life.ended

    def tell(self) -> None:
        """SIGTERM."""
        if self.life.told_at_s is None:
            self.life.told_at_s = self.world.now_s

    # -- the training thread

    def live(self) -> Steps:
        """Train until the end; each yield is a moment at which anything may happen."""
        try:
            course = ask.Course(self.life.run())
            while course.asks is not None:
                if self.quits and isinstance(course.asks, ask.Between | ask.Train):
                    course = self.leave_the_loop(course)
                    continue
                try:
                    heard = yield from self.perform(course.asks)
                except GenerationClosed as closed:
                    course.closed(closed)
                else:
                    course.go_on(heard)
        except UsageError:
            assert self.session.wanted_else, "it asks for another batch size, and the job is done"
            self.world.changes.stated = self.world.judge.stated
            raise Died("too_late_for_another_size", 64) from None
        except Refused as error:
            if "and its script states" not in str(error):
                raise
            # Somebody of another launch seems to live: who launches with another size is told so, and does it again.
            raise Died("refused_another_size", 64) from None
        except Unavailable:
            assert self.quit_at_s, "it waits for the others as long as it takes"
        except Occupied as error:
            if self.session.phase is Phase.OUSTED:
                raise Ousted(str(error)) from error
        if not self.ended:
            self.out_of_generation()

    def leave_the_loop(self, course: ask.Course) -> ask.Course:
        """The script has, with a batch at hand or without."""
        self.world.count("left_the_loop")
        self.quits, self.at_hand, self.quit_at_s = False, (), self.world.now_s
        given_up = isinstance(course.asks, ask.Train)
        course.end()
        return ask.Course(self.life.leave_early(self.quit_at_s + LEAVE_EARLY_S, regroup=given_up))

    def perform(self, asked: ask.Instruction) -> Steps:
        """What an Agent does; returns what is to be heard of it."""
        heard: Any = None
        match asked:
            case ask.Wait(met, patience_s):
                with self.session.waiting():
                    heard = yield from self.wait(met, patience_s)
            case ask.Form(grant):
                self.generation, self.round = grant.generation, 0
                self.group = self.world.group_of(grant)
                yield
            case ask.Align(grant):
                yield from self.align(grant)
            case ask.Announce(part):
                assert not self.void, "a member without a valid state takes part"
                self.part, self.optimizer_steps = part, 1
            case ask.Train(ranges, _, batch_size, units):
                steps = list(units) or split(ranges, -(-sum(r.length for r in ranges) // batch_size))
                self.optimizer_steps = 1 if units else len(steps)
                for number, step in enumerate(steps):
                    if number and not units:
                        self.world.aim(self, 0.1, "killed_in_period")
                    yield from self.compute(step)
            case ask.Finish():
                heard = yield from self.finish()
            case ask.GatherRandom():
                yield from self.gather(("random", self.round), None)
            case ask.WriteFile():
                heard = yield from self.write()
            case ask.Between():
                yield
            case ask.Leave():
                self.out_of_generation()
            case _:
                heard = self.do(asked)
        return heard

    def do(self, asked: ask.Instruction) -> Any:
        """What takes no time."""
        match asked:
            case ask.Stands():
                self.world.say(self.incarnation, f"stands in generation {self.generation} at step {self.model.step}")
            case ask.Accounted(outcome):
                if any(row.stopping for row in outcome.rows):
                    self.life.stop(self.stops or "")
                    self.stops = self.stops or ""
                if outcome.applied:
                    self.measure(outcome.rows[self.session.rank])
            case ask.Prune():
                self.prune()
            case ask.Renew(reason):
                return self.renew(reason)
            case ask.TakeFinal(file):
                self.load(self.world.files[file])
            case _:
                assert isinstance(asked, ask.Enter | ask.RetryInit), asked
        return None

    def wait(self, met: Any, patience_s: float) -> Steps:
        """Until it is met, or its time is up."""
        until_s = self.world.now_s + patience_s
        while not met():
            if self.world.now_s >= until_s:
                return False
            yield
        return True

    def align(self, grant: records.Grant) -> Steps:
        """Take over the state of the grant's source, or that of a file."""
        if grant.source is None and self.session.rank == 0:
            yield from self.restore(grant.restore_file or "")
        head = self.model.step, self.model.lineage, self.model.plan, self.void
        heads = yield from self.gather("heads", head)
        source = grant.source or next(iter(grant.members)).incarnation
        assert not heads[source][3], "the source of an adoption holds no valid state"
        if len(grant.members) > 1 and (len(set(heads.values())) > 1 or self.model.step == 0):
            yield from self.adopt(source)

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
                raise GenerationClosed("it closed in the middle of an adoption")
            self.load(handed[source])

    def finish(self) -> Steps:
        """Exchange, apply."""
        part, world = self.part, self.world
        assert part is not None
        row = Row(
            samples=part.samples,
            plan_seen=self.plans.newest if world.inline else part.plan_seen,
            plan=self.model.plan,
            lineage=self.model.lineage,
            step=self.model.step,
            ended=part.ended,
            reference=part.reference,
            ranges=tuple(part.ranges) if part.place is None else (),
            leaving=part.leaving,
            checkpoint=part.checkpoint,
            stopping=self.stops is not None,
            split=part.place.split if part.place is not None else 0,
        )
        world.parts.setdefault((self.generation, self.round), {})[self.incarnation] = tuple(part.ranges)
        rows = yield from self.gather(("round", self.round), row)
        if rows.concluded is None or rows.concluded.before is not self.model:
            rows.concluded = self.conclude(rows)
        concluded = rows.concluded
        result = concluded.result
        if result.total and not world.inline:
            yield from self.gather(("reduce", self.round), self.model.origin)
        self.round += 1
        world.one_model(self, rows)
        whole = concluded.composition is not None
        if part.place is not None and not whole:
            world.count("round_without_a_part")
        if whole:
            self.apply(concluded)
        return Outcome(result.total, result.rows, whole, result.ended, Timings(0, 0, 0), concluded.skipped)

    def conclude(self, rows: Exchange) -> Concluded:
        """What the rows mean for whoever holds this model."""
        assert self.group is not None and self.part is not None
        result, place = Round.of([rows[m] for m in self.group.members]), self.part.place
        concluded, step = Concluded(result, self.model), self.model.step + 1
        if result.stopping:
            self.world.count("round_that_stops")
            return concluded
        if result.total == 0 if place is None else result.total != place.total:
            return concluded
        lineage = result.lineage_after(self.model.lineage, step, place)
        skipped = concluded.skipped = self.authors(result, lineage) if result.total else None
        made = result.composition(step, skipped, place)
        if place is None:
            concluded.model = self.model.then(made.ranges, result.plan, skipped)
        else:
            parts = self.world.parts[self.generation, self.round]
            truth = tuple(r for member in self.group.members for r in parts[member])
            concluded.model = self.model.after(place, truth, result.plan, skipped)
            self.world.count("step_whole" if result.total else "step_empty")
        assert concluded.model.lineage == lineage, "what was added is not what is reported"
        concluded.composition = Composition(step, concluded.model.ranges, lineage, made.plan, made.skipped)
        return concluded

    def apply(self, concluded: Concluded) -> None:
        """The step is in the model."""
        assert concluded.composition is not None and concluded.before is self.model
        assert len(self.pending) < self.pending_max, "steps pile up uncommitted"
        self.model = concluded.model
        self.pending.append(concluded.composition)
        self.world.count("step")
        if concluded.skipped is not None:
            self.world.count("step_skipped")

    def measure(self, mine: Any) -> None:
        """How long the own part took."""
        samples, plan = -(-mine.samples // self.optimizer_steps), self.plans.of(mine.plan)
        if not samples and plan is not None and plan.shares.get(self.name) == Share(0):
            self.world.count("spared")
        own_s, made = 0.02 + samples * self.seconds_per_sample, (self.session.generation, self.model.step)
        self.telemetry.add(StepTiming(*made, samples, mine.plan, 0.0, own_s, 0.0, 0.0))

    def authors(self, result: Round, lineage: bytes) -> tuple[str, ...] | None:
        """Whose gradient is not finite: it depends on the samples, so on the lineage, and all members see the same."""
        if lineage[0] % SKIPPED_ONE_OF:
            return None
        return tuple(w for w, row in zip(self.life.workers, result.rows, strict=True) if row.samples and lineage[1] % 4)

    def write(self) -> Steps:
        """A durable file, or a disk that is full."""
        session, world, step = self.session, self.world, self.model.step
        name = checkpoint.file_name(session.generation, self.incarnation, step)
        assert name not in world.files, f"{name} is written twice"
        yield
        if world.rng.random() < FILE_FAILS:
            world.count("file_failed")
            self.owes = True
            return None
        world.files[name] = Snapshot(self.model, tuple(self.pending))
        world.count("file_written")
        world.aim(self, 0.15, "killed_after_file")
        self.written_step, self.owes = step, False
        yield
        return records.Checkpoint(session.generation, step, self.model.lineage, name)

    def prune(self) -> None:
        """What the ledger keeps no longer is removed."""
        world = self.world
        if world.prunes:
            oldest = min(self.session.files.kept_steps)
            for name in [n for n, s in world.files.items() if n != INIT_FILE and s.model.step < oldest]:
                del world.files[name]
                world.count("file_removed")

    # -- in and out

    def gather(self, name: Any, value: Any) -> Steps:
        """A collective: it completes only where all have entered, and may fail anywhere once somebody is out."""
        world = self.world
        group, rows = self.group, world.exchange(self.generation, name)
        assert group is not None
        assert self.incarnation not in rows, f"{self.incarnation} enters {name} of {self.generation} twice"
        rows[self.incarnation] = value
        world.aim(self, 0.003, "killed_in_collective")
        yield
        while True:
            full, broken = len(rows) == len(group.members), self.broken()
            if full and not (broken and world.rng.random() < 0.5):
                if broken:
                    world.count("completed_though_broken")
                    world.aim(self, 0.2, "killed_after_partial_completion")
                return rows
            if broken:
                if full:
                    world.count("failed_though_complete")
                raise GenerationClosed("somebody is out of it")
            yield

    def broken(self) -> bool:
        """Somebody is out of the generation, or this member was told that it is closed."""
        session, group = self.session, self.group
        if session.generation != self.generation or session.phase not in (Phase.MEMBER, Phase.ENDED):
            return True
        assert group is not None and group.generation == self.generation
        return group.broken

    def out_of_generation(self) -> None:
        """Nobody completes a collective with this member any more that it has not entered yet."""
        if self.generation is not None:
            self.world.leaves(self.incarnation, self.generation)
        self.generation = None

    def renew(self, reason: str) -> Session:
        """This incarnation was declared lost, and the process is another one."""
        world, old = self.world, self.session
        world.count("rejoined")
        world.say(self.incarnation, f"joins anew: {reason}")
        world.ends(self.incarnation)
        self.session = renew(old, f"{self.name}.{world.next_life(self.name)}")
        self.telemetry = Telemetry(self.name, self.incarnation, self.name, "")
        self.inbox.clear()
        return self.session

    # -- the thread of the connection

    def talk(self) -> None:
        """Read some of what came, send what is due."""
        world, rng = self.world, self.world.rng
        for _ in range(min(rng.choice(READ_MAX), len(self.inbox))):
            self.session.on_reply(self.inbox.popleft())
        self.read_decisions(rng.choice(DECISIONS_MAX))
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
        if limit and self.world.changes.wish is not None:
            self.plans.wish = self.world.changes.wish
        for decision in self.world.services.decisions(self.decisions_read, limit):
            self.decisions_read += 1
            if not self.plans.add(decision):
                self.world.count("decision_repeated")
