"""Which samples of which worker are in which step of the model. Memory grows with the samples: for logs of tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from antdt_schemas import records
from antdt_schemas.order import FEISTEL, Permutation

from antdt_streams.proof.walker import Read
from antdt_streams.views.projection import Projection


class StepSamples(NamedTuple):
    """A committed step: the lineage after it, hexadecimal, and the samples of each worker in their order."""

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

    def on_entry(self, read: Read) -> None:
        """Take one in."""
        if isinstance(read.body, records.Genesis):
            self.spec = read.body.spec
        for event in read.events:
            self._enter(event)

    def view(self) -> dict[int, StepSamples]:
        """By step."""
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
        elif isinstance(event, records.RolledBack):
            self.steps = {step: made for step, made in self.steps.items() if step <= event.step}

    def _commit(self, event: records.Committed) -> None:
        taken: dict[str, list[int]] = {}
        r = event.ranges
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
