"""Orders that a sampler draws: the same for every worker, and the list that torch would have used."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from antdt.data.sampling import Drawn
from antdt.data.seeding import seed_of
from antdt.data.sources import source_of
from antdt_schemas.errors import UsageError
from antdt_schemas.ranges import Range
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

SIZE, EPOCHS, BATCH = 90, 3, 16
WEIGHTS = torch.arange(SIZE, dtype=torch.float64) + 1


class ByLength(Sampler[int]):
    """Grouped by length, as scripts for text have it: shuffled by `random`, sorted within groups."""

    def __iter__(self) -> Iterator[int]:
        order = random.sample(range(SIZE), SIZE)
        for at in range(0, SIZE, 30):
            yield from sorted(order[at : at + 30])

    def __len__(self) -> int:
        return SIZE


class ByEpoch(Sampler[int]):
    """Knows its epoch by `set_epoch`, as those of distributed scripts."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(numpy.random.RandomState(self.epoch).permutation(SIZE)[:70])


def by_function(epoch: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randperm(SIZE, generator=generator)[: SIZE // 2]


SAMPLERS: dict[str, Callable[[], Any]] = {
    "weighted": lambda: WeightedRandomSampler(WEIGHTS, 120),
    "weighted, with a generator": lambda: WeightedRandomSampler(WEIGHTS, 120, generator=torch.Generator()),
    "a subset": lambda: SubsetRandomSampler(range(10, 60)),
    "with replacement": lambda: RandomSampler(range(SIZE), replacement=True, num_samples=70),
    "sequential": lambda: SequentialSampler(range(SIZE)),
    "by length": ByLength,
    "by epoch": ByEpoch,
    "a list": lambda: [3, 3, 5, 80],
    "a function": lambda: by_function,
}


def drawn(kind: str, seed: int = 4) -> Drawn:
    return Drawn(SAMPLERS[kind](), seed=seed, samples=SIZE, epochs=EPOCHS)


def plain(kind: str, epoch: int, seed: int = 4) -> list[int]:
    """What a DataLoader gives with this sampler, which begins with the random numbers of this seed and epoch."""
    sampler = SAMPLERS[kind]()
    if not isinstance(sampler, Sampler | list):
        sampler = sampler(epoch, torch.Generator().manual_seed(seed_of("sampler", seed, epoch) % (1 << 63))).tolist()
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
    loader = DataLoader(TensorDataset(torch.arange(SIZE)), BATCH, sampler=sampler, generator=torch.Generator())
    if isinstance(getattr(sampler, "generator", None), torch.Generator):
        sampler.generator.manual_seed(seed_of("sampler", seed, epoch) % (1 << 63))
    torch.manual_seed(seed_of("sampler", seed, epoch) % (1 << 63))
    random.seed(seed_of("sampler", seed, epoch))
    return [int(i) for (batch,) in loader for i in batch]


@pytest.mark.parametrize("kind", sorted(SAMPLERS))
def test_a_list_is_the_one_that_torch_uses_in_order(kind: str) -> None:
    found = drawn(kind)
    for epoch in range(EPOCHS):
        assert found.list_of(epoch).tolist() == plain(kind, epoch)


@pytest.mark.parametrize("kind", sorted(SAMPLERS))
@pytest.mark.parametrize("workers", [1, 3])
def test_samples_of_an_epoch_are_those_of_torch_however_many_workers_share_it(kind: str, workers: int) -> None:
    dataset = TensorDataset(torch.arange(SIZE))
    sources = [source_of(dataset, seed=4, sampler=SAMPLERS[kind](), epochs=EPOCHS) for _ in range(workers)]
    size, chance = sources[0].size, random.Random(workers)
    for epoch in (0, 2, 1, 0):  # a death leads back
        seen: list[int] = []
        for start in range(0, size, BATCH):
            stop = min(size, start + BATCH)
            cuts = sorted(chance.randrange(start, stop + 1) for _ in range(workers - 1))
            for source, low, high in zip(sources, [start, *cuts], [*cuts, stop], strict=True):
                if high > low:
                    (batch,) = source.fetch([Range(0, 0, epoch, low, high - low)])
                    seen += batch.tolist()
        assert Counter(seen) == Counter(plain(kind, epoch))
        assert workers > 1 or seen == plain(kind, epoch)


@pytest.mark.parametrize("kind", sorted(SAMPLERS))
def test_nothing_of_it_is_seen_outside(kind: str) -> None:
    states = random.getstate(), torch.get_rng_state(), numpy.random.get_state()[1].tolist()
    orders = set()
    for noise in range(2):
        random.seed(noise), torch.manual_seed(noise), numpy.random.seed(noise)
        before = random.getstate(), torch.get_rng_state(), numpy.random.get_state()[1].tolist()
        orders.add(drawn(kind).order)
        assert random.getstate() == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])
        assert numpy.random.get_state()[1].tolist() == before[2]
    assert len(orders) == 1, "other workers draw the same"
    random.setstate(states[0]), torch.set_rng_state(states[1])


