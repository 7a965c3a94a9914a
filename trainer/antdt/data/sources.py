"""Samples by position: map-style and iterable data sets, in the order that the job fixed.

A position is what the ledger counts; which sample it is follows from the order of its epoch: a permutation, the data
set's own order, or the list that a sampler draws (`sampling`). Knows torch, no Kafka.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from antdt_schemas.errors import UsageError
from antdt_schemas.order import FACTOR, FEISTEL, SEQUENTIAL, Permutation
from antdt_schemas.ranges import Range
from torch.utils.data import IterableDataset, TensorDataset, default_collate

from antdt.data.names import name_of
from antdt.data.pinning import Pinning
from antdt.data.readers import ItemReader, Piece
from antdt.data.sampling import Drawn
from antdt.data.streams import IterableSource
from antdt.data.topics import Topic, TopicSource
from antdt.host import whereabouts

__all__ = ["IterableSource", "MapSource", "Source", "manifest_digest", "position_key", "source_of", "split"]

BLOCKS_KEPT_MAX = 64
BLOCKS_AHEAD_MAX = 4
BLOCK = 4096
SHIFT = np.uint32(16)

Numbers = npt.NDArray[np.int64]


def permute(permutation: Permutation, positions: torch.Tensor) -> torch.Tensor:
    """Sample indices of positions, int64: the vectorised form of `Permutation.__call__`, in 32-bit words that wrap."""
    out = positions.numpy().copy()
    todo, at = np.arange(len(out)), out
    while todo.size:
        found = _once(permutation, at)
        out[todo] = found
        again = np.flatnonzero(found >= permutation.size)
        todo, at = todo[again], found[again]
    return torch.from_numpy(out)


def _once(permutation: Permutation, at: Numbers) -> Numbers:
    """Through the network once, whatever the result."""
    half, mask = permutation.half_bits, (1 << permutation.half_bits) - 1
    left, right = (at >> half).astype(np.uint32), (at & mask).astype(np.uint32)
    x, shifted = np.empty_like(left), np.empty_like(left)
    for key in permutation.keys:
        np.add(right, np.uint32(key), out=x)
        for _ in range(2):
            np.right_shift(x, SHIFT, out=shifted)
            np.bitwise_xor(x, shifted, out=x)
            np.multiply(x, np.uint32(FACTOR), out=x)
        np.right_shift(x, SHIFT, out=shifted)
        np.bitwise_xor(x, shifted, out=x)
        np.bitwise_and(x, np.uint32(mask), out=x)
        np.bitwise_xor(left, x, out=left)
        left, right = right, left
    return (left.astype(np.int64) << half) | right


class Source(Protocol):
    """Where samples come from. `order` names how positions map to samples. has_names: see `position_key`."""

    dataset: Any
    size: int
    order: str
    has_names: bool

    def fetch(self, ranges: Sequence[Range]) -> Any:
        """The collated batch of these ranges."""

    def count(self, ranges: Sequence[Range]) -> int:
        """How many samples they have: of a topic, fewer than positions."""


class MapSource:
    """A map-style data set, in every epoch in another seeded permutation, in its own order, or as a sampler draws it:
    then `size` is the length of the sampler's list, and samples may be in it twice or not at all.
    """

    order = FEISTEL

    def __init__(
        self,
        dataset: Any,
        seed: int,
        collate: Callable[[list[Any]], Any] | None,
        shuffle: bool,
        pinning: Pinning | None,
        drawn: Drawn | None = None,
    ) -> None:
        self.dataset, self.seed, self._drawn = dataset, seed, drawn
        self.size = drawn.size if drawn is not None else len(dataset)
        self.has_names = self.size > 0 and bool(name_of(dataset, 0))
        self.collate = pinning.collate(collate) if pinning else collate or default_collate
        self._pinning = pinning
        self.order = drawn.order if drawn is not None else FEISTEL if shuffle else SEQUENTIAL
        self._tensors = dataset.tensors if isinstance(dataset, TensorDataset) and collate is None else None
        self._blocks: OrderedDict[tuple[int, int], torch.Tensor] = OrderedDict()

    def count(self, ranges: Sequence[Range]) -> int:
        """How many samples they have."""
        return sum([r.length for r in ranges])

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
        if self._drawn is not None:
            return self._drawn.list_of(epoch)[start : start + length]
        if self.order == SEQUENTIAL:
            return torch.arange(start, start + length, device="cpu")
        first, last = start // BLOCK, (start + length - 1) // BLOCK
        block = self._block(epoch, first)
        if first == last:
            return block[start - first * BLOCK : start - first * BLOCK + length]
        whole = torch.cat([self._block(epoch, number) for number in range(first, last + 1)])
        return whole[start - first * BLOCK : start - first * BLOCK + length]

    def prepare(self, epoch: int, start: int, length: int) -> None:
        """Work out the order of what will be taken soon, off the training thread; what is leased far ahead can wait.
        A sampler draws in the training thread: it uses the generators that this thread has.
        """
        if self._drawn is not None:
            return
        for number in range(start // BLOCK, (start + length - 1) // BLOCK + 1)[:BLOCKS_AHEAD_MAX]:
            self._block(epoch, number)

    def _block(self, epoch: int, number: int) -> torch.Tensor:
        key = (epoch, number)
        block = self._blocks.get(key)
        if block is None:
            positions = torch.arange(number * BLOCK, min((number + 1) * BLOCK, self.size), device="cpu")
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
            rows = self._pinning.rows if self._pinning else _rows
            return [rows(tensor, index) for tensor in self._tensors]
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


def _rows(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`tensor[index]`, by what takes less time where the strides come out alike."""
    return tensor.index_select(0, index) if tensor.is_cpu and tensor.is_contiguous() else tensor[index]


