"""Samples by position: map-style and iterable data sets, in the order that the job fixed.

A position is what the ledger leases; which sample it is follows from the order of its epoch. Knows torch, no Kafka.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

import torch
from antdt_schemas.errors import UsageError
from antdt_schemas.order import FACTOR, FEISTEL, SEQUENTIAL, WORD, Permutation
from antdt_schemas.ranges import Range
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from antdt.data.names import name_of
from antdt.data.pinning import Pinning
from antdt.host import whereabouts

BLOCKS_KEPT_MAX = 64
BLOCKS_AHEAD_MAX = 4
BLOCK = 4096


def permute(permutation: Permutation, positions: torch.Tensor) -> torch.Tensor:
    """Sample indices of positions, int64: the vectorised form of `Permutation.__call__`."""
    half, mask = permutation.half_bits, (1 << permutation.half_bits) - 1
    out = positions.clone()
    todo = torch.ones_like(out, dtype=torch.bool)
    while bool(todo.any()):
        at = out[todo]
        left, right = at >> half, at & mask
        for key in permutation.keys:
            x = (right + key) & WORD
            x = ((x ^ (x >> 16)) * FACTOR) & WORD
            x = ((x ^ (x >> 16)) * FACTOR) & WORD
            left, right = right, left ^ ((x ^ (x >> 16)) & mask)
        out[todo] = (left << half) | right
        todo = out >= permutation.size
    return out


@dataclass(frozen=True, slots=True)
class Piece:
    """Contiguous positions of one epoch, [start, start + length). indices: of their samples, where those have any."""

    epoch: int
    start: int
    length: int
    indices: tuple[int, ...] | None = None

    @property
    def stop(self) -> int:
        """The position behind the last one."""
        return self.start + self.length

    def part(self, at: int) -> Piece:
        """Its sample number `at` alone."""
        return Piece(self.epoch, self.start + at, 1, None if self.indices is None else (self.indices[at],))

    def name(self, at: int = 0) -> str:
        """What to call its sample number `at`, counted from its beginning."""
        at = min(at, self.length - 1)
        where = f"position {self.start + at} of epoch {self.epoch}"
        return f"the sample at {where}" if self.indices is None else f"sample {self.indices[at]} ({where})"


class Reader(Protocol):
    """Gives the samples of pieces, in any process: nothing else of a source travels there."""

    @property
    def dataset(self) -> Any:
        """The data set itself."""

    @property
    def at_once(self) -> bool:
        """Whether all samples of a piece are loaded by one call of the data set."""

    def samples(self, piece: Piece, before: Callable[[int], None]) -> Iterator[Any]:
        """One after another; calls before(position) first."""


@dataclass(frozen=True, slots=True)
class ItemReader:
    """Samples by index. A data set with `__getitems__` is asked for all of a piece at once."""

    dataset: Any

    @property
    def at_once(self) -> bool:
        """Whether all samples of a piece are loaded by one call of the data set."""
        return hasattr(self.dataset, "__getitems__")

    def samples(self, piece: Piece, before: Callable[[int], None]) -> Iterator[Any]:
        """One after another."""
        assert piece.indices is not None
        fetch_many = getattr(self.dataset, "__getitems__", None)
        if fetch_many is not None:
            before(piece.start)
            yield from fetch_many(list(piece.indices))
            return
        for position, index in enumerate(piece.indices, piece.start):
            before(position)
            yield self.dataset[index]


@dataclass(frozen=True, slots=True)
class RangeReader:
    """Samples by position, from a data set with `iter_range(start, stop)`."""

    dataset: Any
    size: int

    @property
    def at_once(self) -> bool:
        """One after another."""
        return False

    def samples(self, piece: Piece, before: Callable[[int], None]) -> Iterator[Any]:
        """One after another."""
        found = iter(self.dataset.iter_range(piece.start, piece.stop))
        for position in range(piece.start, piece.stop):
            before(position)
            try:
                sample = next(found)
            except StopIteration:
                raise UsageError(_too_few(position - piece.start, piece.start, piece.stop, self.size)) from None
            yield sample


class Source(Protocol):
    """Where samples come from. `order` names how positions map to samples. has_names: see `position_key`."""

    dataset: Any
    size: int
    order: str
    has_names: bool

    def fetch(self, ranges: Sequence[Range]) -> Any:
        """The collated batch of these ranges."""


class MapSource:
    """A map-style data set in a seeded permutation of every epoch."""

    order = FEISTEL

    def __init__(
        self,
        dataset: Any,
        seed: int,
        collate: Callable[[list[Any]], Any] | None,
        shuffle: bool,
        pinning: Pinning | None,
    ) -> None:
        self.dataset, self.size, self.seed = dataset, len(dataset), seed
        self.has_names = self.size > 0 and bool(name_of(dataset, 0))
        self.collate = pinning.collate(collate) if pinning else collate or default_collate
        self._pinning = pinning
        self.order = FEISTEL if shuffle else SEQUENTIAL
        self._tensors = dataset.tensors if isinstance(dataset, TensorDataset) and collate is None else None
        self._blocks: OrderedDict[tuple[int, int], torch.Tensor] = OrderedDict()

    @property
    def is_tensors(self) -> bool:
        """Whether batches are cut from whole tensors: no process could do that faster than it could pass them on."""
        return self._tensors is not None

    @property
    def reader(self) -> ItemReader:
        """What loads samples elsewhere."""
        return ItemReader(self.dataset)

    def piece(self, epoch: int, start: int, length: int) -> Piece:
        """These positions, for the reader."""
        return Piece(epoch, start, length, tuple(self.indices(epoch, start, length).tolist()))

    def indices(self, epoch: int, start: int, length: int) -> torch.Tensor:
        """Sample indices of positions [start, start + length) of an epoch."""
        if self.order == SEQUENTIAL:
            return torch.arange(start, start + length)
        first, last = start // BLOCK, (start + length - 1) // BLOCK
        block = self._block(epoch, first)
        if first == last:
            return block[start - first * BLOCK : start - first * BLOCK + length]
        whole = torch.cat([self._block(epoch, number) for number in range(first, last + 1)])
        return whole[start - first * BLOCK : start - first * BLOCK + length]

    def prepare(self, epoch: int, start: int, length: int) -> None:
        """Work out the order of what will be taken soon, off the training thread; what is leased far ahead can wait."""
        for number in range(start // BLOCK, (start + length - 1) // BLOCK + 1)[:BLOCKS_AHEAD_MAX]:
            self._block(epoch, number)

    def _block(self, epoch: int, number: int) -> torch.Tensor:
        key = (epoch, number)
        block = self._blocks.get(key)
        if block is None:
            positions = torch.arange(number * BLOCK, min((number + 1) * BLOCK, self.size))
            block = permute(Permutation.of(self.seed, epoch, self.size), positions)
            self._blocks[key] = block
            while len(self._blocks) > BLOCKS_KEPT_MAX:
                self._blocks.popitem(last=False)
        return block

    def fetch(self, ranges: Sequence[Range]) -> Any:
        """The collated batch of these ranges."""
        parts = [self.indices(r.epoch, r.start, r.length) for r in ranges]
        index = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self._tensors is not None:
            return [self._pinning.rows(t, index) if self._pinning else t[index] for t in self._tensors]
        chosen = index.tolist()
        fetch_many = getattr(self.dataset, "__getitems__", None)
        return self.collate(fetch_many(chosen) if fetch_many else self._one_by_one(ranges, chosen))

    def _one_by_one(self, ranges: Sequence[Range], chosen: list[int]) -> list[Any]:
        """Whoever wonders what takes so long, or what has failed, finds which sample it is."""
        page, out, indices = whereabouts.mine(), list[Any](), iter(chosen)
        for r in ranges:
            for position in range(r.start, r.start + r.length):
                if self.has_names:
                    page.say(whereabouts.KEY, position_key(self, r.epoch, position))
                page.load(r.epoch, position)
                out.append(self.dataset[next(indices)])
        page.loaded()
        return out


class IterableSource:
    """An iterable data set: position k is the k-th sample of an iteration, which must give the same every time.

    Each worker iterates for itself and skips what others hold. A data set with `iter_range(start, stop)` is asked for
    the range instead. Going back (a range came back from a lost worker) starts a new iteration.
    """

    order = SEQUENTIAL
    has_names = False

    def __init__(
        self, dataset: Any, size: int, collate: Callable[[list[Any]], Any] | None, pinning: Pinning | None
    ) -> None:
        self.dataset, self.size = dataset, size
        self.collate = pinning.collate(collate) if pinning else collate or default_collate
        self._iterator: Iterator[Any] | None = None
        self._at = (-1, 0)

    def prepare(self, epoch: int, start: int, length: int) -> None:
        """Nothing can be known ahead."""

    @property
    def reader(self) -> RangeReader:
        """What loads samples elsewhere; for a data set with `iter_range` only."""
        return RangeReader(self.dataset, self.size)

    def piece(self, epoch: int, start: int, length: int) -> Piece:
        """These positions, for the reader."""
        return Piece(epoch, start, length)

    def fetch(self, ranges: Sequence[Range]) -> Any:
        """The collated batch of these ranges."""
        return self.collate([sample for r in ranges for sample in self._read(r)])

    def _read(self, taken: Range) -> list[Any]:
        by_range = getattr(self.dataset, "iter_range", None)
        if by_range is not None:
            got = list(by_range(taken.start, taken.start + taken.length))
        else:
            got = self._skip_to(taken)
        if len(got) != taken.length:
            raise UsageError(_too_few(len(got), taken.start, taken.start + taken.length, self.size))
        return got

    def _skip_to(self, taken: Range) -> list[Any]:
        epoch, at = self._at
        if self._iterator is None or epoch != taken.epoch or at > taken.start:
            self._iterator, at = iter(self.dataset), 0
        got = []
        for sample in self._iterator:
            if at >= taken.start:
                got.append(sample)
            at += 1
            if at == taken.start + taken.length:
                break
        self._at = (taken.epoch, at)
        return got


def _too_few(got: int, start: int, stop: int, size: int) -> str:
    return (
        f"The data set gave {got} samples for positions [{start}, {stop}), its size was stated as {size}: "
        "it must give the same samples in every iteration."
    )


def source_of(
    dataset: Any,
    *,
    seed: int = 0,
    size: int | None = None,
    shuffle: bool = True,
    collate: Callable[[list[Any]], Any] | None = None,
    pinning: Pinning | None = None,
) -> MapSource | IterableSource:
    """The source for a PyTorch data set.

    size: number of samples of an iterable data set that does not know its length. pinning: for batches in page-locked
    memory.

    Raises:
        UsageError: the data set is empty or a DataLoader, or its size is not known.
    """
    if isinstance(dataset, DataLoader):
        raise UsageError(
            "antdt.Agent takes the data set, not a DataLoader, whose batches would each count as one sample: "
            "Agent(model, optimizer, loader.dataset, batch_size=N, collate_fn=..., num_workers=...) loads it itself. "
            "batch_size is that of all workers together."
        )
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        count = size if size is not None else (len(dataset) if hasattr(dataset, "__len__") else 0)
        if count < 1:
            raise UsageError("An iterable data set needs its number of samples: pass size=N to antdt.Agent.")
        return IterableSource(dataset, count, collate, pinning)
    if len(dataset) < 1:
        raise UsageError("The data set is empty.")
    return MapSource(dataset, seed, collate, shuffle, pinning)


def manifest_digest(dataset: Any, source: Source) -> bytes:
    """Digest that tells one data set from another, 16 bytes.

    A data set may state its own as `manifest_digest` (bytes); otherwise type and size count, and for tensors their
    shapes, types and a thousand evenly spread values each.
    """
    own = getattr(dataset, "manifest_digest", None)
    out = blake2b(digest_size=16)
    out.update(f"{type(dataset).__module__}.{type(dataset).__qualname__}/{source.size}/{source.order}".encode())
    if own is not None:
        out.update(own() if callable(own) else own)
    tensors = getattr(dataset, "tensors", ()) if own is None else ()
    for tensor in tensors if isinstance(tensors, tuple | list) else ():
        if not isinstance(tensor, torch.Tensor):
            continue  # somebody's own attribute of that name
        flat = tensor.reshape(-1)
        picked = flat[:: max(1, flat.numel() // 1000)].contiguous().cpu()
        out.update(f"{tuple(tensor.shape)}/{tensor.dtype}".encode())
        out.update(repr(picked.tolist()).encode())
    return out.digest()


def position_key(source: Source, epoch: int, position: int) -> str:
    """What to call the sample at a position: its `sample_key`, or its index; empty where it has neither."""
    if not isinstance(source, MapSource):
        return ""
    index = int(source.indices(epoch, position, 1)[0])
    return name_of(source.dataset, index) or f"index {index}"


def batches(ranges: Sequence[Range], batch_size: int) -> list[list[Range]]:
    """Cut ranges into pieces of at most so many samples, as few and as even as can be."""
    return split(ranges, -(-sum(r.length for r in ranges) // batch_size))


def split(ranges: Sequence[Range], parts: int) -> list[list[Range]]:
    """Cut ranges into `parts` pieces of nearly equal numbers of samples, in order; never an empty one."""
    if parts == 1:
        return [list(ranges)]
    total = sum(r.length for r in ranges)
    parts = min(parts, total)
    sizes = [total // parts + (i < total % parts) for i in range(parts)]
    out, queue = list[list[Range]](), list(reversed(ranges))
    for size in sizes:
        piece: list[Range] = []
        while size:
            r = queue.pop()
            length = min(size, r.length)
            piece.append(r._replace(length=length))
            size -= length
            if length < r.length:
                queue.append(r._replace(start=r.start + length, length=r.length - length))
        out.append(piece)
    return out