def test_another_seed_and_another_sampler_are_another_order() -> None:
    assert drawn("weighted", 4).order != drawn("weighted", 5).order
    assert drawn("a list", 4).order == drawn("a list", 5).order
    assert drawn("weighted").order != drawn("by length").order
    assert drawn("weighted").list_of(0).tolist() != drawn("weighted").list_of(1).tolist()


class Stateful(Sampler[int]):
    """Remembers how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __iter__(self) -> Iterator[int]:
        self.calls += 1
        return iter([(self.calls + i) % SIZE for i in range(SIZE)])


class Replicas(Sampler[int]):
    num_replicas, rank = 2, 0

    def __iter__(self) -> Iterator[int]:
        return iter(range(0, SIZE, 2))


class Endless(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "remembers": (Stateful, "another list when it is asked for epoch 0 again"),
    "of the system": (
        lambda: lambda epoch, generator: random.SystemRandom().sample(range(SIZE), SIZE),
        "another list when it is asked for epoch 0 again",
    ),
    "iterated once": (lambda: (i for i in range(SIZE)), "iterated only once|no index"),
    "other lengths": (lambda: lambda epoch, generator: range(10 + epoch), "gives 11 indices for epoch 1 and 10 for"),
    "fractions": (lambda: lambda epoch, generator: torch.rand(5), r"not the index of a sample \(.*'float' object"),
    "empty": (lambda: [], "gives no index"),
    "out of range": (lambda: [0, SIZE], f"gives index {SIZE}, and the data set has {SIZE} samples"),
    "negative": (lambda: [-1], "gives index -1"),
    "batches": (
        lambda: BatchSampler(SequentialSampler(range(SIZE)), 4, False),
        r"not the index of a sample \('list' object.*can be the batch_sampler",
    ),
    "endless": (Endless, "does not end within"),
    "of one worker": (Replicas, "Replicas gives each worker a list of its own"),
    "distributed": (
        lambda: DistributedSampler(range(SIZE), num_replicas=1, rank=0),
        "DistributedSampler gives each worker a list of its own",
    ),
    "nothing": (lambda: 7, "pass a Sampler, indices, or a function"),
}


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_cannot_be_shared_is_refused_with_the_reason(kind: str) -> None:
    sampler, said = REFUSED[kind]
    with pytest.raises(UsageError, match=said):
        Drawn(sampler(), seed=1, samples=SIZE, epochs=3)


def test_an_error_of_the_sampler_is_its_own() -> None:
    class Broken(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            yield len(3)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="has no len"):
        Drawn(Broken(), seed=1, samples=SIZE, epochs=3)


def test_a_sampler_that_changes_later_is_found_when_the_epoch_comes() -> None:
    lists = {epoch: list(range(SIZE)) for epoch in range(4)}
    made = Drawn(lambda epoch, generator: lists[epoch], seed=1, samples=SIZE, epochs=4)
    lists[0] = lists[0][::-1]  # as a curriculum that follows the losses
    made._lists.clear()
    with pytest.raises(UsageError, match="another list when it is asked for epoch 0 again"):
        made.list_of(0)


@given(st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=60), st.integers(0, 59), st.integers(1, 60))
def test_any_part_of_any_list_can_be_asked_for(chosen: list[int], start: int, length: int) -> None:
    source = source_of(TensorDataset(torch.arange(SIZE)), sampler=chosen)
    assert source.size == len(chosen)
    assert source.indices(0, start, length).tolist() == chosen[start : start + length]  # type: ignore[union-attr]
