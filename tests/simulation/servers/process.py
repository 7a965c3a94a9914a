"""What servers and workers of a simulated job have in common: a session, and two threads that stop at every yield."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from antdt.connect.client import renew
from antdt.host.whereabouts import Standing
from antdt.worker.session import OVER, Phase, Session, Where
from antdt_schemas import records

from tests.simulation.model import Model
from tests.simulation.trainer import READ_MAX, Ousted, Steps

if TYPE_CHECKING:
    from tests.simulation.servers.world import ServedWorld
    from tests.simulation.world import Launch


class Process:
    """One process. `hung_until`: its training thread does nothing until this tick, while that of its connection does.
    What the world asks of a life, it answers itself.
    """

    role: str

    def __init__(self, world: ServedWorld, name: str, life: int, launch: Launch) -> None:
        self.world, self.name, self.launch = world, name, launch
        where = Where("h", 1, name, "", life, launch.name, launch.name, launch.place, launch.takes_over)
        self.session = Session(name, f"{name}.{life}", world.spec, where, world.session_options, self.role)
        self.inbox: deque[records.Reply] = deque()
        self.alive, self.asleep_until, self.hung_until = True, 0, 0
        self.weight, self.at_hand, self.quits = world.rng.random(), (), False
        self.generation: int | None = None
        self.model = Model("init")
        self.ended, self.taken_over, self.life, self.given_up = False, "", self, False
        self.told, self.phase, self.since_s = False, "forming", world.now_s
        self.thread = self.live()

    @property
    def incarnation(self) -> str:
        """Which life."""
        return self.session.incarnation

    def tell(self) -> None:
        """SIGTERM."""
        self.told = True

    def live(self) -> Steps:
        """Until the end, or until it is to leave."""
        while not self.ended:
            session = self.session
            if session.phase is Phase.ENDED:
                self.ended = True
            elif session.phase is Phase.OUSTED:
                raise Ousted(session.reason)
            elif session.phase is Phase.LOST:
                self.renew()
            elif session.phase is Phase.MEMBER and not self.leaves:
                yield from self.take_part()
                self.leave()
            elif session.phase is Phase.CLOSED:
                self.leave()
            assert session.phase is not Phase.FAILED, f"{self.incarnation} is refused: {session.reason}"
            if self.leaves and not self.ended:
                self.taken_over = session.told
                self.out_of_generation()
                return
            yield from self.pause()

    def take_part(self) -> Steps:
        """In the generation that the session is in, until it is over."""
        raise NotImplementedError

    @property
    def leaves(self) -> bool:
        """Whether it was told to."""
        return self.told or bool(self.session.told)

    def pause(self) -> Steps:
        """Anything may happen here."""
        yield
        while self.world.tick < self.hung_until:
            yield

    def enter(self, phase: str) -> None:
        """What heartbeats say from here on."""
        self.phase, self.since_s = phase, self.world.now_s

    def stands(self, session: Session, generation: int) -> bool:
        """Whether the generation that it entered with this session goes on, for all it knows."""
        same = self.session is session and session.generation == generation
        return same and session.phase is Phase.MEMBER

    def leave(self) -> None:
        """Out of the generation, and ready for the next one."""
        self.out_of_generation()
        self.enter("forming")
        self.session.regroup(None, b"")

    def out_of_generation(self) -> None:
        """Nobody hears of it any more."""
        if self.generation is not None:
            self.world.leaves(self.incarnation, self.generation)
        self.generation = None

    def renew(self) -> None:
        """It was given up, and is another one from here on."""
        self.world.count("rejoined")
        self.world.say(self.incarnation, f"joins anew: {self.session.reason}")
        self.world.ends(self.incarnation)
        self.out_of_generation()
        self.session = renew(self.session, f"{self.name}.{self.world.next_life(self.name)}")
        self.inbox.clear()

    def talk(self) -> None:
        """The thread of the connection: read some of what came, send what is due."""
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
