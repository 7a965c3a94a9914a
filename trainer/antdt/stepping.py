"""What a script calls in the body of its loop: one call for a batch, or the same in parts.

    agent.step(loss)                                      the whole
    agent.backward(loss); agent.apply()                   the same; with any number of losses
    agent.backward(loss); agent.reduce(); agent.apply()   gradients of all workers, looked at or changed in between
    agent.skip("why")                                     instead of a loss: all workers skip this step

Owns what becomes of a batch that the script has, until its step is the life's. Must not know where batches come from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from antdt_schemas.errors import UsageError

from antdt.hand import Hand
from antdt.host.whereabouts import At
from antdt.strategies.base import GenerationClosed, Outcome, Strategy, Watches
from antdt.strategies.habits.counting import Counting
from antdt.strategies.habits.provenance.watcher import Watcher
from antdt.strategies.once import weight_of
from antdt.talking import Heard
from antdt.worker import instructions as ask
from antdt.worker.instructions import Course
from antdt.worker.plans import Plans

log = logging.getLogger("antdt")

NO_BATCH = "agent.{} belongs into the loop over the Agent, once for every batch."
ONLY_LOGGED = (
    " (Where it does not depend on what that returns, make the call behind the loss, or say of='batch' in it.)"
)


class Micro(NamedTuple):
    """One micro-batch. samples: how many. last: of a step of the optimizer. over: of a step of the job."""

    samples: int
    last: bool
    over: bool


class Watched:
    """While the script has a batch. No generator makes one for each: this is entered at every step."""

    def __init__(self, strategy: Strategy, counting: Counting) -> None:
        # To ask a protocol takes longer than all that it is asked for.
        self.watches = strategy if isinstance(strategy, Watches) else None
        self._strategy, self._counting = strategy, counting

    def begin(self, batch: Any, samples: int) -> Watched:
        """The script gets this one."""
        self._counting.gives(self._strategy.step_number)
        if self.watches is not None:
            self.watches.watch(batch, samples)
        return self

    def __enter__(self) -> None:
        """It has begun."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.watches is not None:
            self.watches.unwatch(whole=kind is None)


