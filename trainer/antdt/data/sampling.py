"""The order of an epoch where a sampler draws it: weighted, grouped by length, whatever a script has.

A position is a place in the list that the sampler gives for an epoch, so a position is unique although a sample may be
in a list twice, or not at all. Owns that every worker draws the same lists: they follow from seed and epoch alone,
which is tried before training, and their digest travels with the job's order. Must not know who takes which positions.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from itertools import islice
from typing import Any

import torch
from antdt_schemas.errors import UsageError
from antdt_schemas.order import SAMPLED
from torch.utils.data import DistributedSampler

from antdt.data.seeding import Apart, seed_of

LISTS_KEPT_MAX = 3
# Of how many indices in all the lists are drawn before training, to be compared between workers; two lists at least.
INDICES_COMPARED_MAX = 1 << 21
ENDLESS = 16  # times as many indices as there are samples, of a sampler that does not say its length
NESTED = ("sampler", "batch_sampler", "base_sampler")  # where a sampler keeps the one that it is made of
WHAT_TO_DO = "Its list must follow from the epoch and from random numbers that torch, random or numpy draw."


class Drawn:
    """Lists of sample indices, one for each epoch. `size`: of every list. `order`: what the job's records call it.

    sampler: a Sampler of torch, any iterable of indices, or a function of (epoch, generator) that returns them. While
    it draws, the generators of `random`, `torch` and `numpy`, and its own `generator`, are seeded by seed and epoch;
    afterwards they are as before. One with `set_epoch` is told the epoch.

    Raises:
        UsageError: a list that another worker would not get, or none that could be an epoch, with what to do about it.
    """

    def __init__(self, sampler: Any, *, seed: int, samples: int, epochs: int) -> None:
        _refuse_divided(sampler)
        self.sampler, self.seed, self.samples, self.size = sampler, seed, samples, 0
        self._lists: OrderedDict[int, torch.Tensor] = OrderedDict()
        self._digests: dict[int, bytes] = {}
        self.size = len(self.list_of(0))
        compared = min(epochs, max(2, INDICES_COMPARED_MAX // self.size))
        for epoch in range(1, compared):
            self.list_of(epoch)
        self._lists.pop(0, None)
        self.list_of(0)  # once more, behind the others
        whole = blake2b(b"".join(self._digests[epoch] for epoch in range(compared)), digest_size=8)
        self.order = f"{SAMPLED}/{whole.hexdigest()}"

    def list_of(self, epoch: int) -> torch.Tensor:
        """Sample indices of an epoch, int64; of another thread than the training one never."""
        found = self._lists.get(epoch)
        if found is None:
            found = self._checked(epoch, self._draw(epoch))
            self._lists[epoch] = found
            while len(self._lists) > LISTS_KEPT_MAX:
                self._lists.popitem(last=False)
        return found

    def _checked(self, epoch: int, listed: array[int]) -> torch.Tensor:
        if self.size and len(listed) != self.size:
            raise UsageError(
                f"The sampler gives {len(listed)} indices for epoch {epoch} and {self.size} for epoch 0: all epochs "
                "need as many. If it can be iterated only once (a generator), pass a Sampler, a list, or a function of "
                "(epoch, generator)."
            )
        digest = blake2b(listed, digest_size=8).digest()
        if self._digests.setdefault(epoch, digest) != digest:
            raise UsageError(f"The sampler gives another list when it is asked for epoch {epoch} again. {WHAT_TO_DO}")
        return _indices(listed, self.samples)

    def _draw(self, epoch: int) -> array[int]:
        seed = seed_of("sampler", self.seed, epoch)
        generator = torch.Generator().manual_seed(seed % (1 << 63))
        most = ENDLESS * self.samples + 1024
        with Apart(seed).used(), _own_generators(self.sampler, generator):
            if isinstance(self.sampler, Iterable):
                _tell_epoch(self.sampler, epoch)
                given: Any = self.sampler
                most = len(given) if hasattr(given, "__len__") else most
            else:
                given = self.sampler(epoch, generator)
            given = given.tolist() if hasattr(given, "tolist") else given  # a thousand times as fast as one by one
            chosen = _integers(islice(given, max(most, 0) + 1))
        if len(chosen) > most:
            raise UsageError(f"The sampler does not end within {most} indices: an epoch needs a length.")
        return chosen


def _integers(given: Iterator[Any]) -> array[int]:
    try:
        return array("q", given)
    except (TypeError, OverflowError) as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise  # by the sampler itself
        raise UsageError(
            f"The sampler gives what is not the index of a sample ({error}): batches are formed by the Agent. One that "
            "gives lists of one length can be the batch_sampler of a DataLoader."
        ) from error


def _indices(chosen: array[int], samples: int) -> torch.Tensor:
    if not chosen:
        raise UsageError("The sampler gives no index: an epoch needs one sample at least.")
    out = torch.frombuffer(chosen, dtype=torch.int64)
    low, high = int(out.min()), int(out.max())
    if low < 0 or high >= samples:
        wrong = low if low < 0 else high
        raise UsageError(f"The sampler gives index {wrong}, and the data set has {samples} samples, from 0 on.")
    return out


def _chain(sampler: Any) -> Iterator[Any]:
    """The sampler, and those that it is made of."""
    seen: list[Any] = []
    while sampler is not None and not any(sampler is one for one in seen):
        yield sampler
        seen.append(sampler)
        sampler = next((found for name in NESTED if (found := getattr(sampler, name, None)) is not None), None)


def _tell_epoch(sampler: Any, epoch: int) -> None:
    for one in _chain(sampler):
        tell = getattr(one, "set_epoch", None)
        if callable(tell):
            tell(epoch)


@contextmanager
def _own_generators(sampler: Any, generator: torch.Generator) -> Iterator[None]:
    """A generator of its own goes on from call to call: meanwhile it has one that is seeded."""
    with ExitStack() as stack:
        for one in _chain(sampler):
            given = getattr(one, "generator", None)
            if isinstance(given, torch.Generator):
                stack.callback(setattr, one, "generator", given)
                one.generator = generator
        yield


def _refuse_divided(sampler: Any) -> None:
    """A list for one worker only is not that of the epoch."""
    if not isinstance(sampler, Iterable) and not callable(sampler):
        raise UsageError(f"sampler={sampler!r}: pass a Sampler, indices, or a function of (epoch, generator).")
    for one in _chain(sampler):
        replicas = getattr(one, "num_replicas", 1)
        if isinstance(one, DistributedSampler) or (isinstance(replicas, int) and replicas > 1):
            raise UsageError(
                f"{type(one).__name__} gives each worker a list of its own, and the Agent shares out one list of all: "
                "pass the sampler that draws the whole list, or none (shuffle=True)."
            )
