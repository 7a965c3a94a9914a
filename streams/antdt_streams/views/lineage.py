"""Which samples of which worker are in which step of the model. Memory grows with the samples: for logs of tests."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from antdt_schemas import records
from antdt_schemas.batches import Piece
from antdt_schemas.lineage import ROOT, next_lineage
from antdt_schemas.order import FEISTEL, Permutation
from antdt_schemas.space import TOPIC, Space, record_name

from antdt_streams.ledger.core.holes import Holes
from antdt_streams.proof.walker import Read
from antdt_streams.views.projection import Projection

TOGETHER = ""  # of all members

Sample = int | str  # by index, or by position where a sampler or the data's own order says which; of a topic by name


class StepSamples(NamedTuple):
    """A committed step: the lineage after it, hexadecimal, and the samples of each worker in their order; of all of
    them together, without a name, where steps have a fixed size, as the log does not say who took which.
    """

    lineage: str
    samples: dict[str, list[Sample]]


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
    quarantined: set[Sample] = field(default_factory=set)
    space: Space = field(default_factory=Space)  # of a topic
    vacant: set[tuple[int, int]] = field(default_factory=set)  # (epoch, position) where it has no record
    holes: Holes | None = None  # where steps have a fixed size

    def on_entry(self, read: Read) -> None:
        if isinstance(read.body, records.Genesis):
            self.spec = read.body.spec
            self.holes = Holes(self.spec.epochs) if self.spec.batches else None
            self.space = Space.of(self.spec.blocks, closed=not self.spec.growing)
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
        elif isinstance(event, records.Vacant):
            places = iter(event.places)
            for start, length in zip(places, places, strict=True):
                self.vacant.update((event.epoch, start + k) for k in range(length))
        elif isinstance(event, records.Extended):
            self.space = self.space.extended(Space.of(event.blocks, closed=True).blocks, closed=event.closed)
        elif isinstance(event, records.SetAside) or (isinstance(event, records.Returned) and event.quarantined):
            self.quarantined.update(self._sample(event.epoch, event.start + k) for k in range(event.length))
        elif isinstance(event, records.Excluded) and self.holes is not None:
            self.holes = self.holes.exclude(event.generation, Piece(event.epoch, event.start, event.length))
            self.quarantined.update(self._sample(event.epoch, event.start + k) for k in range(event.length))
        elif isinstance(event, records.Lifted) and self.holes is not None:
            self.holes = self.holes.lift(Piece(event.epoch, event.start, event.length))
        elif isinstance(event, records.Readmitted) and self.holes is not None:
            self.holes = self.holes.append(Piece(event.epoch, event.start, event.length))
        elif isinstance(event, records.RolledBack):
            self.steps = {step: made for step, made in self.steps.items() if step <= event.step}

    def _commit(self, event: records.Committed) -> None:
        taken: dict[str, list[Sample]] = {}
        r = event.ranges
        if self.holes is not None:
            pieces = self.holes.live(*r)
            taken[TOGETHER] = [self._sample(p.epoch, p.start + k) for p in pieces for k in range(p.length)]
            r = ()
        for i in range(0, len(r), 4):
            places = ((r[i + 1], r[i + 2] + k) for k in range(r[i + 3]))
            samples = [self._sample(*place) for place in places if place not in self.vacant]
            if samples:
                taken.setdefault(self.leases[r[i]], []).extend(samples)
        before = self.steps.get(event.step - 1)
        after = next_lineage(bytes.fromhex(before.lineage) if before else ROOT, event.step, event.ranges)
        self.steps[event.step] = StepSamples(after.hex(), taken)

    def expected(self) -> Counter[Sample]:
        """How often each sample is to be in the model."""
        assert self.spec is not None, "a log without Genesis"
        if self.spec.order != TOPIC:
            return Counter(dict.fromkeys(range(self.spec.samples), self.spec.epochs))
        places = {(epoch, at) for epoch in range(self.spec.epochs) for at in range(self.space.length)} - self.vacant
        return Counter(self._sample(*place) for place in places)

    def _sample(self, epoch: int, position: int) -> Sample:
        """The sample at a position of an epoch."""
        assert self.spec is not None
        if self.spec.order == TOPIC:
            return record_name(self.spec.dataset, *self.space.at(position))
        if self.spec.order != FEISTEL:
            return position
        if epoch not in self.orders:
            self.orders[epoch] = Permutation.of(self.spec.seed, epoch, self.spec.samples)
        return self.orders[epoch](position)
