"""A seeded world whose model lies on servers: the real ledger, sessions and order of versions, and the adversary.

python -m tests.simulation servers SEED
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, NamedTuple

from antdt.strategies.ps.core.facts import Mode
from antdt.worker.session import SERVER, Session
from antdt_schemas.limits import INIT_FILE
from antdt_schemas.strategies import server_name, servers_of

from tests.simulation.model import Model
from tests.simulation.servers.faults import ServedFaults
from tests.simulation.servers.judge import ServedJudge
from tests.simulation.servers.plane import Links
from tests.simulation.servers.server import Server
from tests.simulation.servers.worker import Attached
from tests.simulation.world import Launch, World

TURNS_MAX = 120  # of a worker and all servers, each in one of its contributions, with all samples


class File(NamedTuple):
    """Parts of one file, each a server's."""

    parts: tuple[Model, ...]

    @property
    def model(self) -> Model:
        """The first part, which stands for all."""
        return self.parts[0]


def begun(world: ServedWorld, name: str, life: int, launch: Launch) -> Server | Attached:
    """The process of this name."""
    return (Server if name.startswith("s") else Attached)(world, name, life, launch)


class ServedWorld(World):
    """`parts`: durable ones, by name of their file and rank. `backup`: so many need not be waited for."""

    new_judge, new_faults, new_worker = ServedJudge, ServedFaults, staticmethod(begun)  # type: ignore[assignment]

    def draw(self, rng: random.Random) -> None:
        super().draw(rng)
        own = random.Random(f"servers/{self.seed}")
        kind = own.choice(("bsp", "bsp", "asp", "ssp=1", "ssp=3"))
        # In two worlds of five samples are dealt out ahead; the others are what they were.
        dealt = random.Random(f"sharding/{self.seed}").choice(("", "", "", "/even", "/colony"))
        servers, samples = own.choice((1, 2, 2, 3)), self.spec.samples * self.spec.epochs
        strategy = f"ps-{kind}{dealt}/servers={servers}"
        # Every contribution takes turns of its worker and of each server, one behind the other, and a turn takes some
        # 20 ticks in so slow a world. Where there are many samples a worker takes more of them at once, so that what
        # it does alone takes as long under any number of servers, about half of what a world has in the end.
        share = -(-samples * (servers + 1) // TURNS_MAX)
        batch_size = max(self.spec.batch_size, share * self.spec.workers_min)
        self.spec = replace(self.spec, strategy=strategy, batch_size=batch_size)
        mode, _, staleness = kind.partition("=")
        drops = kind == "bsp" and not dealt and random.Random(f"late/{self.seed}").random() < 0.2
        if drops:
            self.spec = replace(self.spec, strategy=strategy.replace("/", "/drop/", 1))
        self.mode = Mode(mode, int(staleness or 0), drops)  # type: ignore[arg-type]
        self.backup = own.choice((0, 0, 1, 2)) if self.mode.kind == "bsp" else 0
        self.session_options = replace(self.session_options, reenter_s=own.choice((50, 400)) * self.tick_s)
        self.ledger_options = replace(self.ledger_options, stuck_ms=int(4_000 * 1_000 * self.tick_s))
        self.links, self.parts, self.names_of_files = Links(), dict[str, dict[int, Model]](), 0

    def populate(self, rng: random.Random) -> None:
        self.files: dict[str, Any] = {INIT_FILE: File((Model("init"),) * servers_of(self.spec.strategy))}
        for name in self.server_names:
            self.start_worker(name)
        super().populate(rng)

    @property
    def server_names(self) -> list[str]:
        """All that there must be."""
        return [server_name(part) for part in range(servers_of(self.spec.strategy))]

    # -- files

    def file_name(self, server: Server) -> str:
        """Never twice the same."""
        self.names_of_files += 1
        return f"{server.model.step}-{server.generation}-{server.incarnation}-{self.names_of_files}"

    def make_file(self, name: str) -> Model:
        """All parts are there."""
        parts = self.parts.pop(name)
        self.files[name] = File(tuple(parts[rank] for rank in sorted(parts)))
        self.count("file_written")
        return self.files[name].model

    def prune(self, session: Session) -> None:
        """What the ledger keeps no longer is removed."""
        if self.prunes:
            oldest = min(session.files.kept_steps)
            for name in [n for n, s in self.files.items() if n != INIT_FILE and s.model.step < oldest]:
                del self.files[name]
                self.count("file_removed")

    # -- processes

    def kill(self, worker: Any, back: bool = False, code: int = -9) -> None:
        """A server comes back always, and the last worker."""
        self.links.cut(worker.incarnation, self.rng)
        self.count("server_dies" if worker.role == SERVER else "worker_dies")
        others = self.works_beside(worker)
        state = self.judge.fold.state
        needed = self.spec.workers_min if state is None or state.members.generation == 0 else 1
        super().kill(worker, back or worker.role == SERVER or others < needed, code)

    def works_beside(self, worker: Any) -> int:
        """How many workers live and do not hang, apart from this one."""
        there: Any = [w for w in self.workers.values() if w is not worker and w.alive and w.role != SERVER]
        return sum(w.hung_until <= self.tick for w in there)

    def step_training(self) -> None:
        """Who is needed is there, or on the way."""
        if not self.due:
            self.start_who_is_missing()
        super().step_training()

    def start_who_is_missing(self) -> None:
        """Servers, and somebody who works; where all was done and samples were readmitted, some may have ended."""
        state = self.judge.fold.state
        if state is not None and state.done is not None:
            return
        there = {w.name: w for w in (*self.rivals, *self.workers.values()) if w.alive and not w.ended}
        for name in self.server_names:
            if name not in there:
                self.start_worker(name)
        if not any(w.role != SERVER for w in there.values()):
            self.start_worker("w0")

    def begin(self, worker: Any) -> None:
        """Whoever has ended has no place any more."""
        before = self.workers.get(worker.name)
        if before is not None and before.ended:
            before.alive = False
        super().begin(worker)
