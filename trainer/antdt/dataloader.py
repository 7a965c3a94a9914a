"""What a script says of its data, and a DataLoader taken apart into it: data set, order, and how samples are loaded.

The batches of a DataLoader are those of one process; the Agent forms its own, of all workers together, from the same
parts. Owns which part means what, and what cannot be meant. Must not know how batches are formed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import chain, pairwise
from typing import Any

from antdt_schemas.batches import DROP, EVEN, SMALL
from antdt_schemas.errors import UsageError
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from antdt.data.loading import LoadingOptions
from antdt.data.pinning import pinning_of
from antdt.data.seeding import Apart
from antdt.data.sources import IterableSource, MapSource, source_of

log = logging.getLogger("antdt")


@dataclass(frozen=True)
class Data:
    """Of an Agent: what it trains on, in which order, and how it is loaded. None: not said.

    batch_size: samples of all workers together in a step. last: what becomes of the rest of an epoch that is less than
    a step, as `Layout` has it.
    """

    dataset: Any
    batch_size: int | None = None
    seed: int = 0
    size: int | None = None
    shuffle: bool | None = None
    sampler: Any = None
    collate_fn: Callable[[list[Any]], Any] | None = None
    num_workers: int | None = None
    pin_memory: bool | None = None
    last: str | None = None
    loading: LoadingOptions = field(default_factory=LoadingOptions)

    def source(self, epochs: int) -> MapSource | IterableSource:
        """Samples by position. Raises UsageError."""
        how: dict[str, Any] = {"size": self.size, "collate": self.collate_fn, "sampler": self.sampler, "epochs": epochs}
        how["shuffle"], how["pinning"] = self.shuffle is not False, pinning_of(bool(self.pin_memory))
        return source_of(self.dataset, seed=self.seed, **how)


def taken_apart(said: Data) -> Data:
    """The same with all that a DataLoader says in place of the data set, where the script has not said it itself.

    Raises:
        UsageError: batch_size is not said, what was said excludes something else, or the DataLoader's batches cannot
            be those of a job.
    """
    if said.sampler is not None and said.shuffle is not None:
        raise UsageError("sampler and shuffle exclude each other: the sampler draws the order.")
    found = _apart(said, said.dataset) if isinstance(said.dataset, DataLoader) else said
    if found.batch_size is None:
        raise UsageError("Pass batch_size=N to antdt.Agent: samples of all workers together in one step.")
    return found


def _apart(said: Data, loader: Any) -> Data:
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise UsageError(
            f"{type(loader).__name__} iterates in a way of its own, which workers cannot share: pass the plain "
            "DataLoader that it was made of, or its data set."
        )
    order = _order(said, loader)
    if order.batch_size is None:
        raise UsageError(
            "The DataLoader has batch_size=None, so each of its samples is a batch already: give it samples and a "
            "batch_size, or pass its data set and batch_size=N to antdt.Agent, where one of its samples counts as one."
        )
    collate = None if loader.collate_fn is default_collate else loader.collate_fn
    workers = loader.num_workers
    aside = ""
    if workers and _is_stream(loader.dataset) and not hasattr(loader.dataset, "iter_range"):
        workers, aside = 0, f", read in the loop and not by {workers} processes"
    log.warning("The DataLoader is taken apart: %s%s.", _words(said, order, loader), aside)
    return replace(
        order,
        dataset=loader.dataset,
        collate_fn=said.collate_fn or collate,
        num_workers=workers if said.num_workers is None else said.num_workers,
        pin_memory=loader.pin_memory if said.pin_memory is None else said.pin_memory,
        loading=_loading(said.loading, loader),
    )


def _words(said: Data, found: Data, loader: Any) -> str:
    size = f"a step has {found.batch_size} samples of all workers together"
    if said.batch_size is None:
        size += ", its batch_size"
        if isinstance(loader.sampler, DistributedSampler):
            size += f" of {loader.batch_size} times {loader.sampler.num_replicas} replicas"
    if loader.drop_last and _is_stream(loader.dataset):
        size += ", and what drop_last leaves out is spread over them"
    elif found.last == DROP:
        size += ", and what is less than a step is left out of each epoch, as drop_last says"
    how = "as a stream" if _is_stream(loader.dataset) else "in its own order" if found.shuffle is False else "shuffled"
    if found.sampler is not None:
        how = f"as {type(found.sampler).__name__} draws them for each epoch"
    return f"{size}; samples come {how}"


def _is_stream(dataset: Any) -> bool:
    return isinstance(dataset, IterableDataset)


def _order(said: Data, loader: Any) -> Data:
    """Batch size and order. A batch sampler that is not torch's own has both in it."""
    batches = loader.batch_sampler
    if _is_stream(loader.dataset):
        size = said.batch_size or loader.batch_size
        return replace(said, batch_size=size)
    if batches is not None and type(batches) is not BatchSampler:
        flat = Batches(batches)
        return replace(_ordered(said, flat), batch_size=said.batch_size or flat.size, last=said.last or SMALL)
    sampler, size, drop = loader.sampler, loader.batch_size, loader.drop_last
    if batches is not None:
        sampler, size, drop = batches.sampler, batches.batch_size, batches.drop_last
    found = _ordered(said, sampler)
    if size is not None and isinstance(sampler, DistributedSampler):
        size *= sampler.num_replicas
    return replace(found, batch_size=said.batch_size or size, last=said.last or (DROP if drop else EVEN))


