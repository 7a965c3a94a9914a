"""What people, plans and scripts change in a job while everything else goes wrong: its global batch, and its end.

In worlds whose steps have a fixed size, with chances of its own, so that all other worlds are what they were.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from antdt.worker.plans import Wish
from antdt_schemas import records
from antdt_schemas.batches import DROP
from antdt_streams.ledger.core.changing import unfit

if TYPE_CHECKING:
    from tests.simulation.world import World

SIZE_MAX = 14


class Changes:
    """at: the ticks at which something changes. stated: the batch size of scripts that are launched from now on. wish:
    what decisions say, for whoever reads them.
    """

    def __init__(self, world: World, *, steps: bool) -> None:
        self.world, self.rng = world, random.Random(f"changes/{world.seed}")
        self.at = (
            {self.rng.randint(20, 3_000) for _ in range(self.rng.choice((0, 0, 1, 2, 4)))} if steps else set[int]()
        )
        self.stated = world.spec.batch_size
        self.wish: Wish | None = None

    def size(self) -> int:
        """Another global batch that this job can have, as often as not smaller."""
        spec = self.world.spec
        most = min(SIZE_MAX, spec.samples) if spec.batches == DROP else SIZE_MAX
        least = spec.workers_min * spec.local_batch_min
        return self.rng.randint(least, max(least, most))

    def strike(self) -> None:
        """One of them, unless the job is over, or has not begun."""
        state = self.world.judge.fold.state
        if state is not None and state.done is None and state.members.generation:
            self.rng.choice((self.resized, self.resized, self.planned, self.planned, self.relaunched, self.stopped))()
            self.world.faults.last_tick = self.world.tick

    def resized(self) -> None:
        """By an operator; some sizes cannot be."""
        self.world.count("resize_asked")
        size = self.rng.choice((self.size(), self.size(), 0))
        self.world.operator(records.Resize(size, f"operator-{self.world.tick}", "memory is large"))

    def planned(self) -> None:
        """By a plan, which workers read when they read it."""
        self.world.count("resize_planned")
        self.wish = Wish(self.wish.plan + 1 if self.wish is not None else 1, self.size())

    def relaunched(self) -> None:
        """Everybody is ended, and launched with another batch size, if this job can have one."""
        world, size = self.world, self.size()
        if unfit(world.spec, size, world.spec.workers_min):
            return
        world.count("relaunched_with_another_size")
        self.stated = size
        world.launched_again()
        for worker in world.processes():
            world.kill(worker, back=True)

    def stopped(self) -> None:
        """Some script has had enough."""
        live = self.world.processes()
        if live:
            self.world.count("script_stops")
            self.rng.choice(live).stops = "it was enough"
