"""Seeds of the simulation as a check: the first one that fails is the finding."""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.servers.world import ServedWorld
from tests.simulation.world import World


class Worlds:
    """Runs `limit` worlds from seed `first` on until one fails, and raises what it raised. `found`: its seed."""

    def __init__(self, limit: int, first: int, make: Callable[[int], World]) -> None:
        self.seeds, self.make = range(first, first + limit), make
        self.found: int | None = None

    def __call__(self) -> None:
        self.found = None
        for seed in self.seeds:
            try:
                self.make(seed).run()
            except Exception:
                self.found = seed
                raise

    def again(self) -> None:
        """The world that failed."""
        assert self.found is not None
        self.make(self.found).run()


def worlds(limit: int, first: int = 0, *, steps: bool = False) -> Callable[[], None]:
    """A check of so many worlds at most. A rare finding starts near its seed: look for another by Worlds(2_000, 0)."""
    return Worlds(limit, first, lambda seed: World(seed, steps=steps))


def served_worlds(limit: int, first: int = 0) -> Callable[[], None]:
    """So many at most whose model lies on servers."""
    return Worlds(limit, first, ServedWorld)
