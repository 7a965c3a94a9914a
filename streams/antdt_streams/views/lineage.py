"""Which samples of which worker are in which step of the model. Memory grows with the samples: for logs of tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from antdt_schemas import records
from antdt_schemas.batches import Piece
from antdt_schemas.order import FEISTEL, Permutation

from antdt_streams.ledger.core.holes import Holes
from antdt_streams.proof.walker import Read
from antdt_streams.views.projection import Projection

TOGETHER = ""  # of all members


class StepSamples(NamedTuple):
    """A committed step: the lineage after it, hexadecimal, and the samples of each worker in their order; of all of
    them together, without a name, where steps have a fixed size, as the log does not say who took which.
    """

    lineage: str
    samples: dict[str, list[int]]


@dataclass(slots=True)
class Lineage(Projection["dict[int, StepSamples]"]):
    """The steps that count in the end. quarantined: the samples that ever were in quarantine.

    workers: by incarnation. leases: the worker that holds each. orders: of epochs that are not in the data's order.
    """

    spec: records.JobSpec | None = None
    steps: dict[int, StepSamples] = field(default_factory=dict)
    workers: dict[str, str] = field(default_factory=dict)
    leases: dict[int, str] = field(default_factory=dict)
    orders: dict[int, Permutation] = field(default_factory=dict)
    quarantined: set[int] = field(default_factory=set)
    holes: Holes | None = None  # where steps have a fixed size

    def on_entry(self, read: Read) -> None:
        if isinstance(read.body, records.Genesis):
            self.spec = read.body.spec
            self.holes = Holes(self.spec.epochs) if self.spec.batches else None
        for event in read.events:
            self._enter(event)

    def view(self) -> dict[int, StepSamples]:
        return self.steps

    def _enter(self, event: records.Event) -> None:
        if isinstance(event, records.Joined):
            self.workers[event.incarnation] = event.worker
        elif isinstance(event, records.Leased):
            for number in range(event.lease, event.lease + event.shards):
                self.leases[number] = self.workers[event.incarnation]
        elif isinstance(event, records.Committed):
            self._commit(event)
        elif isinstance(event, records.Returned) and event.quarantined:
            self.quarantined.update(self._sample(event.epoch, event.start + k) for k in range(event.length))
        elif isinstance(event, records.Excluded) and self.holes is not None:
            self.holes = self.holes.exclude(event.generation, Piece(event.epoch, event.start, event.length))
            self.quarantined.update(self._sample(event.epoch, event.start + k) for k in range(event.length))
        elif isinstance(event, records.Readmitted) and self.holes is not None:
            self.holes = self.holes.append(Piece(event.epoch, event.start, event.length))
        elif isinstance(event, records.RolledBack):
            self.steps = {step: made for step, made in self.steps.items() if step <= event.step}

    def _commit(self, event: records.Committed) -> None:
        taken: dict[str, list[int]] = {}
        r = event.ranges
        if self.holes is not None:
            pieces = self.holes.live(*r)
            taken[TOGETHER] = [self._sample(p.epoch, p.start + k) for p in pieces for k in range(p.length)]
            r = ()
        for i in range(0, len(r), 4):
            samples = [self._sample(r[i + 1], r[i + 2] + k) for k in range(r[i + 3])]
            taken.setdefault(self.leases[r[i]], []).extend(samples)
        self.steps[event.step] = StepSamples(event.lineage.hex(), taken)

    def _sample(self, epoch: int, position: int) -> int:
        """The sample at a position of an epoch; the position itself where the data's order or a sampler says which."""
        assert self.spec is not None
        if self.spec.order != FEISTEL:
            return position
        if epoch not in self.orders:
            self.orders[epoch] = Permutation.of(self.spec.seed, epoch, self.spec.samples)
        return self.orders[epoch](position)
