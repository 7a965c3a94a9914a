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
from typing import Any, NamedTuple

import torch
from antdt_schemas.errors import UsageError
from antdt_schemas.ranges import Range

from antdt.strategies.allreduce.buckets import ReducedGradients
from antdt.strategies.allreduce.composition import ROW_WIDTH, Round, Row
from antdt.strategies.allreduce.options import AllReduce
from antdt.strategies.allreduce.ordered import OrderedGradients
from antdt.strategies.allreduce.rendezvous import Generation
from antdt.strategies.allreduce.updates import Updating
from antdt.strategies.base import Outcome, Place, Timings
from antdt.strategies.together import optimizers_of


class Reduced(NamedTuple):
    """The gradients of a step are those of all members: what that has shown. factor: of buffers. times: by
    time.perf_counter().
    """

    round: Round
    factor: float
    times: tuple[float, float, float]


class AllReduceReplica(Updating):
    """One replica of a model. Only the thread that owns the model calls it.

    first_bucket_at: time.perf_counter() when the first bucket was full in the last backward, where this member's own
    compute ends; None without one.
    """

    def __init__(self, model: torch.nn.Module, optimizer: Any, options: AllReduce | None = None) -> None:
        super().__init__(model, optimizer, options)
        self.first_bucket_at: float | None = None
        self._stops = False
        self._gathered: torch.Tensor | None = None
        self._announced = self._complete = False
        self._reduced: Reduced | None = None

    # -- generations

    def attach(self, generation: Generation, workers: Sequence[str] = ()) -> None:
        """From now on steps are made with the members of this generation. workers: what to call each rank."""
        assert self._row is None, "abort the step first"
        self._generation = generation
        self._lay_out()
        self._workers = self._talk.workers = workers or [f"rank {rank}" for rank in range(generation.world)]
        self._rounds, self._state = 0, 0
        self._replica.forget()
        self._guard.open()
        self._forget_step()
        self._keep()

    def detach(self) -> None:
        """Takes the hooks off the model; the state stays."""
        self._guard.close()
        if self._gradients is not None:
            self._gradients.disconnect()
        self._gradients, self._generation = None, None

    @property
    def is_open(self) -> bool:
        """Whether a step was begun and is not applied: only `abort` leads out of it."""
        return self._row is not None

    def abort(self) -> None:
        """After GenerationClosed, or to give up a step: leaves the generation; the state is that of the last step."""
        if self._generation is not None and not self._generation.leave() and self._gradients is not None:
            self._gradients.renounce()
        self._generation = None
        self._give_up_updates()
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
        place: Place | None = None,
    ) -> None:
        """Announces this member's part of the next step; without samples it takes part all the same.

        ranges: at most RANGES_MAX of (lease, token, epoch, start, length), with so many samples. reference: the global
        batch that the plan in the model expects, the same size on all members. leaving, checkpoint: see Row. place: of
        a step of a fixed size; then `ranges` are as many as they are. Call it only with the step before applied.

        Raises GenerationClosed, also where parameters were unfrozen: there is no room for their gradients yet.
        """
        generation = self._attached()
        generation.check()
        assert self._row is None, "the step before is still open"
        assert not self.void, "the state is void"
        assert samples <= sum([taken[4] for taken in ranges]) and reference > 0, (samples, reference, ranges)
        assert len(self.pending) < self.options.pending_max, "too many applied steps await their commit"
        self._check_unfrozen()
        (settings, state), self._place = self._fingerprints(generation, samples), place
        self._row = Row(
            samples=samples,
            plan_seen=plan_seen,
            plan=self.plan,
            lineage=self.lineage,
            step=self.step_number,
            ended=ended,
            reference=reference,
            ranges=tuple(Range(*taken) for taken in ranges) if place is None else (),
            leaving=leaving,
            checkpoint=checkpoint,
            settings=settings,
            state=state,
            split=place.split if place is not None else 0,
        )

    def _wants_to_talk(self) -> None:
        """Takes part in the next step of all members for no step, so that whoever hears of it has made the one before.

        Raises GenerationClosed, on all members alike.
        """
        self._row = Row(
            samples=0, plan_seen=0, plan=self.plan, lineage=self.lineage, step=self.step_number, talking=True
        )
        self.reduce()

    def see(self, plan: int) -> None:
        """The newest plan that was read since `take`; it counts for this step if the row has not left yet."""
        row = self._row
        if row is not None and plan > row.plan_seen and not self._announced:
            row.plan_seen = plan

    def _announce(self, bare: bool = False) -> None:
        """This member's row leaves with its first gradients, when it is known what its losses weigh. bare: there are
        none any more.
        """
        if self._announced:
            return
        generation, weights, gradients = self._attached(), self._weights, self._gradients
        row = self._row
        assert row is not None
        self._announced, row.stopping = True, self._stops
        if row.samples:
            row.weight, row.summed, row.passed_over = weights.total, weights.summed, weights.reason is not None
            row.trained = self._replica.trained() if self.options.compares and generation.world > 1 else 0
        if generation.world == 1:
            return
        if self._inline and not bare:
            assert isinstance(gradients, ReducedGradients)
            gradients.announce(row.pack())
        else:
            columns = torch.tensor(row.pack(), dtype=torch.int64, device="cpu")
            self._gathered = torch.empty(generation.world, ROW_WIDTH, dtype=torch.int64, device="cpu")
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

        weight: what the loss was divided by; None for what its graph says, or its samples. summed: it was not. through:
        no other loss of this micro-batch follows. last: nor any of another one in this step. retain_graph: as torch's.

        Raises GenerationClosed.
        """
        row, gradients = self._row, self._gradients
        assert row is not None and gradients is not None, "take first"
        self._untouched.check()
        if self._reduced is not None:
            raise UsageError("The gradients of this step are reduced: agent.backward(loss) belongs before that.")
        assert samples > 0, "without samples there is nothing to go backward from"
        one = self._attached().world == 1
        alone, whole = one and samples >= row.samples, row.samples if one else row.reference
        weight = self._denominators.weigh(self._weights, loss, samples, weight, summed=summed, alone=alone, whole=whole)
        if through:
            self._weights.through(samples)
        self._check_unfrozen()
        self._complete = last
        if last and (self._inline or not self.talks):
            self._announce()
        gradients.expect(last)
        if weight:  # the mean of nothing is no number, and counts nothing
            scale = 1.0 if summed else weight / row.reference
            self._go_backward(loss, scale, retain_graph)
        gradients.done(last)
        if through:
            self._end_unit()
        if last:
            self._check_touched()

    def through(self, samples: int, last: bool) -> None:
        """No other loss of this micro-batch follows. last: nor any of another one in this step."""
        self._weights.through(samples)
        self._end_unit()

    def _end_unit(self) -> None:
        self._guard.body = None  # no loss of this batch follows: what the script loads now is for something else
        if isinstance(self._gradients, OrderedGradients):
            self._gradients.end_unit()

    def skip(self, samples: int, reason: str) -> None:
        """The micro-batch at hand goes without a loss: this step is to be skipped by all."""
        assert self._row is not None, "take first"
        self._weights.skip(samples, reason)

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
        if row.samples and not self._complete:  # losses came one by one, and none was said to be the last
            self._check_unfrozen()
            self._look_again()
            self._check_touched()
        if self.talks:
            weights, place, idle = self._weights, 2 * self.step_number + 1, row.samples == 0
            parts = 0 if weights.counts_nothing and not weights.bare else weights.parts
            weights.bare = self._talk.reduction(generation, place, idle=idle, bare=weights.bare, parts=parts)
        bare = self._weights.bare
        self._announce(bare)
        if row.samples == 0:
            round_ = Round.of(self._rows())
            if round_.total == 0:
                self._compare(round_)
                return None
        if isinstance(gradients, OrderedGradients):
            self._require_same_buffers()
        if not bare:
            gradients.launch_rest()
        self._buffers.launch(generation, row.samples / row.reference)
        round_ = Round.of(self._rows())
        self._compare(round_)
        composed = time.perf_counter()
        if not bare:
            gradients.finish(round_.factor)
        self._buffers.wait(generation)
        if self.once.scales and not (bare or round_.passed_over):
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
        reduced, place = self.reduce(), self._place
        self._guard.reduced = seen
        if reduced is None:
            return self._idle(begun, counts=self._is_made_of_nothing())
        round_, gradients = reduced.round, self._gradients
        if round_.stopping or (place is not None and round_.total != place.total):
            # Nothing is made any more; or somebody leaves without its part, and it is no step.
            self._give_up_updates()
            return self._idle(begun)
        assert gradients is not None
        skipped, why = self._passed_over(round_, self._weights.reason)
        unscaled = skipped is None
        if skipped is None and self._weights.bare:
            skipped = None if True in self._updated else ()
        elif skipped is None:
            skipped = None if gradients.is_finite() and self._are_finite() else self._authors(gradients)
        # From here on nothing can fail half-way but this process itself.
        if round_.plan != self.plan and on_plan is not None:
            on_plan(round_.plan)
        self.void = True
        epoch = round_.epoch if place is None else place.epoch
        if epoch > self.once.epoch:
            self._guard.within(self.once.begins, epoch)
        if skipped is None:
            self._apply(reduced.factor)
        else:
            self._buffers.restore()
        self._guard.within(self.once.passed, unscaled)
        self._advance(round_, skipped, why)
        started, composed, gathered = reduced.times
        timings = Timings(composed - started, gathered - composed, time.perf_counter() - gathered)
        return Outcome(round_.total, round_.rows, True, round_.ended, timings, skipped, why)

    def _rows(self) -> list[Row]:
        """Everybody's, in rank order; waits for them."""
        assert self._row is not None and self._generation is not None
        if self._generation.world == 1:
            return [self._row]
        if self._gathered is None:
            assert isinstance(self._gradients, ReducedGradients)
            rows = self._gradients.announced()
        else:
            self._generation.wait(self._gathering)
            rows = self._gathered.tolist()
        own = self._generation.rank
        return [self._row if rank == own else Row.unpack(columns) for rank, columns in enumerate(rows)]

    def _is_made_of_nothing(self) -> bool:
        """Whether the step at hand, which nobody has a sample of, is one: all of it is left out, or none is there."""
        return any(row.ranges for row in self._rows()) if self._place is None else self._place.total == 0

    def _idle(self, started: float, *, counts: bool = False) -> Outcome:
        """counts: it is a step all the same, all of whose samples are left out."""
        round_ = Round.of(self._rows())
        self._attached().settled()
        self._buffers.restore()
        self._advance(round_, None, "") if counts else self._forget_step()
        return Outcome(0, round_.rows, counts, round_.ended, Timings(time.perf_counter() - started, 0.0, 0.0))

    def _apply(self, factor: float) -> None:
        """Void until `_advance` has said which step this is. factor: of the buffers."""
        self._buffers.finish(factor)
        if not self._weights.bare:
            self._guard.within(self._step_optimizers)
        self._replica.stepped(self.rates.total)

    def _step_optimizers(self) -> None:
        self.once.clip(self._trained)
        self.rates.step()

    def _advance(self, round_: Round, skipped: tuple[str, ...] | None, why: str) -> None:
        self.step_number += 1
        self._talk.stepped(2 * self.step_number, itself=self._row is not None and self._row.samples > 0)
        self.plan = round_.plan
        place, step = self._place, self.step_number
        self.lineage = round_.lineage_after(self.lineage, step, place)
        self.pending.append(round_.composition(step, skipped, place))
        self.cursor = place.behind if place is not None else self.cursor
        if not why:  # what a script skips is its own affair
            self._skips = 0 if skipped is None else self._skips + 1
        self._random_of_file, self._state = (), 0
        if skipped is None:
            self.once.call_on_step(self.step_number)
        self._untouched.renew(made=True)
        self.void = False
        self._attached().settled()
        self._forget_step()
        self._keep()

    def stop(self) -> None:
        """The step that is open, or the next one, is not made: this member says so to all."""
        self._stops = True

    # -- helpers

    def _forget_step(self) -> None:
        """No step is open, no gradient is there."""
        if self._gradients is not None:
            self._gradients.reset()
        self._row, self._place, self._gathered, self._gathering, self._reduced = None, None, None, None, None
        self._weights.clear()
        self._undo, self._updated = None, []
        self._announced = self._complete = self._guard.reduced = False
        self.first_bucket_at = None
