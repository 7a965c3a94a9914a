"""What every account of samples has: epochs, what of them is in the model or in quarantine, and why.

Owns the sums. Must not know how samples are handed out: by leases (`shards`) or by steps of a fixed size (`batches`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from antdt_schemas import records
from antdt_schemas.space import TOPIC, Space

from antdt_streams.ledger.core.dirty import Dirty
from antdt_streams.ledger.core.intervals import IntervalSet

NO_TOKEN = 0
ELSEWHERE = "as position "  # so begins the reason of what is left out for evidence in another epoch (`later`)


@dataclass(slots=True)
class Lease:
    """A run of shards held by one incarnation in one generation; [front, end) is not yet committed."""

    shards: int
    incarnation: str
    generation: int
    epoch: int
    start: int
    front: int
    end: int
    token: int = NO_TOKEN


@dataclass(slots=True)
class Epoch:
    """Where the samples of one epoch are; positions from `cursor` on were never handed out."""

    cursor: int = 0
    returned: IntervalSet = field(default_factory=IntervalSet)
    committed: IntervalSet = field(default_factory=IntervalSet)
    quarantined: IntervalSet = field(default_factory=IntervalSet)
    attempts: dict[int, int] = field(default_factory=dict)


class Fault(NamedTuple):
    """Why samples are in quarantine."""

    length: int
    key: str
    reason: str


class Samples:
    """Samples by epoch. faults: why what is in quarantine is there, by (epoch, position). space: of a topic, where in
    it the positions are.
    """

    def __init__(self, spec: records.JobSpec, dirty: Dirty) -> None:
        self.spec, self.dirty = spec, dirty
        self.committed_total = self.quarantined_total = 0
        self.epochs: dict[int, Epoch] = {}
        self.faults: dict[tuple[int, int], Fault] = {}
        self.space = Space.of(spec.blocks, closed=not spec.growing)

    @property
    def samples(self) -> int:
        """Positions of an epoch."""
        return self.space.length if self.spec.order == TOPIC else self.spec.samples

    @property
    def is_extended(self) -> bool:
        """Whether its topic has grown, or has ended, since the job began."""
        spec = self.spec
        return spec.growing and (self.space.closed or self.space.length != spec.samples)

    @property
    def total(self) -> int:
        """Of all epochs together."""
        return self.samples * self.spec.epochs

    @property
    def finished(self) -> bool:
        """Whether everything is committed or in quarantine, and nothing is added any more."""
        return self.space.closed and self.committed_total + self.quarantined_total == self.total

    def epoch(self, epoch: int) -> Epoch:
        """An epoch, made when it is first touched."""
        found = self.epochs.get(epoch)
        if found is None:
            found = self.epochs[epoch] = Epoch()
        return found

    def check(self) -> None:
        """Invariants, by counting."""
        for (epoch, start), fault in self.faults.items():
            assert not self.epochs[epoch].quarantined.gaps(start, start + fault.length)
        assert self.committed_total == sum(e.committed.total for e in self.epochs.values())
        assert self.quarantined_total == sum(e.quarantined.total for e in self.epochs.values())
