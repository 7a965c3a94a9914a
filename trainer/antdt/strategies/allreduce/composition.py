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

from antdt_schemas.errors import Mismatch, UsageError
from antdt_schemas.lineage import DIGEST_SIZE, next_lineage
from antdt_schemas.ranges import Range

from antdt.strategies.base import Place

RANGES_MAX = 8
HEAD_WIDTH = 14
RANGE_WIDTH = 5
ROW_WIDTH = HEAD_WIDTH + RANGES_MAX * RANGE_WIDTH
ENDED, LEAVING, CHECKPOINT, SUMMED, PASSED_OVER, STOPPING, TALKING = 1, 2, 4, 8, 16, 32, 64
OF_THE_MODEL = 3  # columns of an identity
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


class ReplicasDiffer(Mismatch):
    """Members of one generation do not hold the same model: nothing is applied any more."""


@dataclass(slots=True, kw_only=True)
class Row:
    """One member's part of a step. It is written to until it leaves: a frozen one is made in three times the time, once
    for each member and step, and would be made twice.

    samples: how many it contributes; of a topic, less than the sum of the lengths. plan_seen: the newest plan it has
    read. plan: the plan in its model. lineage, step: of its model. ended: it was told END. reference: the global batch
    its loss is weighed by.
    leaving: this is its last step. checkpoint: a checkpoint is to follow this step. settings, state: fingerprints of
    what the optimizer stepped by last, and of the model; 0 where none is given this time. weight: what its losses count
    together. trained: fingerprint of which parameters are trained; 0 of a member without samples. summed: its losses
    are sums, which nothing divides. passed_over: its script wants the step skipped. stopping: it wants no more steps.
    split: see Place. talking: it takes part for no step, but to say that its script has something to say; it knows the
    model, and neither reference nor split.
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
    weight: float = 0.0
    trained: int = 0
    summed: bool = False
    passed_over: bool = False
    stopping: bool = False
    split: int = 0
    talking: bool = False

    def __post_init__(self) -> None:
        assert len(self.ranges) <= RANGES_MAX, f"{len(self.ranges)} ranges in one step, at most {RANGES_MAX}"
        assert len(self.lineage) == DIGEST_SIZE, self.lineage

    @property
    def flags(self) -> int:
        """What is true of it, as bits."""
        flags = ENDED * self.ended | LEAVING * self.leaving | CHECKPOINT * self.checkpoint
        flags |= SUMMED * self.summed | PASSED_OVER * self.passed_over | STOPPING * self.stopping
        return flags | TALKING * self.talking

    def pack(self) -> list[int]:
        """ROW_WIDTH whole numbers of 64 bits, signed; unused ranges are zero."""
        high, low = struct.unpack(">2q", self.lineage)
        columns = [self.samples, self.plan_seen, self.plan, high, low, self.step, self.flags, self.reference]
        (weight,) = struct.unpack(">q", struct.pack(">d", self.weight))
        columns += (self.settings, self.state, weight, self.trained, self.split, len(self.ranges))
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
            weight=struct.unpack(">d", struct.pack(">q", prints[2]))[0],
            trained=prints[3],
            split=prints[4],
            summed=bool(flags & SUMMED),
            passed_over=bool(flags & PASSED_OVER),
            stopping=bool(flags & STOPPING),
            talking=bool(flags & TALKING),
        )


class Composition(NamedTuple):
    """What an applied step consists of. ranges: flat quintuples (lease, token, epoch, start, length) in rank order.

    skipped: who made its gradient anything but finite, so that the model stayed as it was; None where it was applied.
    """

    step: int
    ranges: tuple[int, ...]
    plan: int
    skipped: tuple[str, ...] | None = None


class Round(NamedTuple):
    """What all members conclude alike from the rows of one step, in rank order.

    total: samples. weight: what all losses count together, added in rank order, so the same number everywhere. summed:
    they are sums. passed_over: the step is skipped whatever its gradient is, as a script wants that, or nothing weighs
    anything. stopping: some script wants no more steps, and this one is not made. talking: nor where some script has
    something to say for the first time.
    """

    rows: tuple[Row, ...]
    total: int
    plan: int
    ended: bool
    weight: float
    summed: bool
    passed_over: bool
    stopping: bool
    talking: bool = False

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Round:
        """Raises ReplicasDiffer when the members do not hold one model or do not weigh by one batch.

        The plan in effect is the newest that everybody has seen, and never older than the one in the model: a member
        may have joined with less read.
        """
        model = next((row for row in rows if not row.talking), rows[0]) if rows[0].talking else rows[0]
        first = _identity(model)
        weight, total, flags = 0.0, 0, 0
        for rank, row in enumerate(rows):
            if row is not model:
                mine, width = _identity(row), OF_THE_MODEL if row.talking else len(first)
                if mine[:width] != first[:width]:
                    what = f"Model of rank {rank} in (lineage, step, plan, reference batch, split)"
                    raise ReplicasDiffer(what, _shown(first), _shown(mine))
            weight, total = weight + row.weight, total + row.samples
            flags |= row.flags if row.weight else row.flags & ~SUMMED
        summed = bool(flags & SUMMED)
        if summed and not all(row.summed for row in rows if row.weight):
            raise UsageError(
                "In one step some workers pass a loss with reduction='sum' and others a mean: pass the same kind."
            )
        plan = max(rows[0].plan, min([row.plan_seen for row in rows]))
        passed_over = bool(flags & PASSED_OVER) or (weight == 0 and not summed)
        ended, stopping, talking = bool(flags & ENDED), bool(flags & STOPPING), bool(flags & TALKING)
        return cls(tuple(rows), total, plan, ended, weight, summed, passed_over, stopping, talking)

    @property
    def factor(self) -> float:
        """What the sum of all gradients counts: they were divided by the reference batch, or are sums."""
        return 1.0 if self.summed or self.weight == 0 else self.rows[0].reference / self.weight

    @property
    def epoch(self) -> int:
        """The latest one that this step has samples of; -1 without any."""
        return max([taken.epoch for row in self.rows for taken in row.ranges], default=-1)

    def unequal(self) -> tuple[int, int] | None:
        """Two ranks whose replicas are not the same, by their fingerprints."""
        if len(self.rows) == 1:
            return None
        columns = zip(*((row.settings, row.state, row.trained) for row in self.rows), strict=True)
        return next(filter(None, map(outlier, columns)), None)

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
