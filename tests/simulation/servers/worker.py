"""A worker beside servers in virtual time: it is leased samples, computes, and pushes to all servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from antdt.strategies.allreduce.composition import RANGES_MAX
from antdt.strategies.base import GenerationClosed
from antdt.strategies.ps.core.facts import PULL, Contribution, Key
from antdt.worker.session import WORKER, Session
from antdt_schemas.ranges import Range

from tests.simulation.servers.plane import Bye, Idle, Push, Told
from tests.simulation.servers.process import Process
from tests.simulation.trainer import Loads, Steps

if TYPE_CHECKING:
    from tests.simulation.servers.world import ServedWorld
    from tests.simulation.world import Launch


class Attached(Process, Loads):
    """`breaks`: its connection to the servers breaks, and nobody else's."""

    role = WORKER

    def __init__(self, world: ServedWorld, name: str, life: int, launch: Launch) -> None:
        super().__init__(world, name, life, launch)
        self.servers: tuple[str, ...] = ()
        self.breaks = False
        self.n, self.base = 1, 0

    def take_part(self) -> Steps:
        """Train until the generation is over."""
        session, grant = self.session, self.session.grant
        assert grant is not None
        self.generation, self.n = grant.generation, 1
        self.servers = tuple(m.incarnation for m in grant.members)
        try:
            yield from self.train(session)
        except GenerationClosed as closed:
            self.world.say(self.incarnation, f"leaves generation {grant.generation}: {closed}")
        self.breaks, self.at_hand = False, ()

    def train(self, session: Session) -> Steps:
        """Pull once, then push, which brings the parameters for the next."""
        yield from self.exchange(session, PULL)
        while not self.leaves:
            taken = session.leases.take(self.world.batch_of(self), RANGES_MAX)
            if taken:
                yield from self.contribute(session, taken)
            else:
                yield from self.idle(session)
        self.send(self.servers[0], Bye())

    def contribute(self, session: Session, taken: list[tuple[int, int, int, int, int]]) -> Steps:
        """The same samples until they are in a version."""
        attempt, outcome = 0, ""
        ranges = tuple(number for one in taken for number in one)
        while outcome != "included":
            self.enter("computing")
            yield from self.compute([Range(*one) for one in taken])
            yield from self.pause()
            assert attempt < 2, "nobody computes twice in vain"
            outcome = yield from self.exchange(session, attempt, ranges)
            attempt += 1
        self.n += 1
        if self.world.rng.random() < 0.1:
            session.leases.observe(0, 1)  # somebody else has none

    def idle(self, session: Session) -> Steps:
        """Nothing to do until there is, or until all is over."""
        self.send(self.servers[0], Idle())
        self.enter("idle")
        while not session.leases.untaken and not self.leaves:
            self.check(session)
            yield from self.pause()
        if not self.leaves:
            yield from self.exchange(session, PULL)

    # -- with the servers

    def exchange(self, session: Session, attempt: int, ranges: tuple[int, ...] = ()) -> Steps:
        """Tell each server its part, and wait for what all of them say of it. Returns the outcome."""
        world, key = self.world, Key(self.incarnation, self.n, attempt)
        samples = sum(ranges[4::5])
        facts = Contribution(key, self.base if ranges else 0, ranges, samples, float(samples))
        for server in world.rng.sample(self.servers, len(self.servers)):
            self.check(session)
            self.send(server, Push(facts, ranges))
            world.aim(self, 0.002, "killed_while_it_pushes")
            yield from self.pause()
        self.enter("reducing")
        heard = list[Told]()
        while len(heard) < len(self.servers):
            self.check(session)
            assert self.generation is not None
            found = world.links.take(self.generation, self.incarnation, world.rng)
            if found is not None:
                assert isinstance(found[1], Told) and found[1].key == key, (found, key)
                heard.append(found[1])
            yield from self.pause()
        assert len(set(heard)) == 1, f"servers say different things: {heard}"
        self.base = heard[0].version
        return heard[0].outcome

    def check(self, session: Session) -> None:
        """Raises GenerationClosed if it is over for this worker."""
        assert self.generation is not None
        if self.breaks:
            raise GenerationClosed("its connection broke")
        if not self.stands(session, self.generation):
            raise GenerationClosed(session.reason)

    def send(self, server: str, message: object) -> None:
        """To one of the servers."""
        assert self.generation is not None
        self.world.links.send(self.generation, self.incarnation, server, message)
