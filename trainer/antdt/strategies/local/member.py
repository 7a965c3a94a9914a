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

from antdt.strategies.allreduce.buckets import LocalGradients
from antdt.strategies.allreduce.member import AllReduceMember
from antdt.strategies.allreduce.rates import LearningRates
from antdt.strategies.allreduce.strategy import Reduced
from antdt.strategies.base import Here, Outcome
from antdt.strategies.habits import guard
from antdt.strategies.habits.weights import Weights
from antdt.strategies.local.averages import averages_of, loss_of
from antdt.strategies.local.options import LocalSGD
from antdt.strategies.once import Once
from antdt.strategies.together import optimizers_of

ALONE = "{} is for steps that all workers make together, and with LocalSGD each makes its own: take {} instead."


class LocalMember(AllReduceMember):
    """A `Strategy`. What it exchanges, saves, adopts and compares are averages; see AllReduceReplica for these.

    Invariant: `_kept` and `_optimizer_kept` are the last average and the optimizer's state at that moment.
    """

    def __init__(self, model: torch.nn.Module, optimizer: Any, options: LocalSGD, here: Here) -> None:
        guard.refuse(model, optimizer)
        self._own: LocalGradients | None = None
        self._own_weights, self._unit = Weights(), 0.0
        self._kept: list[torch.Tensor] = []
        self._optimizer_kept: Any = None
        self._steps = self._trained_on = 0
        self._own_optimizer, self._own_rates, self._every = optimizer, LearningRates(optimizer), options.every
        super().__init__(model, averages_of(optimizer, list(model.parameters())), options.exchange, here)
        self._guard = guard.Guard(model, optimizers_of(optimizer))  # it is the script's that nobody else may step

    def accompany(self, once: Once) -> None:
        """See Holding. A scheduler is stepped with each average, and clipping is that of each step of the optimizer."""
        if once.scaler is not None:
            raise UsageError("LocalSGD takes no scaler: train in bfloat16, or with AllReduce.")
        super().accompany(once)

    # -- generations

    def _lay_out(self) -> None:
        super()._lay_out()
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

    def restore(self, data: Any, *more: Any, **named: Any) -> None:
        """See AllReduceReplica."""
        super().restore(data, *more, **named)
        self._keep_average()

    # -- one period

    def backward(
        self,
        loss: torch.Tensor,
        samples: int,
        last: bool = True,
        *,
        weight: float | None = None,
        summed: bool = False,
        through: bool = True,
        retain_graph: bool = False,
    ) -> None:
        """See AllReduceReplica. last: the optimizer steps, by this member's own gradient.

        Raises GenerationClosed.
        """
        assert self._row is not None and self._own is not None, "take first"
        self._attached().check()
        alone = not self._own_weights.samples and (last or not through)  # in what its optimizer steps by
        weight = self._denominators.weigh(self._own_weights, loss, samples, weight, summed=summed, alone=alone)
        self._check_unfrozen()
        self._unit = self._unit or weight
        self._own.expect(last)
        if weight:
            self._go_backward(loss, 1.0 if summed else weight / self._unit, retain_graph)
        self._own.done(last=False)
        if through:
            self.through(samples, last)

    def through(self, samples: int, last: bool) -> None:
        """See AllReduceReplica."""
        self._own_weights.through(samples)
        if last:
            self._step_alone()
            self.first_bucket_at = time.perf_counter()

    def skip(self, samples: int, reason: str) -> None:
        """See AllReduceReplica: it is for steps that are made together."""
        raise UsageError(ALONE.format("agent.skip(reason)", "agent.step(loss, weight=0)"))

    def reduce(self) -> Reduced | None:
        """See AllReduceReplica."""
        if self._row is not None and self._trained_on < self._row.samples:
            raise UsageError(ALONE.format("agent.reduce()", "clip_grad_norm=, or agent.apply()"))
        return super().reduce()

    def update(self, optimizers: Sequence[Any]) -> bool:
        """See AllReduceReplica: it is for steps that are made together."""
        raise UsageError(ALONE.format("agent.apply(optimizer)", "one optimizer, or AllReduce"))

    def exchange(
        self, value: torch.Tensor | None, *, inside: bool, between: bool = False, call: str = ""
    ) -> list[torch.Tensor | None]:
        """See AllReduceReplica: between two averages."""
        if inside:
            raise UsageError(ALONE.format("A call that waits for other workers", "it between averages"))
        return super().exchange(value, inside=inside, between=between, call=call)

    def _step_alone(self) -> None:
        own, weights = self._own, self._own_weights
        assert own is not None
        own.expect(last=True)  # what the script has cleared is put back
        own.done(last=True)
        if not (own.touched or weights.counts_nothing):
            raise UsageError(
                "The loss depends on no trainable parameter of the Agent's model (on a copy of it, or another model?): "
                "give the Agent the very model that the loss is computed with."
            )
        self._steps, self._trained_on = self._steps + 1, self._trained_on + weights.samples
        if not weights.counts_nothing:
            own.finish(1.0 if weights.summed else self._unit / weights.total)
            self._own_rates.factor = self.rates.factor
            self._guard.within(self._clip_and_step)
        self._forget_own()

    def _clip_and_step(self) -> None:
        self.once.clip(self._trained)
        self._own_rates.step()

    def _step_optimizers(self) -> None:
        self.rates.step()  # to the average, which nothing clips

    def _forget_own(self) -> None:
        if self._own is not None:
            self._own.reset()
        self._own_weights.clear()
        self._unit = 0.0

    def step(self, on_plan: Callable[[int], None] | None = None) -> Outcome:
        """Averages. See AllReduceReplica: what it raises, and how the plan comes into force."""
        row = self._row
        assert row is not None, "take first"
        assert self._trained_on == row.samples, f"backward saw {self._trained_on} of {row.samples} samples taken"
        if row.samples:
            super().backward(loss_of(self._gone(), self._trained), row.samples, weight=float(row.samples))
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
        self._forget_own()
        if self._steps:
            self._put_back()
            self._own_optimizer.load_state_dict(deepcopy(self._optimizer_kept))
        self._steps = self._trained_on = 0

    def _put_back(self) -> None:
        with torch.no_grad():
            for kept, param in zip(self._kept, self._trained, strict=True):
                param.copy_(kept)
