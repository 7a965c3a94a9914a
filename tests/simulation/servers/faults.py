"""What goes wrong in a job with servers, beside all that goes wrong in any."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from antdt.worker.session import SERVER

from tests.simulation.faults import Faults
from tests.simulation.world import TICKS_MAX

if TYPE_CHECKING:
    from tests.simulation.world import World


FOR_GOOD = 0.5


class ServedFaults(Faults):
    """The adversary, which knows servers."""

    def __init__(self, world: World, moves: Collection[int]) -> None:
        super().__init__(world, moves)
        self._hanging = random.Random(f"hangs/{world.seed}")
        self.kinds += [
            *[self.server_killed] * 3,
            self.all_servers_killed,
            self.zombie_server,
            self.server_stalled,
            *[self.server_hangs] * 2,
            self.worker_hangs,
            *[self.connection_breaks] * 3,
        ]

    def _of(self, role: str) -> list[Any]:
        return [w for w in self._workers() if w.role == role]  # type: ignore[attr-defined]

    def _one(self, role: str) -> Any:
        some = self._of(role)
        return self.world.rng.choice(some) if some else None

    def server_killed(self) -> bool:
        server = self._one(SERVER)
        if server is not None:
            self.world.kill(server)
        return server is not None

    def all_servers_killed(self) -> bool:
        """Perhaps with a worker."""
        for server in self._of(SERVER):
            self.world.kill(server)
        if self.world.rng.random() < 0.5:
            self.worker_killed()
        return True

    def zombie_server(self) -> bool:
        """Declared lost while it sleeps; it wakes up, and serves whoever asks it."""
        server = self._one(SERVER)
        if server is not None:
            self._suspect(server)
            self._stall(server)
        return server is not None

    def server_stalled(self) -> bool:
        server = self._one(SERVER)
        if server is not None:
            self._stall(server)
        return server is not None

    def _hangs(self, process: Any) -> bool:
        """For so long; or for good, where somebody is left who works, and would wait for it."""
        world: Any = self.world
        if process is not None:
            process.hung_until = world.tick + world.rng.randint(500, 9_000)
            if self._hanging.random() < FOR_GOOD and world.works_beside(process):
                process.hung_until = TICKS_MAX
                world.count("hangs_for_good")
        return process is not None

    def server_hangs(self) -> bool:
        """It is alive and says so, and serves nobody."""
        return self._hangs(self._one(SERVER))

    def worker_hangs(self) -> bool:
        return self._hangs(self._one("worker"))

    def connection_breaks(self) -> bool:
        """One worker's, and nobody else's."""
        worker = self._one("worker")
        if worker is not None:
            worker.breaks = worker.generation is not None
        return worker is not None
