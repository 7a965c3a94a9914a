"""What ends a step otherwise than by being applied: replicas that differ, gradients that are not finite.

Must not know how gradients come together.
"""

from __future__ import annotations

import time

from antdt_schemas.errors import UsageError

from antdt.strategies.allreduce import finite, replicas
from antdt.strategies.allreduce.buckets import LocalGradients, ReducedGradients, all_finite
from antdt.strategies.allreduce.composition import Round
from antdt.strategies.allreduce.layout import LaidOut
from antdt.strategies.allreduce.ordered import OrderedGradients
from antdt.strategies.allreduce.rendezvous import Generation
from antdt.strategies.base import GenerationClosed
from antdt.strategies.habits.weights import Weights

COMPARED_AT_FIRST = 4  # steps of a generation, all of which are compared


class Judging(LaidOut):
    """A part of AllReduceReplica. `first_bucket_at`: see there."""

    first_bucket_at: float | None = None
    _weights: Weights
    _rounds = 0

    def _fingerprints(self, generation: Generation, samples: int) -> tuple[int, int]:
        """Of the last applied step: the optimizer's numbers always, the model where everybody gives it.

        Whoever takes no sample gives it always: when nobody takes any, perhaps at the end, all are compared.
        """
        every = self._compared_every
        due = bool(every) and (self._rounds < COMPARED_AT_FIRST or self.step_number % every == 0)
        if due:
            self._guard.check_parameters()
        self._rounds += 1
        if generation.world == 1 or not every:
            return self._replica.settings, 0
        state = self._state  # of the round before, if that one had no sample: the script did not run since
        if not state and (due or samples == 0):
            state = self._replica.state(frozen=self._rounds == 1)
        self._state = 0 if samples else state
        return self._replica.settings, state

    def _passed_over(self, round_: Round, reason: str | None) -> tuple[tuple[str, ...] | None, str]:
        """Who wants the step skipped, or None, and why."""
        if not round_.passed_over:
            return None, ""
        named = zip(self._workers, round_.rows, strict=True)
        who = tuple(worker for worker, row in named if row.passed_over)
        return who, reason or (f"{', '.join(who)} called agent.skip" if who else "it has no weight")

    def _compare(self, round_: Round) -> None:
        """Raises ReplicasDiffer, on all members alike; and GenerationClosed where a script has something to say for the
        first time: the others learn it when they meet.
        """
        if round_.talking:
            raise GenerationClosed("A script has something to say to the others: the members meet anew for that.")
        unequal = round_.unequal()
        if unequal is not None:
            raise replicas.difference(self._attached(), self._replica, self._workers, self.step_number, unequal)

    def _are_finite(self) -> bool:
        """Whether a script that has looked at the gradients has left them so; it may have put others in their place."""
        if not self._guard.reduced:
            return True
        grads = [param.grad for param in self._trained if param.grad is not None]
        if not grads:
            raise UsageError("All gradients were cleared behind agent.reduce(): leave zero_grad() out.")
        return all_finite([grad for grad in grads if not grad.is_sparse])

    def _look_again(self) -> None:
        """Gradients that the script has cleared are put back. Raises UsageError where it has changed some."""
        assert self._gradients is not None
        self._gradients.expect(False)
        self._gradients.done(False)

    def _authors(self, gradients: ReducedGradients | LocalGradients | OrderedGradients) -> tuple[str, ...]:
        """Whose part of a gradient was not finite; nobody's, if only the sum is too large. Where a step must not be
        skipped, raises NotFinite instead, on all members alike.
        """
        self.check_finite()
        options, authors, generation = self.options, None, self._attached()
        skips = options.on_nonfinite == "skip" or self.once.scales
        try:
            authors = finite.gather_authors(generation, self._workers, gradients.own_is_finite())
        except GenerationClosed:
            if skips:
                raise
        if authors is None or not skips:
            raise finite.not_to_be_skipped(self.step_number + 1, authors, None)
        if self._skips + 1 >= options.skips_max:
            raise finite.not_to_be_skipped(self.step_number + 1, authors, options.skips_max)
        return authors

    def _check_touched(self) -> None:
        assert self._gradients is not None
        if not (self._gradients.touched or self._weights.counts_nothing):
            raise UsageError(
                "The loss depends on no trainable parameter of the Agent's model (on a copy of it, or another model?): "
                "give the Agent the very model that the loss is computed with."
            )
        first_at = self._gradients.first_at
        self.first_bucket_at = time.perf_counter() if first_at is None else first_at

    def _require_same_buffers(self) -> None:
        name = self._buffers.changed()
        if name:
            raise UsageError(
                f"Buffer {name} changed in a step, by this worker's samples; none may where all is to be the same bit "
                f"by bit: freeze its layer (eval), or say antdt.Agent(..., buffers={{{name!r}: 'local'}})."
            )

    def _check_unfrozen(self) -> None:
        """Raises GenerationClosed: the next generation has room for the gradients of what is trained from now on."""
        if self._frozen and any(param.requires_grad for param in self._frozen):
            raise GenerationClosed("Parameters were unfrozen: the members meet anew, and reduce their gradients too.")