def source_of(
    dataset: Any,
    *,
    seed: int = 0,
    size: int | None = None,
    shuffle: bool = True,
    sampler: Any = None,
    epochs: int = 1,
    collate: Callable[[list[Any]], Any] | None = None,
    pinning: Pinning | None = None,
) -> MapSource | IterableSource:
    """The source for a PyTorch data set.

    size: number of samples of an iterable data set that does not know its length. sampler: see `Drawn`; epochs: how
    many of its lists there will be. pinning: for batches in page-locked memory.

    Raises:
        UsageError: the data set is empty, its size is not known, or the sampler cannot be shared.
    """
    if isinstance(dataset, Topic):
        if sampler is not None or size is not None:
            raise UsageError("A topic has its size and its order by itself: pass neither size nor a sampler.")
        return TopicSource(dataset, collate, pinning)
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        if not hasattr(dataset, "__iter__") and not hasattr(dataset, "iter_range"):
            raise UsageError(f"{type(dataset).__name__} is no data set: it has neither __getitem__ nor __iter__.")
        if sampler is not None:
            raise UsageError("A sampler chooses samples by index, and a stream has none: pass one of both.")
        count = size if size is not None else (len(dataset) if hasattr(dataset, "__len__") else 0)
        if count < 1:
            raise UsageError("An iterable data set needs its number of samples: pass size=N to antdt.Agent.")
        return IterableSource(dataset, count, collate, pinning, seed)
    if len(dataset) < 1:
        raise UsageError("The data set is empty.")
    drawn = Drawn(sampler, seed=seed, samples=len(dataset), epochs=epochs) if sampler is not None else None
    return MapSource(dataset, seed, collate, shuffle, pinning, drawn)


def manifest_digest(dataset: Any, source: Source) -> bytes:
    """Digest that tells one data set from another, 16 bytes.

    A data set may state its own as `manifest_digest` (bytes); otherwise type and size count, and for tensors their
    shapes, types and a thousand evenly spread values each.
    """
    if isinstance(source, TopicSource):
        return source.digest
    own, order = getattr(dataset, "manifest_digest", None), source.order.partition("/")[0]
    out = blake2b(digest_size=16)
    out.update(f"{type(dataset).__module__}.{type(dataset).__qualname__}/{source.size}/{order}".encode())
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
    """What to call the sample at a position: its `sample_key`, its index, or the record of a topic; empty where it has
    none of them.
    """
    if isinstance(source, TopicSource):
        return source.name_of(epoch, position)
    if not isinstance(source, MapSource):
        return ""
    index = int(source.indices(epoch, position, 1)[0])
    return name_of(source.dataset, index) or f"index {index}"


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
