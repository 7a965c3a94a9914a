"""What a data set draws from, seeded: for one sample, so that whoever makes it, and however often, makes the same; or
for code that must draw the same whatever else draws in this process.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import torch


def seed_sample(seed: int, epoch: int, position: int) -> None:
    """For the sample at this position."""
    seed_generators(seed_of(seed, epoch, position))


def seed_of(*what: object) -> int:
    """A seed of 64 bits that follows from all of it."""
    digest = blake2b("/".join(map(str, what)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def seed_generators(value: int) -> None:
    """Python's, torch's, and numpy's only where it is in use."""
    random.seed(value)
    torch.default_generator.manual_seed(value % (1 << 63))
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(value % (1 << 32))


class Apart:
    """The generators as something in this process has them, that is seeded once and goes on where it was.

    Invariant: outside of `used` nothing of it is seen, and nothing from outside is seen in it.
    """

    def __init__(self, seed: int) -> None:
        self._seed, self._states = seed, None

    @contextmanager
    def used(self) -> Iterator[None]:
        """In here the generators are its own."""
        outside = _states()
        if self._states is None:
            seed_generators(self._seed)
        else:
            _set(self._states)
        try:
            yield
        finally:
            self._states = _states()
            _set(outside)

    _states: tuple[Any, torch.Tensor, Any] | None


def _states() -> tuple[Any, torch.Tensor, Any]:
    numpy = sys.modules.get("numpy")
    return random.getstate(), torch.get_rng_state(), numpy.random.get_state() if numpy is not None else None


def _set(states: tuple[Any, torch.Tensor, Any]) -> None:
    random.setstate(states[0])
    torch.set_rng_state(states[1])
    numpy = sys.modules.get("numpy")
    if numpy is not None and states[2] is not None:
        numpy.random.set_state(states[2])
