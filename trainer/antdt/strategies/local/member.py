"""One worker's part in local training: steps of its own, then an average that AllReduce carries.

Rules
    A round is a period: as many steps of the optimizer as the options say, fewer where there are not so many samples.
    Between two rounds all members hold one model, bit by bit; optimizer state is each member's own.
    Until all have averaged, `abort` leads back to the last average: parameters, buffers, random numbers and the
    optimizer's state.
    An average that is not finite is skipped by all alike, as a step of AllReduce is: all go back to the one before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from antdt_schemas.errors import UsageError

from antdt.strategies.allreduce import guard
from antdt.strategies.allreduce.buckets import LocalGradients
from antdt.strategies.allreduce.member import AllReduceMember
from antdt.strategies.allreduce.rates import LearningRates
from antdt.strategies.allreduce.rendezvous import Generation
from antdt.strategies.base import Here, Outcome
from antdt.strategies.local.averages import averages_of, loss_of
from antdt.strategies.local.options import LocalSGD


class LocalMember(AllReduceMember):
    """A `Strategy`. What it exchanges, saves, adopts and compares are averages; see AllReduceReplica for these.

    Invariant: `_kept` and `_optimizer_kept` are the last average and the optimizer's state at that moment.
    """

    def __init__(self, model: torch.nn.Module, optimizer: Any, options: LocalSGD, here: Here) -> None:
        guard.refuse(model, optimizer)
        super().__init__(model, averages_of(optimizer, list(model.parameters())), options.exchange, here)
        self._guard = guard.Guard(model, optimizer)  # it is the script's that nobody else may step
        self._own_optimizer, self._own_rates, self._every = optimizer, LearningRates(optimizer), options.every
        self._own: LocalGradients | None = None
        self._kept: list[torch.Tensor] = []
        self._optimizer_kept: Any = None
        self._steps = self._trained_on = self._in_step = self._unit = 0

    # -- generations

    def attach(self, generation: Generation, workers: Sequence[str] = ()) -> None:
        """See AllReduceReplica."""
        super().attach(generation, workers)
        if self._own is not None:
            self._own.disconnect()
        self._own = LocalGradients([self._trained])
        self._keep_average()

    def detach(self) -> None:
        """See AllReduceReplica."""
        super().detach()
        if self._own is not None:
            self._own.disconnect()
        self._own = None

    def abort(self) -> None:
        """Leaves the generation; the state is that of the last average."""
        super().abort()
        self._go_back()

    def restore(self, data: bytes, *more: Any, **named: Any) -> None:
        """See AllReduceReplica."""
        super().restore(data, *more, **named)
        self._keep_average()

    # -- one period

    def backward(self, loss: torch.Tensor, samples: int, last: bool = True) -> None:
        """loss: the mean over this micro-batch's `samples`. last: the optimizer steps, by this member's own gradient.

        Raises GenerationClosed.
        """
        assert self._row is not None and self._own is not None, "take first"
        self._attached().check()
        guard.check_loss(loss)
        self._unit = self._unit or samples
        self._in_step += samples
        self._own.expect(last)
        (loss * (samples / self._unit)).backward()
        self._own.done(last)
        if last:
            self._step_alone()
            self.first_bucket_at = time.perf_counter()

    def _step_alone(self) -> None:
        own, guarded = self._own, self._guard
        assert own is not None
        if not own.touched:
            raise UsageError(
                "The loss depends on no trainable parameter of the Agent's model (on a copy of it, or another model?): "
                "give the Agent the very model that the loss is computed with."
            )
        own.finish(self._unit / self._in_step)
        self._steps, self._trained_on = self._steps + 1, self._trained_on + self._in_step
        self._own_rates.factor, guarded.applying = self.rates.factor, True
        try:
            self._own_rates.step()
        finally:
            guarded.applying = False
        own.reset()
        self._in_step = self._unit = 0

    def step(self, on_plan: Callable[[int], None] | None = None) -> Outcome:
        """Averages. See AllReduceReplica: what it raises, and how the plan comes into force."""
        row = self._row
        assert row is not None, "take first"
        assert self._trained_on == row.samples, f"backward saw {self._trained_on} of {row.samples} samples taken"
        if row.samples:
            super().backward(loss_of(self._gone(), self._trained), row.samples)
        outcome = super().step(on_plan)
        if outcome.skipped is not None:
            self._go_back()
        elif outcome.applied:
            if self._steps < self._every:  # settings of another step of the schedule than others may have
                self._replica.forget()
            self._keep_average()
        return outcome

    def _gone(self) -> list[torch.Tensor]:
        """How far this member has gone since the last average, to which its parameters go back."""
        with torch.no_grad():
            gone = [kept - param for kept, param in zip(self._kept, self._trained, strict=True)]
        self._put_back()
        return gone

    # -- the last average

    def _keep_average(self) -> None:
        self._kept = [param.detach().clone() for param in self._trained]
        self._optimizer_kept = deepcopy(self._own_optimizer.state_dict())
        self._steps = self._trained_on = 0

    def _go_back(self) -> None:
        if self._own is not None:
            self._own.reset()
        if self._steps:
            self._put_back()
            self._own_optimizer.load_state_dict(deepcopy(self._optimizer_kept))
        self._steps = self._trained_on = self._in_step = self._unit = 0

    def _put_back(self) -> None:
        with torch.no_grad():
            for kept, param in zip(self._kept, self._trained, strict=True):
                param.copy_(kept)