class Stepping:
    """A part of the Agent. `_micro`: the micro-batch that the script has; None while it has none. `_broken`: the step
    was given up, its batches go by.
    """

    strategy: Strategy
    plans: Plans
    _hand: Hand
    _course: Course | None
    _micro: Micro | None
    _broken: bool
    _perform: Callable[[ask.Instruction], Any]
    _page: Any
    _outcome: Outcome | None = None
    _losses, _updates = 0, 0  # of the micro-batch at hand
    _whole = True  # it is the only one of its step
    _cut = False  # its step was cut to find out which sample fails
    _needs_whole = False  # the script has used what is wrong in parts
    _heard: Heard | None = None  # the first call in the body, of the micro-batch at hand
    _inside = False
    _between = False  # behind the loss of a micro-batch, where others follow in its step

    def step(self, loss: torch.Tensor, *, weight: Any = None, reduction: Literal["mean", "sum"] = "mean") -> bool:
        """Backward for the micro-batch at hand; reduces and applies after the last one of a step.

        loss: the mean over the micro-batch. weight: what it was divided by, where that is not the number of samples:
        tokens, boxes, the sum of class weights. (`cross_entropy` as the whole loss says it itself.) The gradient of the
        step is the sum of all workers' gradients, each times its weight, over the sum of their weights: that of the
        mean over the whole batch, whatever the split. With weight 0 a batch counts nothing. reduction: "sum" for a loss
        that was not divided, and shall not be.

        Returns True when the model has changed: `step_number` and `lineage` say to what. A step whose gradient is not
        finite is skipped by all workers: its samples count, the model stays as it was, no hook of the optimizer is
        called, and False is returned.

        Raises:
            UsageError: something that would be silently wrong, with what to do instead.
            ReplicasDiffer: the workers do not hold the same model any more; which part, and what likely did it.
            NotFinite: the model is not finite, or too many steps in a row were skipped.
        """
        if self._losses or self._updates:
            raise UsageError(
                "agent.step(loss) is the whole: behind agent.backward(loss) it is agent.apply(), and where single "
                "optimizers are stepped, agent.apply(optimizer) for each."
            )
        micro, self._micro = self._at_hand("step(loss)"), None
        if self._gone():
            return False
        return self._carry_on(lambda: self._backward(loss, micro, weight, reduction, through=True), over=micro.over)

    def backward(
        self,
        loss: torch.Tensor,
        *,
        weight: Any = None,
        reduction: Literal["mean", "sum"] = "mean",
        retain_graph: bool = False,
    ) -> None:
        """Accumulates the gradients of a loss of the batch at hand, any number of times; `apply` ends the batch.

        weight, reduction: as of `step`; all losses of one batch weigh the same. retain_graph: as torch's, where another
        loss of this batch goes through the same graph.
        """
        micro = Micro(self._at_hand("backward(loss)").samples, last=False, over=False)
        self._losses += 1
        if not self._broken:
            words = {"through": False, "retain_graph": retain_graph}
            self._carry_on(lambda: self._backward(loss, micro, weight, reduction, **words))

    def reduce(self) -> bool:
        """From here on the gradients are those of all workers, weighed (and unscaled): look at them, or change them, by
        what all workers know alike, then `apply`. True where they are there: behind the last batch of a step.
        """
        samples, last, over = self._at_hand("reduce()")
        self._require_losses()
        if self._updates:
            raise UsageError("agent.reduce() is for all optimizers at once: leave it out with agent.apply(optimizer).")
        if self._broken or not over:
            return False
        if samples:
            self._micro = Micro(0, last, over)
            self.strategy.through(samples, last)
        self._carry_on(self._reduce)
        return not self._broken

    def apply(self, *optimizers: Any) -> bool:
        """Ends the batch; the optimizers step after the last one of a step. Returns as `step` does.

        optimizers: these alone step, at once, with the gradients of all workers since the last `apply`; other losses of
        this batch, and other optimizers, may follow, and the step ends with the loop's body (a GAN: the discriminator,
        then the generator that is judged by the new one). It needs the whole batch at once: no micro-batches.
        """
        samples, last, over = self._at_hand("apply()")
        self._require_losses()
        if optimizers:
            return self._update(optimizers)
        if self._updates:
            raise UsageError("Behind agent.apply(optimizer) the next ones are named, too: agent.apply(other).")
        self._micro, self._losses = None, 0
        if self._gone():
            return False
        return self._carry_on(lambda: self._through(samples, last), over=over)

    def skip(self, reason: str) -> bool:
        """Instead of a loss of the batch at hand: the step that it is in is skipped by all workers. Its samples count,
        the model stays as it was, the log says who asked for it. (A batch that alone shall not count has weight 0.)

        Returns False: the model has not changed.
        """
        samples, _, over = self._at_hand("skip(reason)")
        if self._updates:
            raise UsageError("agent.skip(reason) belongs before agent.apply(optimizer), which has changed the model.")
        self._micro, self._losses = None, 0
        if not self._gone():
            self.strategy.skip(samples, reason)
            self._hand.passed(self.strategy.first_bucket_at)
            self._carry_on(lambda: self.strategy.see(self.plans.newest), over=over)
        return False

    # -- helpers

    @property
    def is_in_step(self) -> bool:
        """Whether the batch at hand was passed on, and others of the same step follow."""
        return self._inside and not self._broken and self._micro is None

    @cached_property
    def _watcher(self) -> Watcher:
        """Looks at what the script computes of a batch, as far as the strategy has it do so."""
        watches = self._watched.watches
        return watches.watcher if watches is not None else Watcher()

    @cached_property
    def _watched(self) -> Watched:
        return Watched(self.strategy, self._hand.counting)

    def _update(self, optimizers: tuple[Any, ...]) -> bool:
        self._require_whole("agent.apply(optimizer)")
        self._losses, self._updates, made = 0, self._updates + 1, list[bool]()
        if not self._broken:
            self._carry_on(lambda: made.append(self.strategy.update(optimizers)))
        return made == [True]

    def _require_whole(self, what: str, otherwise: str = "") -> None:
        """Where a step was cut to find a sample that fails, it is given up, and comes again in one piece: a script that
        needs it so gets no other one from now on. otherwise: what else a script could do that may have micro-batches.
        """
        if self._whole or self._broken:
            return
        if not self._cut:
            raise UsageError(
                f"{what} needs the whole batch of a step at once: leave out micro_batch_size_max, or make batch_size "
                f"smaller.{otherwise}"
            )
        log.info("%s needs the whole batch of a step: it is not cut any more", what)
        self._needs_whole = self._broken = self.strategy.wants_undivided = True
        self._hand.drop()

    def _end_updates(self) -> None:
        """The body is over, and its optimizers have stepped: so is the step."""
        samples, last, over = self._at_hand("apply(optimizer)")
        self._micro, self._updates = None, 0
        if not self._gone():
            self._carry_on(lambda: self._through(samples, last), over=over)

    def _through(self, samples: int, last: bool) -> None:
        """The batch has all of its losses."""
        if samples:
            self.strategy.through(samples, last)
        self._hand.passed(self.strategy.first_bucket_at)
        self.strategy.see(self.plans.newest)

    def _at_hand(self, call: str) -> Micro:
        if self._micro is None:
            raise UsageError(NO_BATCH.format(call))
        return self._micro

    def _require_losses(self) -> None:
        if not self._losses:
            raise UsageError("There is no gradient to apply: call agent.backward(loss) before, or agent.skip(reason).")

    def _gone(self) -> bool:
        """Whether the step was given up."""
        if self._broken:
            self._hand.drop()
        return self._broken

    def _carry_on(self, act: Callable[[], Any], *, over: bool = False) -> bool:
        """This, and what is left of the step if it is its end. Returns whether the model has changed."""
        self._outcome = None
        self._watcher.leave()
        try:
            act()
            if over and not self._broken:
                self._finish_step()
        except GenerationClosed as closed:
            log.info("generation is over: %s", closed)
            self._broken = True
            self._hand.drop()
        if self._micro is None:
            self._inside, self._between = not over or self._broken, not over
            self._page.enter(At.USER)
        else:
            self._watcher.enter()
        made = self._outcome
        return made is not None and made.applied and made.skipped is None

    def _backward(self, loss: torch.Tensor, micro: Micro, weight: Any, reduction: str, **words: bool) -> None:
        if reduction not in ("mean", "sum"):
            raise UsageError(f"reduction={reduction!r}: a loss is a mean or a sum over its batch.")
        if micro.over:
            self.strategy.see(self.plans.newest)
        samples, last, _ = micro
        weight = None if weight is None else weight_of(weight)
        if self._heard is not None and self._heard.may_be_in(loss):
            self._require_whole(f"A loss that is made behind {self._heard.call}", ONLY_LOGGED)
            if self._broken:
                return
        try:
            self.strategy.backward(loss, samples, last, weight=weight, summed=reduction == "sum", **words)
        except GenerationClosed:
            raise
        except Exception as error:
            if not self._hand.survives(error):
                raise
            self._broken = True
            return
        if words["through"]:
            self._hand.passed(self.strategy.first_bucket_at)

    def _reduce(self) -> None:
        self.strategy.see(self.plans.newest)
        self._page.enter(At.REDUCING)
        self.strategy.reduce()
        self._page.enter(At.COMPUTING)

    def _finish_step(self) -> None:
        """The life goes on until the model is the script's again."""
        course = self._course
        assert course is not None and isinstance(course.asks, ask.Train), "a step belongs to samples"
        course.go_on()
        while not isinstance(course.asks, ask.Between):
            course.carry_out(self._perform)