def _ordered(said: Data, sampler: Any) -> Data:
    """What the script has said of the order wins; a generator's first seed is that of the job, if none was said."""
    given = getattr(sampler, "generator", None)
    seed = said.seed or (given.initial_seed() % (1 << 63) if given is not None else 0)
    if isinstance(sampler, DistributedSampler):
        seed = said.seed or sampler.seed
    own = said.sampler is not None or said.shuffle is not None
    if own or type(sampler) is SequentialSampler:
        return replace(said, seed=seed, shuffle=said.shuffle if own else False)
    whole = type(sampler) is RandomSampler and not sampler.replacement
    if isinstance(sampler, DistributedSampler) or (whole and sampler.num_samples == len(sampler.data_source)):
        return replace(said, seed=seed, shuffle=getattr(sampler, "shuffle", True))
    return replace(said, seed=seed, sampler=sampler)


def _loading(said: LoadingOptions, loader: Any) -> LoadingOptions:
    """What was left as it is comes from the DataLoader."""
    context = loader.multiprocessing_context
    found: dict[str, Any] = {
        "worker_init_fn": loader.worker_init_fn,
        "prefetch_factor": loader.prefetch_factor,
        "timeout_s": loader.timeout or None,
        "multiprocessing_context": context.get_start_method() if hasattr(context, "get_start_method") else context,
    }
    unsaid = {field.name for field in fields(said) if getattr(said, field.name) == field.default}
    return replace(said, **{name: value for name, value in found.items() if value is not None and name in unsaid})


class Batches:
    """The indices of a batch sampler, one after the other. `size`: of its batches, all of which are as large but the
    last one of an epoch: steps of the Agent begin where batches do.
    """

    def __init__(self, batch_sampler: Any) -> None:
        self.batch_sampler = batch_sampler
        with Apart(0).used():
            self.size = int(getattr(batch_sampler, "batch_size", None) or len(next(iter(batch_sampler))))

    def __iter__(self) -> Iterator[int]:
        for batch, behind in pairwise(chain(self.batch_sampler, ([],))):
            if len(batch) > self.size or (behind and len(batch) != self.size):
                raise UsageError(
                    f"The batch sampler gives a batch of {len(batch)} samples beside those of {self.size}: all steps "
                    "have as many. Pass batch_size=N, and the order of its samples as sampler=."
                )
            yield from batch
