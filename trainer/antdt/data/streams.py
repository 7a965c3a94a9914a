"""Samples by position where a data set can only be iterated: position k is the k-th sample of an iteration.

Owns that every iteration of an epoch can give the same samples: its random numbers are its own. Must not know who else
iterates, nor whether they were found to be the same (`fingerprint`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from antdt_schemas.errors import UsageError
from antdt_schemas.order import SEQUENTIAL
from antdt_schemas.ranges import Range
from torch.utils.data import default_collate

from antdt.data.pinning import Pinning
from antdt.data.readers import Piece, RangeReader, too_few
from antdt.data.seeding import Apart, seed_of

log = logging.getLogger("antdt")


class IterableSource:
    """An iterable data set, which must give the same samples in every iteration of an epoch, to every worker.

    Each worker iterates for itself and skips what others hold. A data set with `iter_range(start, stop)` is asked for
    the range instead. Going back (a range came back from a lost worker) starts a new iteration. One with `set_epoch` is
    told the epoch, and what it draws by `random`, `torch` and `numpy` follows from seed and epoch: a buffer that it
    shuffles gives the same to all, and another order in another epoch.
    """

    order = SEQUENTIAL
    has_names = False

    def __init__(
        self,
        dataset: Any,
        size: int,
        collate: Callable[[list[Any]], Any] | None,
        pinning: Pinning | None,
        seed: int = 0,
    ) -> None:
        self.dataset, self.size, self.seed = dataset, size, seed
        self.collate = pinning.collate(collate) if pinning else collate or default_collate
        self._iterator: Iterator[Any] | None = None
        self._at, self.apart, self._looked_behind = (-1, 0), Apart(0), False

    def prepare(self, epoch: int, start: int, length: int) -> None:
        """Nothing can be known ahead."""

    def count(self, ranges: Sequence[Range]) -> int:
        """How many samples they have."""
        return sum([r.length for r in ranges])

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

    def begin(self, epoch: int) -> Iterator[Any]:
        """A new iteration of this epoch, and `apart`, generators of its own, to be used while it goes on."""
        self.apart = Apart(seed_of("stream", self.seed, epoch))
        tell = getattr(self.dataset, "set_epoch", None)
        if callable(tell):
            tell(epoch)
        with self.apart.used():
            return iter(self.dataset)

    def _read(self, taken: Range) -> list[Any]:
        by_range = getattr(self.dataset, "iter_range", None)
        if by_range is not None:
            got = list(by_range(taken.start, taken.start + taken.length))
        else:
            got = self._skip_to(taken)
        if len(got) != taken.length:
            raise UsageError(too_few(len(got), taken.start, taken.start + taken.length, self.size))
        return got

    def _skip_to(self, taken: Range) -> list[Any]:
        epoch, at = self._at
        if self._iterator is None or epoch != taken.epoch or at > taken.start:
            self._iterator, at = self.begin(taken.epoch), 0
        got = []
        with self.apart.used():
            for sample in self._iterator:
                if at >= taken.start:
                    got.append(sample)
                at += 1
                if at == taken.start + taken.length:
                    break
            if at == self.size:
                self._look_behind()
        self._at = (taken.epoch, at)
        return got

    def _look_behind(self) -> None:
        """Once: what is behind the stated size is in no epoch, and nobody would ever know."""
        if self._looked_behind:
            return
        self._looked_behind = True
        assert self._iterator is not None
        if next(self._iterator, self) is not self:
            log.warning(
                "The data set has more than the size=%d samples that were stated: what comes behind them is in "
                "no epoch.",
                self.size,
            )
