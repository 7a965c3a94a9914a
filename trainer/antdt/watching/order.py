"""In which order somebody else's DataLoader gives its samples, as far as that can be known from outside.

A DataLoader draws batches of indices in its own process and gives the batches in that order, however many processes
load them. So what was drawn is noted, and counts once its batch is trained on. Nothing is drawn that would not have
been, and no index is changed. Must not know what a step is.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import BatchSampler, DataLoader

ROOT = bytes(16)
DRAWN_MAX = 1 << 16
# What of a sampler is worth saying, as far as it has it.
TRAITS = ("num_samples", "replacement", "seed", "epoch", "shuffle", "num_replicas", "rank", "drop_last")


def follow(lineage: bytes, indices: Sequence[int]) -> bytes:
    """The rolling hash behind one more batch, 16 bytes: of the hash before, and each index as 8 bytes, big-endian."""
    numbers = b"".join(int(index).to_bytes(8, "big", signed=True) for index in indices)
    return hashlib.blake2b(lineage + numbers, digest_size=16).digest()


class Noted(BatchSampler):  # type: ignore[misc]
    """A batch sampler, and what it has drawn."""

    def __init__(self, inner: Any, order: Order) -> None:
        self.inner, self.order = inner, order

    def __iter__(self) -> Iterator[list[int]]:
        self.order.begin()
        yield from self.order._noted(iter(self.inner))

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.inner, name)


class Order:
    """Of one loader. `lineage`: of what was trained on so far; empty once that cannot be known. said: is told what
    draws, at the beginning of each epoch.
    """

    def __init__(self, loader: Any, said: Callable[[str], None] = lambda _: None) -> None:
        self._loader, self._drawn, self.lineage = loader, deque[tuple[int, ...]](maxlen=DRAWN_MAX), b""
        inner = getattr(loader, "batch_sampler", None)
        plain = isinstance(loader, DataLoader) and inner is not None and not isinstance(inner, Noted)
        self._known, self._said = plain, said
        if plain:
            loader.__dict__["batch_sampler"] = Noted(inner, self)  # its own setter takes none afterwards
            self.lineage = ROOT
            said(self.said)

    @property
    def said(self) -> str:
        """What draws, in one line; empty where it is not known."""
        if not self._known:
            return ""
        draws = self._loader.batch_sampler.inner
        while hasattr(draws, "batch_sampler"):  # Accelerate's are around torch's
            draws = draws.batch_sampler
        sampler = getattr(draws, "sampler", draws)
        traits = [f"{name}={getattr(sampler, name)}" for name in TRAITS if _is_plain(getattr(sampler, name, None))]
        dataset, many = type(self._loader.dataset).__name__, len(self._loader.dataset)
        batch = getattr(draws, "batch_size", None)
        return f"{type(sampler).__name__}({', '.join(traits)}) of {dataset}[{many}] in batches of {batch}"

    def adopt(self, running: Any) -> None:
        """An iterator that the loader has made before, and that has drawn nothing yet, is one of ours. One that has
        drawn ahead, for processes, leaves the order unknown.
        """
        draws = getattr(running, "_sampler_iter", None)
        if self._known and draws is not None and not getattr(running, "_num_workers", 1) and not running._num_yielded:
            running._sampler_iter = self._noted(draws)

    def _noted(self, draws: Iterator[list[int]]) -> Iterator[list[int]]:
        for batch in draws:
            self.drew(batch)
            yield batch

    def begin(self) -> None:
        """An epoch: what one that was broken off has drawn ahead is given to nobody."""
        self._drawn.clear()
        self._said(self.said)

    def drew(self, batch: Sequence[int]) -> None:
        """These indices come next."""
        self._drawn.append(tuple(batch))

    def took(self) -> None:
        """One more batch is trained on."""
        if not self._known:
            return
        if not self._drawn:  # batches that this loader did not draw
            self._known, self.lineage = False, b""
            return
        self.lineage = follow(self.lineage, self._drawn.popleft())


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | str)
