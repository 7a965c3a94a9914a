"""The model that one member holds: saved, restored, adopted from another member, compared with what others hold.

Owns everything that lasts from step to step. Must not know how a step is made.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from antdt_schemas.batches import Cursor
from antdt_schemas.errors import UsageError
from antdt_schemas.lineage import ROOT

from antdt.strategies.allreduce import finite, handover, randomness, replicas
from antdt.strategies.allreduce.composition import Composition, Row, outlier
from antdt.strategies.allreduce.memory import Buffers, RandomState
from antdt.strategies.allreduce.options import AllReduce
from antdt.strategies.allreduce.rates import LearningRates
from antdt.strategies.allreduce.rendezvous import Generation
from antdt.strategies.allreduce.state import (
    Head,
    Held,
    Progress,
    Saved,
    Writer,
    gather_bytes,
    gather_heads,
    load,
    misfit,
    parse,
    read,
    saved_of,
    whole_of,
)
from antdt.strategies.base import Place
from antdt.strategies.habits import guard
from antdt.strategies.once import Once
from antdt.strategies.together import optimizers_of


class Holding:
    """One replica between two steps.

    Public state: step_number, lineage (16 bytes), plan and cursor of the model; `rates`, whose factor is that plan's
    and is saved with it; `once`, what happens once a step; `pending`, the compositions of applied steps not yet seen
    committed; `void`, true while the model holds no valid state (torn by a failure in the middle of an adoption or of
    the optimizer; the Agent may set it, too).
    """

    def __init__(self, model: torch.nn.Module, optimizer: Any, options: AllReduce | None = None) -> None:
        guard.refuse(model, optimizer)
        self.model, self.optimizer, self.options = model, optimizer, options or AllReduce()
        self.step_number, self.lineage, self.plan, self.cursor = 0, ROOT, 0, Cursor()
        self.rates = LearningRates(optimizer)
        self.pending: list[Composition] = []
        self.void = False
        self._generation: Generation | None = None
        self._trained: list[torch.nn.Parameter] = []
        self._workers: Sequence[str] = ()
        self._skips, self._state, self.talks = 0, 0, False
        self.undivided = self.wants_undivided = False
        self._random = RandomState({param.device for param in model.parameters()})
        self._random_of_file: tuple[bytes, ...] = ()
        self._row: Row | None = None
        self._place: Place | None = None
        self._guard = guard.Guard(model, optimizers_of(optimizer))
        self.accompany(Once())

    def accompany(self, once: Once) -> None:
        """Before the first step: what happens once a step besides the optimizer's own, and is saved with the model.

        Raises UsageError for a scheduler of another optimizer, and for buffers that the model has not.
        """
        once.check_schedulers(self._guard.optimizers)
        self.once = self._guard.once = once
        self._buffers = Buffers(self.model, once.buffers)
        self._replica = replicas.Replica(self.model, self.optimizer, self._buffers)
        self._finite = finite.Finite(self.model, self._buffers)

    @property
    def _held(self) -> Held:
        return Held(self.model, self.optimizer, self.once)

    def adopt(self, source_rank: int) -> bool:
        """All members call it after `attach`: whoever differs takes over the state of `source_rank`, pending steps
        included. Returns False where all are equal already, and nothing is sent.

        Before the first step equal numbers say nothing about the weights, so there the source's are always taken.

        Raises ReplicasDiffer where members that are at the same step hold different models: neither is taken over.
        """
        generation = self._attached()
        assert self._row is None, "abort the step first"
        state = 0
        if generation.world > 1 and self.step_number and not self.void and self.options.compares:
            state = self._replica.state(frozen=True)
        mine = self.step_number, self.lineage, self.plan, self.void
        script = self.talks, self.wants_undivided
        heads = gather_heads(generation, Head(*mine, state, self._replica.trained(self.once.ended), *script))
        self.talks = any(head.talks for head in heads)
        self.undivided = self.wants_undivided = any(head.undivided for head in heads)
        heads = [head._replace(undivided=self.undivided) for head in heads]  # no reason to send a model
        assert not heads[source_rank].void, "the source of an adoption must hold a valid state"
        for at in {(head.step, head.lineage) for head in heads}:
            unequal = outlier([head.state if (head.step, head.lineage) == at else 0 for head in heads])
            if unequal is not None:
                raise replicas.difference(generation, self._replica, self._workers, at[0], unequal)
        if generation.world == 1 or (len(set(heads)) == 1 and self.step_number > 0):
            return False
        is_source = generation.rank == source_rank
        found = handover.hand_on(generation, source_rank, self._whole() if is_source else None)
        generation.settled()
        if not is_source:
            self.restore(saved_of(found), of="What the other workers hold")
        return True

    # -- state

    def gather_random(self) -> list[bytes]:
        """Random states of all members, in rank order; all of them call it, between two steps.

        Its end proves that everybody has applied the last step.
        """
        assert self._row is None, "random states belong between two steps"
        return gather_bytes(self._attached(), randomness.pack(self._random.devices))

    def save(self, out: Writer, random: Sequence[bytes] = (), labels: Mapping[str, str] | None = None) -> None:
        """Write model, optimizer, what happens once a step, step number, lineage, plan and pending compositions, piece
        by piece: there is no second copy of it in memory.

        random: states of each rank, to be restored with it; without any, those that this state was restored with, as
        long as no step was applied since. labels: for whoever restores it.
        """
        torch.save(self._whole(random, labels), out)

    def snapshot(self, random: Sequence[bytes] = (), labels: Mapping[str, str] | None = None) -> bytes:
        """What `save` writes, in memory."""
        out = io.BytesIO()
        self.save(out, random, labels)
        return out.getvalue()

    def _whole(self, random: Sequence[bytes] = (), labels: Mapping[str, str] | None = None) -> dict[str, Any]:
        assert self._row is None, "a snapshot belongs between two steps"
        assert not self.void, "the state is void"
        at, pending = (self.step_number, self.lineage, self.plan), tuple(self.pending)
        progress = Progress(*at, pending, self._skips, self.rates.factor, self.cursor)
        return whole_of(self._held, progress, random or self._random_of_file, labels or {})

    def load_back(self) -> None:
        """Whether what `save` writes can be read again: tried in memory, without the numbers of large tensors.

        Raises UsageError, with what cannot be read.
        """
        saved_of(handover.Apart.of(self._whole()).read())

    def diverge(self, *salt: object) -> None:
        """From here on this member draws numbers of its own: they follow from where its generators are, and `salt`."""
        assert self._row is None, "random states belong between two steps"
        randomness.diverge(salt, self._random.devices)
        self._random.keep()

    def restore(
        self,
        data: bytes | BinaryIO | Saved,
        check: Callable[[Saved], None] | None = None,
        of: str = "The state",
    ) -> None:
        """The inverse. Read whole first; void while it is being loaded, and for good if that fails.

        check: looks at what was read before anything is overwritten. Random states are those of this rank. of: what to
        call it.

        Raises UsageError: it is that of another model or optimizer.
        """
        assert self._row is None, "abort the step first"
        saved = data if isinstance(data, Saved) else parse(data)
        if check is not None:
            check(saved)
        wrong = misfit(saved, self._held)
        if wrong:
            raise UsageError(f"{of} cannot be loaded: {wrong} Run the script that the job began with, or a new job.")
        self.void = True
        load(saved, self._held)
        progress = saved.progress
        self.step_number, self.lineage, self.plan = progress.step, progress.lineage, progress.plan
        self.pending, self._skips, self.cursor = list(progress.pending), progress.skips, progress.cursor
        self.rates.factor = progress.learning_rate_factor
        self._random_of_file, self._state = saved.random, 0
        if saved.random:
            rank = self._generation.rank if self._generation is not None else 0
            randomness.take_over(saved.random, rank, self._random.devices)
        self.void = False
        self._keep()

    @property
    def size_bytes(self) -> int:
        """About how large a snapshot is: parameters, and two moments of each in the optimizer."""
        return 3 * sum(int(param.numel() * param.element_size()) for param in self.model.parameters())

    def verify(self) -> None:
        """Before a checkpoint, by all members alike, between two steps: what is written is what everybody has.

        Raises ReplicasDiffer, or NotFinite.
        """
        generation = self._attached()
        if generation.world > 1 and self.options.compares:
            mine = self._replica.state(frozen=True)
            found = torch.empty(generation.world, 1, dtype=torch.int64, device="cpu")
            generation.wait(generation.gather(found, torch.tensor([mine], device="cpu")))
            generation.settled()
            unequal = outlier(found.flatten().tolist())
            if unequal is not None:
                raise replicas.difference(generation, self._replica, self._workers, self.step_number, unequal)
        self.check_finite()

    def check_finite(self) -> None:
        """Raises NotFinite for a model that nobody should go back to."""
        self._finite.check(self.step_number)

    def holds(self, path: Path) -> bool:
        """Whether a file is of this very step, and of the model that is here, as far as models are compared at all. It
        is compared where it lies: it is in memory only once.

        Raises ReplicasDiffer where it is of this step, but of another model: loading hides that.
        """
        if not self.step_number or self.void or not self.options.compares:
            return False
        saved = saved_of(read(path))
        if (saved.progress.step, saved.progress.lineage) != (self.step_number, self.lineage):
            return False
        replicas.check_file(self._replica.parts(), saved.model, self.step_number, path.name)
        return True

    def drop_pending(self, up_to_step: int) -> None:
        """These are committed: nobody has to report them again."""
        if self.pending and self.pending[0].step <= up_to_step:  # in order; asked after every step, seldom to be done
            self.pending = [made for made in self.pending if made.step > up_to_step]

    # -- helpers

    def _attached(self) -> Generation:
        assert self._generation is not None, "attach a generation first"
        return self._generation

    def _keep(self) -> None:
        """This is what an abort leads back to."""
        self._buffers.keep()
        self._random.keep()
