"""The locks of this launch's workers, and what is said where another launch of this machine has them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

from antdt_schemas.errors import Occupied
from antdt_schemas.launch_locks import Holder, Lock, ask_to_leave, take

# Beside the grace of the other launch: it looks for our wish twice a second, and has processes to await.
MARGIN_S = 15.0
WISH_EVERY_S = 0.5


class Places:
    """`locks` by worker. Empty where the data folder cannot have any: then the ledger alone tells launches apart."""

    def __init__(self, folder: Path, job: str, mine: Holder) -> None:
        self.folder, self.job, self.mine = folder, job, mine
        self.locks: dict[str, Lock] = {}
        self._looked_at_s = 0.0

    def take(self, workers: Sequence[str]) -> dict[str, Holder]:
        """Take what is free; returns who has the others.

        Raises:
            OSError: there can be no locks here.
        """
        held = {}
        for worker in workers:
            if worker not in self.locks:
                found = take(self.folder, worker, self.mine)
                if isinstance(found, Lock):
                    self.locks[worker] = found
                else:
                    held[worker] = found
        return held

    def take_over(
        self, workers: Sequence[str], held: dict[str, Holder], wait: Callable[[], bool], say: Callable[[str], None]
    ) -> None:
        """Ask the launches that hold them to leave, and wait until they have. `wait`: a moment; False to give up.

        Raises:
            Occupied: they did not leave in time.
        """
        for worker, holder in held.items():
            ask_to_leave(self.folder, worker, holder, self.mine.launcher)
        bound_s = max(holder.grace_s for holder in held.values()) + MARGIN_S
        say(f"{_of(held)}, which is asked to leave: waiting for it, {bound_s:g} s at most.")
        until = monotonic() + bound_s
        while held and wait():
            if monotonic() > until:
                raise Occupied(f"{_of(held)}, which did not leave within {bound_s:g} s: end it by hand.")
            held = self.take(workers)

    def refusal(self, held: dict[str, Holder]) -> Occupied:
        return Occupied(f"{_of(held)}. End it first, or take over with --take-over. Job {self.job!r} goes on.")

    def place(self, worker: str) -> str:
        """What only one launch at a time can hold; empty where there are no locks."""
        lock = self.locks.get(worker)
        return lock.place if lock is not None else ""

    @property
    def handles(self) -> list[int]:
        """Descriptors that no worker may keep: the locks are free when this process is gone."""
        return [lock.handle for lock in self.locks.values()]

    def forget(self) -> None:
        """In a forked child: a lock ends with the last process that has it."""
        for handle in self.handles:
            os.close(handle)

    def wanted_by(self) -> str:
        """Who asks this launch to leave. Looks now and then only."""
        now = monotonic()
        if now - self._looked_at_s < WISH_EVERY_S:
            return ""
        self._looked_at_s = now
        return next((by for by in (lock.wanted_by() for lock in self.locks.values()) if by), "")

    def release(self, worker: str) -> None:
        """It has ended and is not started again: somebody else may run it."""
        lock = self.locks.pop(worker, None)
        if lock is not None:
            lock.release()


def _of(held: dict[str, Holder]) -> str:
    """w0 and w1 are run here by user@host:1 since …; of several launches the first one."""
    holder = next(iter(held.values()))
    names = [worker for worker, other in held.items() if other == holder]
    listed = f"{', '.join(names[:-1])} and {names[-1]} are" if len(names) > 1 else f"{names[0]} is"
    return f"{listed} run here by {holder}"
