"""A worker beside servers in virtual time: the life of one, which is leased samples, computes, and pushes to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from antdt.strategies.base import GenerationClosed, Outcome, Part, Timings
from antdt.strategies.ps.contribution import Contribution as Row
from antdt.strategies.ps.core.facts import PULL, Contribution, Key
from antdt.worker import instructions as ask
from antdt.worker.attached import AttachedLife
from antdt.worker.session import WORKER
from antdt_schemas.lineage import ROOT

from tests.simulation.servers.plane import Bye, Idle, Push, Told
from tests.simulation.servers.process import Process
from tests.simulation.trainer import Loads, Steps

if TYPE_CHECKING:
    from tests.simulation.servers.world import ServedWorld
    from tests.simulation.world import Launch

GIVEN_UP = 0.02


class Attached(Process, Loads):
    """`breaks`: its connection to the servers breaks, and nobody else's."""

    role, life_of = WORKER, AttachedLife

    def __init__(self, world: ServedWorld, name: str, life: int, launch: Launch) -> None:
        self.servers: tuple[str, ...] = ()
        self.breaks, self.idles, self.others_idle = False, False, False
        self.n, self.attempt, self.version, self.lineage = 1, 0, 0, ROOT
        self.part: Part | None = None
        super().__init__(world, name, life, launch)

    @property
    def step_number(self) -> int:
        """The version that it has pulled."""
        return self.version

    # -- what its life asks for

    def do(self, asked: ask.Instruction) -> Steps:
        """What only a worker does."""
        match asked:
            case ask.Form(grant):
                self.generation, self.n, self.attempt = grant.generation, 1, 0
                self.breaks, self.idles = False, False
                self.servers = tuple(m.incarnation for m in grant.members)
                yield from self.pause()
            case ask.Align():
                yield from self.exchange(PULL)
            case ask.Announce(part):
                if self.idles:
                    self.idles = False
                    yield from self.exchange(PULL)
                self.part = part
            case ask.Train(ranges):
                self.enter("computing")
                yield from self.compute(ranges)
                yield from self.pause()
                if self.world.rng.random() < GIVEN_UP:
                    self.world.count("given_up_before_it_was_pushed")
                    raise GenerationClosed("its memory was out")
            case ask.Finish():
                return (yield from self.finish())
            case ask.Idle(leaving):
                self.send(self.servers[0], Bye() if leaving else Idle())
                self.idles = True
            case _:
                raise AssertionError(asked)
        return None

    def finish(self) -> Steps:
        """Push, and hear what became of it."""
        part = self.part
        assert part is not None and self.attempt < 2, "nobody computes twice in vain"
        ranges = tuple(number for one in part.ranges for number in one)
        included = (yield from self.exchange(self.attempt, ranges)) == "included"
        if not included and self.world.mode.drops:
            self.world.count("contribution_dropped")
            self.n, self.attempt = self.n + 1, 0
        else:
            self.n, self.attempt = (self.n + 1, 0) if included else (self.n, self.attempt + 1)
        row = Row(part.samples, part.plan_seen, part.reference)
        return Outcome(part.samples, [row], included, False, Timings(0, 0, 0))

    # -- with the servers

    def exchange(self, attempt: int, ranges: tuple[int, ...] = ()) -> Steps:
        """Tell each server its part, and wait for what all of them say of it. Returns the outcome."""
        world, key = self.world, Key(self.incarnation, self.n, attempt)
        samples = sum(ranges[4::5])
        facts = Contribution(key, self.version if ranges else 0, ranges, samples, float(samples))
        for server in world.rng.sample(self.servers, len(self.servers)):
            self.check()
            self.send(server, Push(facts, ranges))
            world.aim(self, 0.01, "killed_while_it_pushes")
            yield from self.pause()
        self.enter("reducing")
        heard = list[Told]()
        while len(heard) < len(self.servers):
            self.check()
            assert self.generation is not None
            found = world.links.take(self.generation, self.incarnation, world.rng)
            if found is not None:
                assert isinstance(found[1], Told) and found[1].key == key, (found, key)
                heard.append(found[1])
            yield from self.pause()
        assert len({told[:4] for told in heard}) == 1, f"servers say different things: {heard}"
        self.others_idle = any(told.somebody_is_idle for told in heard)
        self.world.count("others_idle" if self.others_idle else "others_busy")
        self.version, self.lineage = heard[0].version, heard[0].lineage
        return heard[0].outcome

    def check(self) -> None:
        """Raises GenerationClosed if it is over for this worker."""
        if self.breaks:
            raise GenerationClosed("its connection broke")
        if not self.stands():
            raise GenerationClosed(self.session.reason)

    def send(self, server: str, message: object) -> None:
        """To one of the servers."""
        assert self.generation is not None
        self.world.links.send(self.generation, self.incarnation, server, message)
