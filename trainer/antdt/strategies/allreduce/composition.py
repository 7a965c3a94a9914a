"""What one step consists of: the row every member announces, and what all members conclude from all rows.

Pure: whole numbers in, whole numbers out. It must not know torch, groups or generations.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from antdt_schemas.errors import Mismatch
from antdt_schemas.lineage import DIGEST_SIZE, next_lineage
from antdt_schemas.ranges import Range

from antdt.strategies.base import Place

RANGES_MAX = 8
HEAD_WIDTH = 12
RANGE_WIDTH = 5
ROW_WIDTH = HEAD_WIDTH + RANGES_MAX * RANGE_WIDTH
ENDED, LEAVING, CHECKPOINT = 1, 2, 4
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


class ReplicasDiffer(Mismatch):
    """Members of one generation do not hold the same model: nothing is applied any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One member's part of a step.

    samples: how many it contributes, the sum of the lengths. plan_seen: the newest plan it has read. plan: the plan in
    its model. lineage, step: of its model. ended: it was told END. reference: the global batch its loss is weighed by.
    leaving: this is its last step. checkpoint: a checkpoint is to follow this step. settings, state: fingerprints of
    what the optimizer stepped by last, and of the model; 0 where none is given this time. split: see Place.
    """

    samples: int
    plan_seen: int
    plan: int
    lineage: bytes
    step: int
    ended: bool = False
    reference: int = 1
    ranges: tuple[Range, ...] = ()
    leaving: bool = False
    checkpoint: bool = False
    settings: int = 0
    state: int = 0
    split: int = 0

    def __post_init__(self) -> None:
        assert len(self.ranges) <= RANGES_MAX, f"{len(self.ranges)} ranges in one step, at most {RANGES_MAX}"
        assert len(self.lineage) == DIGEST_SIZE, self.lineage

    def pack(self) -> list[int]:
        """ROW_WIDTH whole numbers of 64 bits, signed; unused ranges are zero."""
        high, low = struct.unpack(">2q", self.lineage)
        flags = ENDED * self.ended | LEAVING * self.leaving | CHECKPOINT * self.checkpoint
        columns = [self.samples, self.plan_seen, self.plan, high, low, self.step, flags, self.reference]
        columns += (self.settings, self.state, self.split, len(self.ranges))
        for taken in self.ranges:
            columns.extend(taken)
        columns.extend([0] * (ROW_WIDTH - len(columns)))
        assert len(columns) == ROW_WIDTH, self.ranges
        assert INT64_MIN <= min(columns) <= max(columns) <= INT64_MAX, columns
        return columns

    @classmethod
    def unpack(cls, columns: Sequence[int]) -> Row:
        """The inverse of `pack`."""
        assert len(columns) == ROW_WIDTH, len(columns)
        samples, plan_seen, plan, high, low, step, flags, reference, *prints, used = columns[:HEAD_WIDTH]
        assert 0 <= used <= RANGES_MAX, used
        starts = range(HEAD_WIDTH, HEAD_WIDTH + used * RANGE_WIDTH, RANGE_WIDTH)
        return cls(
            samples=samples,
            plan_seen=plan_seen,
            plan=plan,
            lineage=struct.pack(">2q", high, low),
            step=step,
            ended=bool(flags & ENDED),
            reference=reference,
            ranges=tuple(Range(*columns[at : at + RANGE_WIDTH]) for at in starts),
            leaving=bool(flags & LEAVING),
            checkpoint=bool(flags & CHECKPOINT),
            settings=prints[0],
            state=prints[1],
            split=prints[2],
        )


class Composition(NamedTuple):
    """What an applied step consists of. ranges: flat quintuples (lease, token, epoch, start, length) in rank order.

    skipped: who made its gradient anything but finite, so that the model stayed as it was; None where it was applied.
    """

    step: int
    ranges: tuple[int, ...]
    plan: int
    skipped: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """What all members conclude alike from the rows of one step, in rank order."""

    rows: tuple[Row, ...]
    total: int
    plan: int
    ended: bool

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Round:
        """Raises ReplicasDiffer when the members do not hold one model or do not weigh by one batch.

        The plan in effect is the newest that everybody has seen, and never older than the one in the model: a member
        may have joined with less read.
        """
        first = _identity(rows[0])
        for rank, row in enumerate(rows):
            if _identity(row) != first:
                what = f"Model of rank {rank} in (lineage, step, plan, reference batch, split)"
                raise ReplicasDiffer(what, _shown(first), _shown(_identity(row)))
        plan = max(rows[0].plan, min(row.plan_seen for row in rows))
        return cls(tuple(rows), sum(row.samples for row in rows), plan, any(row.ended for row in rows))

    def unequal(self) -> tuple[int, int] | None:
        """Two ranks whose replicas are not the same, by their fingerprints."""
        return outlier([row.settings for row in self.rows]) or outlier([row.state for row in self.rows])

    def _ranges(self, place: Place | None) -> Sequence[tuple[int, int, int, int, int]]:
        return [place.ranges] if place is not None else [taken for row in self.rows for taken in row.ranges]

    def composition(self, step: int, skipped: tuple[str, ...] | None = None, place: Place | None = None) -> Composition:
        """The composition of `step`, as the ledger is told it."""
        return Composition(step, tuple(chain(*self._ranges(place))), self.plan, skipped)

    def lineage_after(self, previous: bytes, step: int, place: Place | None = None) -> bytes:
        """Lineage of the model once this round is in it. Tokens are left out: they name leases, not contents."""
        flat = [value for lease, _, *taken in self._ranges(place) for value in (lease, *taken)]
        return next_lineage(previous, step, flat)


def outlier(fingerprints: Sequence[int]) -> tuple[int, int] | None:
    """Ranks of two that differ: the first one of most, and the first that is not like them. 0 is like any."""
    given = Counter(value for value in fingerprints if value)
    if len(given) < 2:
        return None
    usual = given.most_common(1)[0][0]
    return fingerprints.index(usual), next(r for r, value in enumerate(fingerprints) if value not in (0, usual))


def _identity(row: Row) -> tuple[bytes, int, int, int, int]:
    return row.lineage, row.step, row.plan, row.reference, row.split


def _shown(identity: tuple[bytes, int, int, int, int]) -> tuple[str, int, int, int, int]:
    return identity[0].hex(), *identity[1:]
