"""Which samples are loaded ahead, and how they become batches.

Owns the order of pieces and the bound on what is held. Must not know where positions come from: it is told what will be
taken next, as often as that changes, and whatever is not named any more is dropped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

from antdt_schemas.errors import Unavailable, UsageError
from antdt_schemas.ranges import Range

from antdt.data.loading.pool import Job, Pool, SampleFailed
from antdt.data.loading.worker import Setup
from antdt.data.sources import IterableSource, MapSource
from antdt.host import whereabouts

CHUNK_MIN, CHUNK_MAX = 4, 32
SLICE_S = 1.0
Span = tuple[int, int, int]  # epoch, start, length


@dataclass(frozen=True)
class LoadingOptions:
    """How `num_workers` data processes load samples; names are those of torch.utils.data.DataLoader.

    prefetch_factor: whole steps that are loaded ahead, and at least as many chunks for each process; what is held is
    bounded by that. chunk_size: samples that a process loads at a time; 0 chooses an even part of a step, of 4 to 32.
    timeout_s: for how long to wait for a sample. multiprocessing_context: fork, spawn or forkserver; None is the
    system's own, as in torch. worker_init_fn(number) runs first in each process, where `get_worker_info()` works.

    collate_fn runs in the loop's own process, on whole steps: batch sizes are not known ahead. So does pin_memory,
    which is the Agent's own argument, as it works without data processes as well.
    """

    worker_init_fn: Callable[[int], None] | None = None
    multiprocessing_context: str | None = None
    prefetch_factor: int = 2
    chunk_size: int = 0
    timeout_s: float = 300.0


class Loading(Protocol):
    """Makes batches of positions. `is_here`: whether this process loads the samples itself."""

    is_here: bool

    def ahead(self, batch_size: int) -> int:
        """How many samples to name in advance, behind those of the step at hand."""

    def expect(self, upcoming: Sequence[Span], batch_size: int) -> None:
        """All that will be taken next, in order, beginning with the step at hand."""

    def fetch(self, ranges: Sequence[Range]) -> Any:
        """The collated batch of these ranges."""

    def peek(self, ranges: Sequence[Range]) -> Any:
        """The same without waiting for a sample, or loading one; None where that cannot be."""

    def close(self) -> None:
        """The end."""


class InThread:
    """Samples are loaded when they are needed, by whoever needs them."""

    is_here = True

    def __init__(self, source: MapSource | IterableSource) -> None:
        self.source = source

    def ahead(self, batch_size: int) -> int:
        """Nothing is done in advance."""
        return 0

    def expect(self, upcoming: Sequence[Span], batch_size: int) -> None:
        """Nothing is done in advance."""

    def fetch(self, ranges: Sequence[Range]) -> Any:
        """The collated batch of these ranges."""
        return self.source.fetch(ranges)

    def peek(self, ranges: Sequence[Range]) -> Any:
        """Of tensors only: anything else runs code of the data set, whose turn it is not."""
        return self.source.fetch(ranges) if isinstance(self.source, MapSource) and self.source.is_tensors else None

    def close(self) -> None:
        """Nothing to end."""


class Loader:
    """Samples are loaded ahead by processes.

    Invariant: `_jobs` are in the order of their positions and do not overlap. Which positions a step takes is never
    decided here: a batch is cut from whatever pieces there are, and is the same whatever they are.
    """

    is_here = False

    def __init__(self, source: MapSource | IterableSource, setup: Setup, options: LoadingOptions) -> None:
        self.source, self.options, self.workers = source, options, setup.count
        self._jobs: list[Job] = []
        self._most = 0  # samples that were ever to be named ahead of a step: what is held is bounded by it
        self.pool = Pool(source.reader, setup, options.multiprocessing_context)

    def _chunk(self, batch_size: int) -> int:
        return self.options.chunk_size or max(CHUNK_MIN, min(CHUNK_MAX, -(-batch_size // self.workers)))

    def _bound(self, batch_size: int) -> int:
        return self.options.prefetch_factor * max(batch_size, self.workers * self._chunk(batch_size))

    def ahead(self, batch_size: int) -> int:
        """One chunk more than is loaded, so that chunks need not be cut; and what was loaded for larger steps."""
        ahead = self._bound(batch_size) + self._chunk(batch_size)
        self._most = max(self._most, ahead)
        return max(ahead, min(self._most, sum(job.piece.length for job in self._jobs)))

    def expect(self, upcoming: Sequence[Span], batch_size: int) -> None:
        """Load what is missing, in order, up to the bound; drop what is not named. An empty list drops everything."""
        chunk, room = self._chunk(batch_size), batch_size + self._bound(batch_size)
        kept = set[int]()
        for epoch, start, stop in _runs(upcoming):
            at = start
            while at < stop:
                job = self._at(epoch, at)
                if job is None:
                    if room <= 0:
                        break
                    job = self._load(epoch, at, min(stop, at + chunk))
                kept.add(job.number)
                end = min(stop, job.piece.stop)
                room, at = room - (end - at), end
        self.pool.drop([job for job in self._jobs if job.number not in kept])
        self._jobs = [job for job in self._jobs if job.number in kept]

    def _at(self, epoch: int, position: int) -> Job | None:
        behind = bisect_right(self._jobs, (epoch, position), key=_begins)
        job = self._jobs[behind - 1] if behind else None
        return job if job is not None and job.piece.epoch == epoch and position < job.piece.stop else None

    def _load(self, epoch: int, start: int, stop: int) -> Job:
        behind = bisect_right(self._jobs, (epoch, start), key=_begins)
        if behind < len(self._jobs) and self._jobs[behind].piece.epoch == epoch:
            stop = min(stop, self._jobs[behind].piece.start)
        job = self.pool.submit(self.source.piece(epoch, start, stop - start))
        self._jobs.insert(behind, job)
        return job

    def fetch(self, ranges: Sequence[Range]) -> Any:
        """The collated batch of these ranges; waits for what is not there yet.

        Raises:
            SampleFailed: the data set raised, with its traceback.
            DataProcessDied: a data process is gone.
            Unavailable: a sample did not come within `timeout_s`.
        """
        samples: list[Any] = []
        for r in ranges:
            at, stop = r.start, r.start + r.length
            while at < stop:
                job = self._at(r.epoch, at) or self._load(r.epoch, at, stop)
                end = min(stop, job.piece.stop)
                samples += self._cut(job, at - job.piece.start, end - job.piece.start)
                at = end
        return self.source.collate(samples)

    def peek(self, ranges: Sequence[Range]) -> Any:
        """The collated batch of these ranges; None where some of it is not there yet, or has failed."""
        samples: list[Any] = []
        for r in ranges:
            at, stop = r.start, r.start + r.length
            while at < stop:
                job = self._at(r.epoch, at)
                while job is not None and not job.done and self.pool.receive(0):
                    pass
                if job is None or not job.done:
                    return None
                end, start = min(stop, job.piece.stop), job.piece.start
                samples += job.looked_at().samples[at - start : end - start]
                at = end
        return self.source.collate(samples) if len(samples) == sum(r.length for r in ranges) else None

    def _cut(self, job: Job, first: int, last: int) -> list[Any]:
        until = monotonic() + self.options.timeout_s
        if not job.done:
            whereabouts.mine().detail = f"a data process is to load {job.piece.name()}"
        while not job.done:
            left_s = until - monotonic()
            if left_s <= 0:
                raise Unavailable(
                    f"A data process was to load {job.piece.name()}: nothing came within {self.options.timeout_s:g} s.",
                    "Does the data set wait for something? LoadingOptions(timeout_s=…) gives it more time.",
                )
            self.pool.receive(min(left_s, SLICE_S))
        outcome = job.looked_at()
        if last > len(outcome.samples):
            first, number = outcome.failed or (0, 0)
            raise SampleFailed(outcome.failure, (job.piece.epoch, job.piece.start + first, number) if number else None)
        return outcome.samples[first:last]

    def close(self) -> None:
        """End the processes."""
        for job in self._jobs:
            job.throw_away()
        self._jobs = []
        self.pool.close()


def _begins(job: Job) -> tuple[int, int]:
    return job.piece.epoch, job.piece.start


def _runs(spans: Sequence[Span]) -> list[tuple[int, int, int]]:
    """(epoch, start, stop), those that follow each other joined: a chunk may reach over the border of two leases."""
    out: list[tuple[int, int, int]] = []
    for epoch, start, length in spans:
        if out and out[-1][0] == epoch and out[-1][2] == start:
            out[-1] = (epoch, out[-1][1], start + length)
        else:
            out.append((epoch, start, start + length))
    return out


def loader_of(
    source: MapSource | IterableSource, num_workers: int, seed: int, options: LoadingOptions
) -> InThread | Loader:
    """Who loads samples of this source. Processes are forked here: no thread, client or socket may be there yet.

    Raises:
        UsageError: a value that cannot work, with what to do about it.
    """
    if num_workers < 0:
        raise UsageError(f"num_workers={num_workers}: take 0 for none, or more.")
    if options.prefetch_factor < 1 or options.chunk_size < 0:
        raise UsageError("LoadingOptions: prefetch_factor is at least 1, chunk_size at least 0.")
    if num_workers == 0 or (isinstance(source, MapSource) and source.is_tensors):
        return InThread(source)
    if isinstance(source, IterableSource) and not hasattr(source.dataset, "iter_range"):
        raise UsageError(
            f"num_workers={num_workers}: an iterable data set cannot be loaded by several processes unless it has "
            "iter_range(start, stop), which gives the samples of these positions. Add it, or take num_workers=0."
        )
    return Loader(source, Setup(0, num_workers, seed, options.worker_init_fn), options)
