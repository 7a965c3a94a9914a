"""Seeds of the simulation as a check: the first one that fails is the finding."""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.world import World


class Worlds:
    """Runs the worlds 0, 1, ... `limit` - 1 until one fails, and raises what it raised. `found`: its seed."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.found: int | None = None

    def __call__(self) -> None:
        self.found = None
        for seed in range(self.limit):
            try:
                World(seed).run()
            except Exception:
                self.found = seed
                raise

    def again(self) -> None:
        """The world that failed."""
        assert self.found is not None
        World(self.found).run()


def worlds(limit: int) -> Callable[[], None]:
    """A check of so many worlds at most."""
    return Worlds(limit)
