"""One worker's part in AllReduce: a replica, where its members meet, and the generation that it is in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from antdt_schemas import records

from antdt.strategies.allreduce import nccl
from antdt.strategies.allreduce.composition import RANGES_MAX
from antdt.strategies.allreduce.options import AllReduce
from antdt.strategies.allreduce.rendezvous import Generation, Rendezvous, store_of
from antdt.strategies.allreduce.strategy import AllReduceReplica
from antdt.strategies.base import Here, Outcome, Part, Restores


class AllReduceMember(AllReduceReplica):
    """A `Strategy`. Invariant: `generation` is None or stands, and then the replica is attached to it."""

    ranges_max: ClassVar[int] = RANGES_MAX
    incarnation = ""

    def __init__(self, model: torch.nn.Module, optimizer: Any, options: AllReduce, here: Here) -> None:
        super().__init__(model, optimizer, options)
        self.generation: Generation | None = None
        self.pending_max, self.form_patience_s = options.pending_max, options.generation.form_patience_s
        self._rendezvous = Rendezvous(here.advertise)
        self._device = nccl.device_of(model.parameters()) if options.generation.backend == "nccl" else None
        self._how = replace(options.generation, host=options.generation.host or here.listens_at())

    @property
    def address(self) -> tuple[str, int]:
        """Of this process's own store."""
        return self._rendezvous.host, self._rendezvous.port

    def form(self, grant: records.Grant, rank: int, closed: Callable[[], bool]) -> None:
        """Meet the members of the grant. Raises GenerationClosed, NotFormed."""
        first, names = grant.members[0], [m.worker for m in grant.members]
        store = store_of(first.host, first.port)
        self.generation = Generation(grant.generation, len(names), rank, store, closed, self._how, names, self._device)
        self.attach(self.generation, names)

    def align(self, grant: records.Grant, rank: int, files: Restores) -> None:
        """Everybody holds the same state afterwards: the source's, or that of a file."""
        source = 0
        if grant.source is not None:
            source = next(i for i, m in enumerate(grant.members) if m.incarnation == grant.source)
        else:
            files.restore(grant, rank)
        self.adopt(source)

    def announce(self, part: Part) -> None:
        """See `take`."""
        said = part.ranges, part.samples, part.plan_seen, part.ended, part.reference
        self.take(*said, leaving=part.leaving, checkpoint=part.checkpoint, place=part.place)

    def finish(self, on_plan: Callable[[int], None]) -> Outcome:
        """See `step`."""
        return self.step(on_plan)

    def abort(self) -> None:
        """Out of the generation, also where the replica is not attached to it."""
        super().abort()
        if self.generation is not None:
            self.generation.leave()
        self.generation = None

    @property
    def stands(self) -> bool:
        """Whether it is in a generation that nobody has closed."""
        return self.generation is not None and not self.generation.is_closed

    def outlive(self) -> None:
        """The job has ended: its members may still talk, until one of them leaves."""
        if self.generation is not None:
            self.generation.outlive()

    def close(self) -> None:
        """From any thread: whatever waits for other members gives up."""
        generation = self.generation
        if generation is not None:
            generation.close()

    def end(self) -> None:
        """Takes the hooks off the model as well; nobody meets here any more."""
        self.abort()
        self.detach()
        self._rendezvous.close()
