"""What servers and workers of a simulated job have in common: the very `Life` that an Agent drives, its session, and
two threads that stop at every yield.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from antdt.connect.client import renew
from antdt.host.whereabouts import Standing
from antdt.strategies.base import GenerationClosed
from antdt.worker import instructions as ask
from antdt.worker.leaving import LEAVE_SHARE
from antdt.worker.life import Life
from antdt.worker.outside import LifeOptions, Outside
from antdt.worker.plans import Plans
from antdt.worker.session import OVER, WORKER, Phase, Session, Where
from antdt_schemas import records
from antdt_schemas.batches import Cursor
from antdt_schemas.errors import Occupied, Unavailable

from tests.simulation.model import FOR_EVER_S, Model
from tests.simulation.trainer import LEAVE_EARLY_S, READ_MAX, Ousted, Steps

if TYPE_CHECKING:
    from tests.simulation.servers.world import ServedWorld
    from tests.simulation.world import Launch

PENDING_MAX = 16


class Process:
    """One process, which is the strategy and the files of its life, too. `hung_until`: its training thread does nothing
    until this tick, while that of its connection does.
    """

    role: str
    life_of: type[Life]
    ranges_max, pending_max, form_patience_s = 64, PENDING_MAX, FOR_EVER_S
    plan, lineage, void = 0, b"", False
    written_step, owes, may_try, owes_init = -1, False, True, False

    def __init__(self, world: ServedWorld, name: str, life: int, launch: Launch) -> None:
        self.world, self.name, self.launch = world, name, launch
        where = Where("h", 1, name, "", life, launch.name, launch.name, launch.place, launch.takes_over)
        self.session = Session(name, f"{name}.{life}", world.spec, where, world.session_options, self.role)
        self.inbox: deque[records.Reply] = deque()
        self.alive, self.asleep_until, self.hung_until = True, 0, 0
        self.weight, self.quits, self.given_up = world.rng.random(), False, False
        self.at_hand: tuple[int, ...] = ()
        self.generation: int | None = None
        self.model, self.cursor = Model("init"), Cursor()
        self.pending: list[Any] = []
        self.phase, self.since_s = "forming", world.now_s
        self.plans = Plans(world.spec.batch_size)
        self.life = self._life()
        self.thread = self.live()

    def _life(self) -> Life:
        world: Any = self.world
        ticks = random.Random(f"grace/{world.seed}/{self.incarnation}").randint(300, 3_000)
        grace_s = ticks * world.tick_s / LEAVE_SHARE
        said = LifeOptions("sim", world.spec.workers_min, FOR_EVER_S, world.checkpoint_every, grace_s)
        outside = Outside(lambda: world.now_s, nullcontext(), lambda _, what: world.say(self.incarnation, what))
        me: Any = self
        return self.life_of(self.session, self.plans, me, me, said, outside)

    @property
    def incarnation(self) -> str:
        """Which life."""
        return self.session.incarnation

    @property
    def step_number(self) -> int:
        """The version that it has."""
        return self.model.step

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.life.ended

    def drop_pending(self, up_to_step: int) -> None:
        """The session has what awaits its commit."""

    def tell(self) -> None:
        """SIGTERM."""
        if self.life.told_at_s is None:
            self.life.told_at_s = self.world.now_s

    # -- the training thread

    def live(self) -> Steps:
        """Until the end, or until it is to leave."""
        try:
            course = ask.Course(self.life.run())
            while course.asks is not None:
                if self.quits and self.role == WORKER and isinstance(course.asks, ask.Between | ask.Train):
                    course = self.leave_the_loop(course)
                    continue
                try:
                    heard = yield from self.perform(course.asks)
                except GenerationClosed as closed:
                    course.closed(closed)
                else:
                    course.go_on(heard)
        except Occupied as error:
            if self.session.phase is Phase.OUSTED:
                raise Ousted(str(error)) from error
        except Unavailable as error:
            raise AssertionError(f"{self.incarnation} gives up, which waits as long as it takes: {error}") from error
        if not self.ended:
            self.out_of_generation()

    def leave_the_loop(self, course: ask.Course) -> ask.Course:
        """The script of a worker has, with a batch at hand or without."""
        self.world.count("left_the_loop")
        self.quits, self.at_hand = False, ()
        given_up = isinstance(course.asks, ask.Train)
        course.end()
        return ask.Course(self.life.leave_early(self.world.now_s + LEAVE_EARLY_S, regroup=given_up))

    def perform(self, asked: ask.Instruction) -> Steps:
        """What an Agent does, of whatever process; returns what is to be heard of it."""
        match asked:
            case ask.Enter(at):
                self.enter(at.name.lower())
            case ask.Wait(met, patience_s):
                with self.session.waiting():
                    return (yield from self.wait(met, patience_s))
            case ask.Stands() | ask.Accounted() | ask.TakeFinal():
                pass
            case ask.Between():
                yield from self.pause()
            case ask.Leave():
                self.out_of_generation()
            case ask.Renew(reason):
                return self.renew(reason)
            case _:
                return (yield from self.do(asked))
        return None

    def do(self, asked: ask.Instruction) -> Steps:
        """What only such a process does."""
        raise NotImplementedError

    def wait(self, met: Callable[[], bool], patience_s: float) -> Steps:
        """Until it is met, or its time is up."""
        until_s = self.world.now_s + patience_s
        while not met():
            if self.world.now_s >= until_s:
                return False
            yield from self.pause()
        return True

    def pause(self) -> Steps:
        """Anything may happen here."""
        yield
        while self.world.tick < self.hung_until:
            yield

    def enter(self, phase: str) -> None:
        """What heartbeats say from here on."""
        self.phase, self.since_s = phase, self.world.now_s

    def stands(self) -> bool:
        """Whether the generation that it is in goes on, for all it knows."""
        session = self.session
        return session.generation == self.generation and session.phase is Phase.MEMBER

    def out_of_generation(self) -> None:
        """Nobody hears of it any more."""
        if self.generation is not None:
            self.world.leaves(self.incarnation, self.generation)
        self.generation = None

    def renew(self, reason: str) -> Session:
        """It was given up, and is another one from here on."""
        self.world.count("rejoined")
        self.world.say(self.incarnation, f"joins anew: {reason}")
        self.world.ends(self.incarnation)
        self.out_of_generation()
        self.session = renew(self.session, f"{self.name}.{self.world.next_life(self.name)}")
        self.inbox.clear()
        return self.session

    # -- the thread of the connection

    def talk(self) -> None:
        """Read some of what came, send what is due."""
        world, rng, session = self.world, self.world.rng, self.session
        for _ in range(min(rng.choice(READ_MAX), len(self.inbox))):
            session.on_reply(self.inbox.popleft())
        session.standing = Standing(self.phase, world.now_s - self.since_s)
        for request in session.tick(world.now_s):
            world.wire(request)
            if isinstance(request.body, records.Commit):
                world.aim(self, 0.02, "killed_after_commit_was_sent")
        if session.phase in OVER and world.tick < self.hung_until and not self.given_up:
            self.given_up = True  # its launcher is told, and ends it
            world.later(100, lambda: world.kill(self) if self.alive and not self.ended else None)
