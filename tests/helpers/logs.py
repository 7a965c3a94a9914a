"""Logs of simulated jobs, and files of them."""

from __future__ import annotations

import pickle
from functools import cache
from pathlib import Path

from antdt_schemas import container
from antdt_streams.ledger.core.fold import Fold

from tests.helpers.shared import put, take
from tests.simulation.servers.world import ServedWorld
from tests.simulation.world import World


@cache
def simulated(seed: int, *, steps: bool = False) -> tuple[bytes, ...]:
    """The log of one simulated job, run to its end under its adversary, by whoever came first. steps: of a fixed
    size.
    """
    log: tuple[bytes, ...] | None = take(_shelf(seed, steps))
    if log is None:
        world = World(seed, steps=steps)
        world.run()
        log = shelve(world)
    return log


@cache
def served(seed: int) -> tuple[bytes, ...]:
    """So, of a job whose model lies on servers."""
    log: tuple[bytes, ...] | None = take(_shelf(seed, False, servers=True))
    if log is None:
        world = ServedWorld(seed)
        world.run()
        log = shelve(world)
    return log


def _shelf(seed: int, steps: bool, *, servers: bool = False) -> str:
    return f"world-{'servers-' if servers else 'steps-' if steps else ''}{seed}"


def shelve(world: World) -> tuple[bytes, ...]:
    """The log of a world that has ended, for others as well."""
    log = tuple(world.broker.log)
    put(_shelf(world.seed, bool(world.spec.batches), servers=isinstance(world, ServedWorld)), log)
    return log


def entries(log: tuple[bytes, ...] | list[bytes]) -> list[container.LogEntry]:
    """Entries as they lie in a topic."""
    return [container.LogEntry(offset, 1_000 + offset, payload) for offset, payload in enumerate(log)]


def export(path: Path, log: tuple[bytes, ...] | list[bytes]) -> container.Header:
    """A file of this log."""
    return container.write(path, "memory", "topic-1", entries(log))


class Standing:
    """Where a reader stands, for readers that go on from there: a twentieth of what a deep copy takes."""

    def __init__(self, fold: Fold) -> None:
        self._fold = pickle.dumps(fold, pickle.HIGHEST_PROTOCOL)

    def reader(self) -> Fold:
        """One of its own."""
        fold: Fold = pickle.loads(self._fold)
        return fold
