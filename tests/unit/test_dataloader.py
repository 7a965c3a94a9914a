"""A DataLoader handed to the Agent: every part of it counts, or it is refused with the reason."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from antdt.data.loading import LoadingOptions, loader_of
from antdt.dataloader import Data, taken_apart
from antdt_schemas.errors import UsageError
from antdt_schemas.order import FEISTEL, SEQUENTIAL
from antdt_schemas.ranges import Range
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

SIZE, BATCH, EPOCHS = 50, 8, 3


class Squares(Dataset[Any]):
    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        return index, index * index


class Stream(IterableDataset[Any]):
    def __init__(self, shuffles: bool = False) -> None:
        self.shuffles = shuffles

    def __iter__(self) -> Iterator[Any]:
        numbers = list(range(SIZE))
        if self.shuffles:
            random.shuffle(numbers)
        return iter([(n, n * n) for n in numbers])


def as_list(samples: list[Any]) -> list[int]:
    return [number for number, _ in samples]


def begin(number: int) -> None:
    """A worker_init_fn."""


def samples(data: Data, workers: int, epoch: int) -> list[int]:
    """Of an epoch, as so many workers share its steps."""
    sources, out, chance = [data.source(EPOCHS) for _ in range(workers)], list[int](), random.Random(epoch)
    assert data.batch_size is not None
    for start in range(0, sources[0].size, data.batch_size):
        stop = min(start + data.batch_size, sources[0].size)
        cuts = sorted(chance.randrange(start, stop + 1) for _ in range(workers - 1))
        for source, low, high in zip(sources, [start, *cuts], [*cuts, stop], strict=True):
            if high > low:
                got = source.fetch([Range(0, 0, epoch, low, high - low)])
                out += got if isinstance(got, list) and isinstance(got[0], int) else got[0].tolist()
    return out


def plain(loader: Any) -> list[int]:
    return [int(n) for batch in loader for n in (batch if isinstance(batch, list) and len(batch) != 2 else batch[0])]


WEIGHTS = torch.arange(SIZE, dtype=torch.float64) + 1
LOADERS: dict[str, Callable[[], Any]] = {
    "in order": lambda: DataLoader(Squares(), BATCH),
    "shuffled": lambda: DataLoader(Squares(), BATCH, shuffle=True),
    "shuffled by a generator": lambda: DataLoader(
        Squares(), BATCH, shuffle=True, generator=torch.Generator().manual_seed(7)
    ),
    "a list of indices": lambda: DataLoader(Squares(), BATCH, sampler=[9, 9, 3, 2, 30, 31, 32, 33, 34, 35]),
    "batches of a sampler": lambda: DataLoader(
        Squares(), batch_sampler=BatchSampler(SequentialSampler(range(SIZE)), 5, False)
    ),
    "batches": lambda: DataLoader(Squares(), batch_sampler=[[n, n + 1, n + 2] for n in range(0, SIZE - 3, 4)]),
    "a subset": lambda: DataLoader(Squares(), BATCH, sampler=SubsetRandomSampler(range(7, 19))),
    "a stream": lambda: DataLoader(Stream(), BATCH),
}


def of(loader: Any, **said: Any) -> Data:
    size = SIZE if isinstance(loader.dataset, IterableDataset) else None
    return taken_apart(Data(loader, size=size, **said))


@pytest.mark.parametrize("kind", sorted(LOADERS))
@pytest.mark.parametrize("workers", [1, 3])
def test_samples_are_those_that_torch_gives(kind: str, workers: int) -> None:
    data = of(LOADERS[kind]())
    for epoch in range(EPOCHS):
        mine, theirs = samples(data, workers, epoch), plain(LOADERS[kind]())
        assert Counter(mine) == Counter(theirs)
        if "shuffled" not in kind and kind != "a subset":
            assert mine == theirs or workers > 1
            assert sorted(mine) == sorted(theirs)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_weighted_sampler_draws_for_each_epoch_anew(workers: int) -> None:
    def loader() -> Any:
        sampler = WeightedRandomSampler(WEIGHTS, 40, generator=torch.Generator().manual_seed(3))
        return DataLoader(Squares(), BATCH, sampler=sampler)

    data = of(loader())
    assert (data.batch_size, data.seed) == (BATCH, 3)
    found = [samples(data, workers, epoch) for epoch in range(EPOCHS)]
    assert found == [samples(of(loader()), 1, epoch) for epoch in range(EPOCHS)]
    assert found[0] != found[1] != found[2]
    assert {len(one) for one in found} == {40}


def test_all_of_it_is_taken_over() -> None:
    loader = DataLoader(
        Squares(), BATCH, shuffle=True, collate_fn=as_list, num_workers=2, pin_memory=True, drop_last=True, timeout=9,
        worker_init_fn=begin, multiprocessing_context="spawn", prefetch_factor=5, persistent_workers=True,
        generator=torch.Generator().manual_seed(11),
    )  # fmt: skip
    found = of(loader)
    assert (found.dataset, found.batch_size, found.seed, found.shuffle) == (loader.dataset, BATCH, 11, True)
    assert (found.collate_fn, found.num_workers, found.pin_memory, found.last) == (as_list, 2, True, "drop")
    assert found.loading == LoadingOptions(begin, "spawn", 5, 0, 9)
    assert found.source(1).order == FEISTEL
    assert of(DataLoader(Squares(), BATCH)).source(1).order == SEQUENTIAL


def test_what_the_script_says_itself_wins() -> None:
    loader = DataLoader(Squares(), BATCH, num_workers=1, prefetch_factor=5, worker_init_fn=begin, collate_fn=as_list)
    loading = LoadingOptions(prefetch_factor=3)
    found = of(loader, batch_size=20, num_workers=0, collate_fn=list, shuffle=True, seed=5, loading=loading)
    assert (found.batch_size, found.num_workers, found.collate_fn, found.shuffle, found.seed) == (20, 0, list, True, 5)
    assert (found.loading.prefetch_factor, found.loading.worker_init_fn) == (3, begin)
    assert of(loader, sampler=[1, 2]).sampler == [1, 2]


def test_a_loader_of_tensors_and_the_default_collate_is_cut_in_the_loop() -> None:
    data = of(DataLoader(torch.utils.data.TensorDataset(torch.arange(SIZE)), BATCH, num_workers=2))
    source = data.source(1)
    assert loader_of(source, data.num_workers or 0, 0, data.loading).is_here
    (batch,) = source.fetch([Range(0, 0, 0, 3, 2)])
    assert batch.tolist() == [3, 4]


def said(caplog: pytest.LogCaptureFixture, loader: Any, **more: Any) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "antdt"):
        of(loader, **more)
    (record,) = caplog.records
    return record.getMessage()


def test_one_line_says_what_became_of_it(caplog: pytest.LogCaptureFixture) -> None:
    shuffled = said(caplog, DataLoader(Squares(), BATCH, shuffle=True))
    assert shuffled == (
        "The DataLoader is taken apart: a step has 8 samples of all workers together, its batch_size; "
        "samples come shuffled."
    )
    own = said(caplog, DataLoader(Squares(), BATCH, drop_last=True), batch_size=20)
    assert "20 samples of all workers together, and what is less than a step is left out of each epoch, as drop" in own
    assert own.endswith("samples come in its own order.")
    weighted = said(caplog, DataLoader(Squares(), BATCH, sampler=WeightedRandomSampler(WEIGHTS, 9)))
    assert weighted.endswith("samples come as WeightedRandomSampler draws them for each epoch.")
    stream = said(caplog, DataLoader(Stream(), BATCH, drop_last=True))
    assert "8 samples of all workers together, its batch_size, and what drop_last leaves out is spread over" in stream
    stream = said(caplog, DataLoader(Stream(), BATCH, num_workers=3))
    assert stream.endswith("samples come as a stream, read in the loop and not by 3 processes.")
    replicas = DistributedSampler(Squares(), num_replicas=4, rank=2, shuffle=False, seed=9)
    assert "32 samples of all workers together, its batch_size of 8 times 4 replicas; samples come in its own" in said(
        caplog, DataLoader(Squares(), BATCH, sampler=replicas)
    )


def test_a_distributed_sampler_is_unwrapped() -> None:
    replicas = DistributedSampler(Squares(), num_replicas=4, rank=2, shuffle=True, seed=9)
    found = of(DataLoader(Squares(), BATCH, sampler=replicas))
    assert (found.batch_size, found.seed, found.shuffle, found.sampler) == (32, 9, True, None)
    assert sorted(samples(found, 3, 1)) == list(range(SIZE))


class Own(DataLoader[Any]):
    def __iter__(self) -> Any:
        return iter([1])


def unequal() -> Iterator[list[int]]:
    yield from ([1, 2], [3], [4, 5])


class Unequal:
    def __iter__(self) -> Iterator[list[int]]:
        return unequal()


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "iterates otherwise": (lambda: Own(Squares()), "Own iterates in a way of its own, which workers cannot share"),
    "no batches": (lambda: DataLoader(Squares(), batch_size=None), "each of its samples is a batch already"),
    "unequal batches": (lambda: DataLoader(Squares(), batch_sampler=Unequal()), "a batch of 1 samples beside those of"),
    "no size": (lambda: DataLoader(Stream(), BATCH), "pass size=N to antdt.Agent"),
}


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_cannot_be_meant_is_refused(kind: str) -> None:
    loader, reason = REFUSED[kind]
    with pytest.raises(UsageError, match=reason):
        taken_apart(Data(loader())).source(EPOCHS)


def test_what_excludes_each_other_is_refused() -> None:
    with pytest.raises(UsageError, match="sampler and shuffle exclude each other"):
        taken_apart(Data(Squares(), BATCH, shuffle=True, sampler=[1]))
    with pytest.raises(UsageError, match="Pass batch_size=N to"):
        taken_apart(Data(Squares()))
    with pytest.raises(UsageError, match="a stream has none: pass one of both"):
        taken_apart(Data(Stream(), BATCH, size=SIZE, sampler=[1])).source(1)
    with pytest.raises(UsageError, match="int is no data set"):
        taken_apart(Data(7, BATCH)).source(1)


def test_data_processes_load_what_a_sampler_has_drawn() -> None:
    sampler = WeightedRandomSampler(WEIGHTS, 40, generator=torch.Generator().manual_seed(3))
    data = of(DataLoader(Squares(), BATCH, sampler=sampler, num_workers=1, collate_fn=as_list))
    source = data.source(EPOCHS)
    loader = loader_of(source, data.num_workers or 0, data.seed, data.loading)
    try:
        assert not loader.is_here
        for epoch in (0, 1):
            loader.expect([(epoch, 0, 40)], BATCH)
            for start in range(0, 40, BATCH):
                part = [Range(0, 0, epoch, start, BATCH)]
                assert loader.fetch(part) == source.fetch(part) == source.indices(epoch, start, BATCH).tolist()
    finally:
        loader.close()


def test_without_a_loader_everything_stays_as_it_was() -> None:
    data = Data(Squares(), BATCH)
    assert taken_apart(data) is data
    assert data.source(1).order == FEISTEL
    assert sorted(samples(data, 3, 0)) == list(range(SIZE))


def test_sampling_with_replacement_is_drawn() -> None:
    sampler = RandomSampler(range(SIZE), replacement=True, num_samples=30)
    found = of(DataLoader(Squares(), BATCH, sampler=sampler))
    assert found.sampler is sampler and found.source(2).size == 30


def test_the_rest_of_an_epoch_is_what_the_loader_makes_of_it_unless_the_script_says_something_else() -> None:
    def last(loader: Any, **more: Any) -> str | None:
        return taken_apart(Data(loader, **more)).last

    assert last(DataLoader(Squares(), BATCH)) == "even"
    assert last(DataLoader(Squares(), BATCH, drop_last=True)) == "drop"
    assert last(DataLoader(Squares(), BATCH, drop_last=True), last="even") == "even"
    assert last(DataLoader(Squares(), batch_sampler=Chosen([[0, 1], [2, 3], [4]]))) == "small"
    assert last(DataLoader(Stream(), BATCH, drop_last=True)) is None


class Chosen(list[list[int]]):
    """A batch sampler of somebody's own."""
