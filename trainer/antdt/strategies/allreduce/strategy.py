"""One replica under AllReduce: take, backward (once or more), step.

Rules
    Every member makes the same sequence of collectives in a step: buckets in index order, then buffers. Compositions
    ride in the first bucket, or are gathered beside it.
    A step is applied by a member only once every other member's part of it has arrived; that a member announces step
    s + 1 proves that it applied step s.
    Weights: each loss counts weight / reference in backward, and the sum counts reference / total weight afterwards.
    Together that is the gradient of the mean over the global batch, whatever the split. A weight is what the loss was
    divided by (samples, tokens, boxes); what all weigh together is known when the rows are.
    A round without a sample is no step: neither optimizer nor step number move.
    A step whose reduced gradient is not finite is skipped by all alike: its samples count and the step number moves,
    model, optimizer and buffers stay. Nobody calls the optimizer, so none of its hooks either. So is one that a script
    asks to skip, or whose weights are all zero.
    Until the optimizer is called, `abort` leads back to the last applied step, bit by bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from antdt_schemas.errors import UsageError
from antdt_schemas.ranges import Range

from antdt.strategies.allreduce import finite, guard, replicas
from antdt.strategies.allreduce.buckets import LocalGradients, ReducedGradients, all_finite, partition
from antdt.strategies.allreduce.composition import ROW_WIDTH, Round, Row
from antdt.strategies.allreduce.holding import Holding
from antdt.strategies.allreduce.options import AllReduce
from antdt.strategies.allreduce.rendezvous import Generation
from antdt.strategies.allreduce.weights import Weights
from antdt.strategies.base import GenerationClosed, Outcome, Timings
from antdt.strategies.together import optimizers_of

COMPARED_AT_FIRST = 4  # steps of a generation, all of which are compared


class Reduced:
    """The gradients of a step are those of all members: what that has shown. Times by time.perf_counter()."""

    def __init__(self, round_: Round, factor: float, times: tuple[float, float, float]) -> None:
        self.round, self.factor, self.times = round_, factor, times


class AllReduceReplica(Holding):
    """One replica of a model. Only the thread that owns the model calls it.

    first_bucket_at: time.perf_counter() when the first bucket was full in the last backward, where this member's own
    compute ends; None without one.
    """

    def __init__(self, model: torch.nn.Module, optimizer: Any, options: AllReduce | None = None) -> None:
        super().__init__(model, optimizer, options)
        self.first_bucket_at: float | None = None
        self._gradients: ReducedGradients | LocalGradients | None = None
        self._rounds, self._weights = 0, Weights()
        self._gathered: torch.Tensor | None = None
        self._announced = False
        self._reduced: Reduced | None = None

    # -- generations

    def attach(self, generation: Generation, workers: Sequence[str] = ()) -> None:
        """From now on steps are made with the members of this generation. workers: what to call each rank."""
        assert self._row is None, "abort the step first"
        self._generation = generation
        self._lay_out()
        self._workers = workers or [f"rank {rank}" for rank in range(generation.world)]
        self._rounds, self._state = 0, 0
        self._replica.forget()
        self._guard.open()
        self._forget_step()
        self._keep()

    def _lay_out(self) -> None:
        """Room for the gradients of what is trained now."""
        generation = self._attached()
        trained = [param for param in self.model.parameters() if param.requires_grad]
        if not trained:
            raise UsageError("All parameters are frozen: at least one must have requires_grad=True.")
        kind = LocalGradients if generation.world == 1 else ReducedGradients
        same = len(trained) == len(self._trained) and all(a is b for a, b in zip(trained, self._trained, strict=True))
        if not (same and isinstance(self._gradients, kind)):
            if self._gradients is not None:
                self._gradients.disconnect()
            groups = partition(trained, self.options.first_bucket_size_bytes, self.options.bucket_size_bytes)
            self._gradients = (
                LocalGradients(groups) if kind is LocalGradients else ReducedGradients(groups, self.options.overlap)
            )
        self._trained = trained
        self._frozen = [param for param in self.model.parameters() if not param.requires_grad]
        if isinstance(self._gradients, ReducedGradients):
            self._gradients.connect(generation, self._inline())

    def adopt(self, source_rank: int) -> bool:
        """See Holding. What is trained comes with the model."""
        taken = super().adopt(source_rank)
        if taken:
            self._lay_out()
        return taken

    def detach(self) -> None:
        """Takes the hooks off the model; the state stays."""
        self._guard.close()
        if self._gradients is not None:
            self._gradients.disconnect()
        self._gradients, self._generation = None, None

    def _inline(self) -> bool:
        if self.options.compositions == "auto":
            return str(self._trained[-1].device.type) == "cpu"
        return self.options.compositions == "inline"

    @property
    def is_open(self) -> bool:
        """Whether a step was begun and is not applied: only `abort` leads out of it."""
        return self._row is not None

    def abort(self) -> None:
        """After GenerationClosed, or to give up a step: leaves the generation; the state is that of the last step."""
        if self._generation is not None and not self._generation.leave() and self._gradients is not None:
            self._gradients.renounce()
        self._generation = None
        self.once.given_up()
        self._buffers.restore()
        self._random.restore()
        self._forget_step()

    # -- one step

    def take(
        self,
        ranges: Sequence[tuple[int, int, int, int, int]],
        samples: int,
        plan_seen: int,
        ended: bool,
        reference: int,
        *,
        leaving: bool = False,
        checkpoint: bool = False,
    ) -> None:
        """Announces this member's part of the next step; without samples it takes part all the same.

        ranges: at most RANGES_MAX of (lease, token, epoch, start, length). reference: the global batch that the plan in
        the model expects, the same number on all members. leaving, checkpoint: see Row. Call it only with the step
        before applied.

        Raises GenerationClosed, also where parameters were unfrozen: there is no room for their gradients yet.
        """
        generation = self._attached()
        generation.check()
        assert self._row is None, "the step before is still open"
        assert not self.void, "the state is void"
        assert samples == sum(taken[4] for taken in ranges) and reference > 0, (samples, reference, ranges)
        assert len(self.pending) < self.options.pending_max, "too many applied steps await their commit"
        self._check_unfrozen()
        settings, state = self._fingerprints(generation, samples)
        self._row = Row(
            samples=samples,
            plan_seen=plan_seen,
            plan=self.plan,
            lineage=self.lineage,
            step=self.step_number,
            ended=ended,
            reference=reference,
            ranges=tuple(Range(*taken) for taken in ranges),
            leaving=leaving,
            checkpoint=checkpoint,
            settings=settings,
            state=state,
        )

    def _fingerprints(self, generation: Generation, samples: int) -> tuple[int, int]:
        """Of the last applied step: the optimizer's numbers always, the model where everybody gives it.

        Whoever takes no sample gives it always: when nobody takes any, perhaps at the end, all are compared.
        """
        every = self.options.compare_every
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

    def see(self, plan: int) -> None:
        """The newest plan that was read since `take`; it counts for this step if the row has not left yet."""
        row = self._row
        if row is not None and plan > row.plan_seen and not self._announced:
            self._row = replace(row, plan_seen=plan)

    def _announce(self) -> None:
        """This member's row leaves with its first gradients, when it is known what its losses weigh."""
        if self._announced:
            return
        generation, weights, gradients = self._attached(), self._weights, self._gradients
        assert self._row is not None
        self._announced = True
        if self._row.samples:
            self._row = row = replace(
                self._row,
                weight=weights.total,
                trained=self._replica.trained() if self.options.compare_every and generation.world > 1 else 0,
                summed=weights.summed,
                passed_over=weights.reason is not None,
            )
        else:
            row = self._row
        if not isinstance(gradients, ReducedGradients):
            return
        columns = torch.tensor(row.pack(), dtype=torch.int64)
        if self._inline():
            gradients.announce(columns)
        else:
            self._gathered = torch.empty(generation.world, ROW_WIDTH, dtype=torch.int64)
            self._gathering = generation.gather(self._gathered, columns)

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
        """Accumulates the gradients of a loss of this micro-batch of so many `samples`.

        weight: what the loss was divided by; None for its samples. summed: it was not, and nothing divides it. through:
        no other loss of this micro-batch follows. last: nor any of another one in this step. retain_graph: as torch's.

        Raises GenerationClosed.
        """
        row, gradients = self._row, self._gradients
        assert row is not None and gradients is not None, "take first"
        if self._reduced is not None:
            raise UsageError("The gradients of this step are reduced: agent.backward(loss) belongs before that.")
        assert samples > 0, "without samples there is nothing to go backward from"
        guard.check_loss(loss, summed=summed or weight is not None)
        weight = self._weights.of(samples, weight, summed=summed)
        if through:
            self._weights.through(samples)
        self._check_unfrozen()
        if last:
            self._announce()
        gradients.expect(last)
        if weight:  # the mean of nothing is no number, and counts nothing
            scale = 1.0 if summed else weight / row.reference
            self._guard.within(self._go_backward, loss if scale == 1.0 else loss * scale, retain_graph)
        gradients.done(last)
        if last:
            self._check_touched()

    def _go_backward(self, loss: torch.Tensor, retain_graph: bool) -> None:
        self.once.scaled(loss).backward(retain_graph=retain_graph)

    def through(self, samples: int) -> None:
        """No other loss of this micro-batch follows."""
        self._weights.through(samples)

    def skip(self, samples: int, reason: str) -> None:
        """The micro-batch at hand goes without a loss: this step is to be skipped by all."""
        assert self._row is not None, "take first"
        self._weights.skip(samples, reason)

    def _check_touched(self) -> None:
        assert self._gradients is not None
        if not (self._gradients.touched or self._weights.counts_nothing):
            raise UsageError(
                "The loss depends on no trainable parameter of the Agent's model (on a copy of it, or another model?): "
                "give the Agent the very model that the loss is computed with."
            )
        first_at = self._gradients.first_at
        self.first_bucket_at = time.perf_counter() if first_at is None else first_at

    def reduce(self) -> Reduced | None:
        """The gradients are those of all members from here on, weighed and unscaled, and may be looked at and changed,
        by what all know alike. None where nobody has a sample: there is no step.

        Raises GenerationClosed (then `abort`), ReplicasDiffer.
        """
        if self._reduced is not None:
            return self._reduced
        generation, row, gradients = self._attached(), self._row, self._gradients
        assert row is not None and gradients is not None, "take first"
        seen = self._weights.samples
        assert seen == row.samples, f"backward saw {seen} of {row.samples} samples taken"
        generation.check()
        started = time.perf_counter()
        if row.samples and not self._announced:  # losses came one by one, and none was said to be the last
            self._check_unfrozen()
            self._check_touched()
        self._announce()
        if row.samples == 0:
            round_ = Round.of(self._rows())
            if round_.total == 0:
                self._compare(round_)
                return None
        gradients.launch_rest()
        self._buffers.launch(generation, row.samples / row.reference)
        round_ = Round.of(self._rows())
        self._compare(round_)
        composed = time.perf_counter()
        gradients.finish(round_.factor)
        self._buffers.wait(generation)
        if not round_.passed_over:
            self._guard.within(self.once.unscale, optimizers_of(self.optimizer))
        times = started, composed, time.perf_counter()
        self._reduced, self._guard.reduced = Reduced(round_, row.reference / round_.total, times), True
        return self._reduced

    def step(self, on_plan: Callable[[int], None] | None = None) -> Outcome:
        """Reduces what is left, weighs and applies. on_plan: told the plan from this step on, if it is a new one,
        before the optimizer runs.

        Raises GenerationClosed (then `abort`), ReplicasDiffer and NotFinite.
        """
        begun, seen = time.perf_counter(), self._guard.reduced
        reduced = self.reduce()
        self._guard.reduced = seen
        if reduced is None:
            return self._idle(begun)
        round_, gradients = reduced.round, self._gradients
        assert gradients is not None
        skipped, why = self._passed_over(round_)
        unscaled = skipped is None
        if skipped is None:
            skipped = None if gradients.is_finite() and self._are_finite() else self._authors(gradients)
        # From here on nothing can fail half-way but this process itself.
        if round_.plan != self.plan and on_plan is not None:
            on_plan(round_.plan)
        self.void = True
        self._guard.within(self.once.begins, round_.epoch)
        if skipped is None:
            self._apply(reduced.factor)
        else:
            self._buffers.restore()
        self._guard.within(self.once.passed, unscaled)
        self._advance(round_, skipped, why)
        started, composed, gathered = reduced.times
        timings = Timings(composed - started, gathered - composed, time.perf_counter() - gathered)
        return Outcome(round_.total, round_.rows, True, round_.ended, timings, skipped, why)

    def _passed_over(self, round_: Round) -> tuple[tuple[str, ...] | None, str]:
        """Who wants the step skipped, or None, and why."""
        named = zip(self._workers, round_.rows, strict=True)
        if not round_.passed_over:
            return None, ""
        who = tuple(worker for worker, row in named if row.passed_over)
        return who, self._weights.reason or (f"{', '.join(who)} called agent.skip" if who else "it has no weight")

    def _compare(self, round_: Round) -> None:
        """Raises ReplicasDiffer, on all members alike."""
        unequal = round_.unequal()
        if unequal is not None:
            raise replicas.difference(self._attached(), self._replica, self._workers, self.step_number, unequal)

    def _are_finite(self) -> bool:
        """Whether a script that has looked at the gradients has left them so; it may have put others in their place."""
        grads = [param.grad for param in self._trained if param.grad is not None] if self._guard.reduced else []
        return all_finite([grad for grad in grads if not grad.is_sparse])

    def _authors(self, gradients: ReducedGradients | LocalGradients) -> tuple[str, ...]:
        """Whose part of a gradient was not finite; nobody's, if only the sum is too large. Where a step must not be
        skipped, raises NotFinite instead, on all members alike.
        """
        self.check_finite()
        options, authors, generation = self.options, None, self._attached()
        skips = options.on_nonfinite == "skip" or self.once.scales
        try:
            authors = self._gather_authors(generation, gradients.own_is_finite())
        except GenerationClosed:
            if skips:
                raise
        if authors is None or not skips:
            raise finite.not_to_be_skipped(self.step_number + 1, authors, None)
        if self._skips + 1 >= options.skips_max:
            raise finite.not_to_be_skipped(self.step_number + 1, authors, options.skips_max)
        return authors

    def _gather_authors(self, generation: Generation, own_is_finite: bool) -> tuple[str, ...]:
        if generation.world == 1:
            return tuple(self._workers)
        found = torch.empty(generation.world, 1, dtype=torch.int64)
        generation.wait(generation.gather(found, torch.tensor([int(own_is_finite)])))
        return tuple(w for w, finite in zip(self._workers, found.flatten().tolist(), strict=True) if not finite)

    def _rows(self) -> list[Row]:
        """Everybody's, in rank order; waits for them."""
        assert self._row is not None and self._generation is not None
        if not isinstance(self._gradients, ReducedGradients):
            return [self._row]
        if self._gathered is None:
            rows = self._gradients.announced()
        else:
            self._generation.wait(self._gathering)
            rows = self._gathered
        return [Row.unpack(columns) for columns in rows.tolist()]

    def _idle(self, started: float) -> Outcome:
        rows = self._rows()
        self._attached().settled()
        self._buffers.restore()
        self._forget_step()
        ended = any(row.ended for row in rows)
        return Outcome(0, rows, False, ended, Timings(time.perf_counter() - started, 0.0, 0.0))

    def _apply(self, factor: float) -> None:
        """Void until `_advance` has said which step this is. factor: of the buffers."""
        self._buffers.finish(factor)
        self._guard.within(self._step_optimizers)
        self._replica.stepped(self.rates.factor)

    def _step_optimizers(self) -> None:
        self.once.clip(self._trained)
        self.rates.step()

    def _advance(self, round_: Round, skipped: tuple[str, ...] | None, why: str) -> None:
        self.step_number += 1
        self.plan = round_.plan
        self.lineage = round_.lineage_after(self.lineage, self.step_number)
        self.pending.append(round_.composition(self.step_number, skipped))
        if not why:  # what a script skips is its own affair
            self._skips = 0 if skipped is None else self._skips + 1
        self._random_of_file, self._state = (), 0
        if skipped is None:
            self.once.call_on_step(self.step_number)
        self.void = False
        self._attached().settled()
        self._forget_step()
        self._keep()

    # -- helpers

    def _forget_step(self) -> None:
        """No step is open, no gradient is there."""
        if self._gradients is not None:
            self._gradients.reset()
        self._row, self._gathered, self._gathering, self._reduced = None, None, None, None
        self._weights.clear()
        self._announced, self._guard.reduced, self.first_bucket_at = False, False, None

    def _check_unfrozen(self) -> None:
        """Raises GenerationClosed: the next generation has room for the gradients of what is trained from now on."""
        if any(param.requires_grad for param in self._frozen):
            raise GenerationClosed("Parameters were unfrozen: the members meet anew, and reduce their gradients too.")
