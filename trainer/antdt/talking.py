"""What a script says to the scripts of all other workers, and hears of them: in its loop, and at the end of an epoch.

    loss = agent.all_reduce(total) / agent.all_reduce(count)     sums over all workers, the same number on each
    keys = agent.gather(features)                                with gradients, for negatives of the whole batch
    agent.stop("early stopping")                                 all workers end at this step, with a checkpoint

Members that come, go, or have no batch hold up nobody. A call that only some make ends the run, and is named. In the
body of a step that is given up, each hears itself alone: nothing of that step counts. Between two steps a
call is made again with whoever is there then.

A step may be cut: into micro-batches (micro_batch_size_max, a plan, memory that ran out), or to find a sample that
fails. Then the body runs for each piece, and a call in it hears of the pieces at hand, not of the step. So a loss that
was made behind such a call needs the step whole, as it may depend on what was heard; not so where the call is behind
the loss, or says of="batch".

Owns the form in which a script says and hears. Must not know how it reaches others.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from antdt_schemas.errors import Unavailable, UsageError

from antdt.driving.membership import Membership
from antdt.host.whereabouts import At
from antdt.strategies.base import GenerationClosed, Strategy
from antdt.strategies.habits.provenance.watcher import Watcher
from antdt.worker import instructions as ask
from antdt.worker.instructions import Course

log = logging.getLogger("antdt")

OUTSIDE = (
    "agent.{} belongs into the loop over the Agent, or at the end of an epoch (agent.epochs(), agent.on_epoch): the "
    "workers are not together before and behind it."
)
IN_STEP = (
    "agent.{} was called in a callback of agent.on_step or a hook of the optimizer, in the middle of a change that "
    "cannot be taken back: call it in the loop, before or behind agent.step(loss)."
)
PARTED = (
    "agent.{} at the end of the last epoch: the workers have parted, as the job has ended. Where samples are leased "
    "(AgentOptions.order) nobody knows before that it is the end."
)
OF = ("step", "batch")
OURS = ("antdt", "torch")
COMBINE: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "sum": torch.add,
    "mean": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
}


Of = Literal["step", "batch"]


class Heard(NamedTuple):
    """A script has heard of others in a piece of a step. call: which one it was. before: the number that autograd gave
    to the next operation, by which a loss tells whether it was made before.
    """

    call: str
    before: int

    @classmethod
    def now(cls, call: str) -> Heard:
        """In this line of the script."""
        return cls(f"agent.{call} at {place_of()}", torch.autograd._get_sequence_nr())

    def may_be_in(self, loss: torch.Tensor) -> bool:
        """Whether this loss was made later. (In another thread: nobody knows, and threads begin with small numbers.)"""
        node = getattr(loss, "grad_fn", None)
        return node is not None and bool(node._sequence_nr() >= self.before)


class Talking:
    """A part of the Agent. `_inside`: the script is in the body of a step. `_over`: its loop has ended."""

    if TYPE_CHECKING:

        @property
        def rank(self) -> int: ...
        @property
        def step_number(self) -> int: ...
        @property
        def has_made_all(self) -> bool: ...
        @cached_property
        def _watcher(self) -> Watcher: ...

    strategy: Strategy
    _membership: Membership
    _course: Course | None
    _broken: bool
    _whole: bool
    _between: bool
    _heard: Heard | None
    _require_whole: Callable[[str], None]
    _page: Any
    _perform: Callable[[ask.Instruction], Any]
    _inside = False
    _over = False
    _stopped: str | None = None
    _own_rows = slice(0, 0)
    _first_rank = 0  # whose part of the step at hand is the first one

    @property
    def is_main(self) -> bool:
        """Whether this worker is the one that reports: there is one at a time."""
        return self._membership.is_main

    def print(self, *values: Any, **words: Any) -> None:
        """`print`, by one worker only."""
        if self.is_main:
            print(*values, **words)

    def all_reduce(self, value: Any, op: Literal["sum", "mean", "max", "min"] = "sum", *, of: Of = "step") -> Any:
        """Of all workers that come by: a tensor (of one shape), or a number; bit by bit the same on all of them. No
        gradient goes through it. In a "mean" each worker counts the same; that over all samples is a sum over a number,
        all_reduce(values.sum()) / all_reduce(len(values)).

        of: in the loop's body, what it is to be of: the whole "step", and then a loss that is made behind the call is
        refused where the step is cut, as it may depend on it; or the "batch" at hand, which may be a piece of it, where
        no loss does (it is only logged). Behind the loss it makes no difference.
        """
        if op not in COMBINE:
            raise UsageError(f"all_reduce: op is one of {', '.join(COMBINE)}, not {op!r}.")
        parts = self._others(value, f"all_reduce(value, {op!r})", of)
        if any(part.shape != parts[0].shape for part in parts):
            shapes = ", ".join(str(tuple(part.shape)) for part in parts)
            raise UsageError(f"all_reduce: workers gave tensors of {shapes}: use all_gather for what differs.")
        found = functools.reduce(COMBINE[op], parts)
        if op == "mean":
            found = found / len(parts)
            if isinstance(value, torch.Tensor):
                self._watcher.mean_of_workers(value, found)
        return _as_given(found, value)

    def all_gather(self, value: Any, *, of: Of = "step") -> list[Any]:
        """What each worker gives, in rank order: tensors, which may differ in shape, or numbers. No gradient goes
        through it. of: see `all_reduce`.
        """
        return [_as_given(part, value) for part in self._others(value, "all_gather(value)", of)]

    def broadcast(self, value: Any, *, of: Of = "step") -> Any:
        """The first worker's value, on all of them. of: see `all_reduce`."""
        return _as_given(self._others(value, "broadcast(value)", of)[0], value)

    def barrier(self) -> None:
        """Returns when all workers have come here."""
        self._exchange(None, "barrier()")

    def gather(self, features: torch.Tensor) -> torch.Tensor:
        """Rows of all workers, with gradients: `own_rows` says where those of this worker are.

        A loss over this worker's rows that looks at all of them (in-batch negatives) then has the gradient of the loss
        over the whole batch. It needs that batch at once: no micro-batches.

        Where steps have a fixed size, and each sample has a row, the rows are in the order of one process that has the
        whole step, whoever has which of them: what a script draws by the number of a row (partners for mixup, say) is
        the same for any split, behind a death as well. (It is not rank order then: parts go round until it is known
        which sample ended a worker.) Where samples are leased (AgentOptions.order) they are in rank order; there it is
        the samples' own numbers, gathered as well, that a draw should go by.
        """
        if not self._inside:
            raise UsageError("agent.gather(features) belongs into the body of the loop.")
        self.strategy.wants_undivided = True
        self._require_whole("agent.gather(features)")
        found: torch.Tensor = _Gathered.apply(features, self)  # type: ignore[no-untyped-call]
        self._watcher.forget(found)
        return found

    @property
    def own_rows(self) -> slice:
        """Where this worker's rows are in what `gather` returned last."""
        return self._own_rows

    def stop(self, reason: str) -> None:
        """No step is made any more, on any worker, from the one on that is open now: all leave their loops with the
        model as it is here, and the first one writes a checkpoint. The job is finished early, for this reason: launched
        again, it trains nothing. (Before the first step there is nothing to finish: launched again, it begins.)
        """
        self._stopped = reason
        log.warning("stops behind step %d: %s", self.step_number, reason)
        self.strategy.stop()

    # -- helpers

    def _others(self, value: Any, call: str, of: Of) -> list[torch.Tensor]:
        if of not in OF:
            raise UsageError(f"agent.{call}: of is one of {', '.join(OF)}, not {of!r}.")
        given = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value, device="cpu")
        if given.is_floating_point() and not isinstance(value, torch.Tensor):
            given = given.double()
        parts = self._exchange(given, call)
        self._watcher.forget(parts)
        if self._inside and not (self._whole or self._between or self._heard or of == "batch"):
            self._heard = Heard.now(call)
        return [part.to(given.device) for part in parts if part is not None] or [given]

    def _exchange(self, value: torch.Tensor | None, call: str) -> list[torch.Tensor | None]:
        """By rank; None of whom has not come by."""
        if self._course is None or self._over:
            raise UsageError(OUTSIDE.format(call))
        if self.strategy.void:
            raise UsageError(IN_STEP.format(call))
        if self._course.asks is None and not self.strategy.stands:
            raise Unavailable(PARTED.format(call), "The job is finished, and its model is in its file.")
        while not (self._inside and self._broken):
            phase, standing = self._page.phase, self._page.standing()
            self._page.enter(At.REDUCING)
            try:
                how = {"inside": self._inside, "between": self._between}
                with self._watcher.away():
                    return self.strategy.exchange(value, **how, call=f"{call} at {place_of()}")
            except GenerationClosed as closed:
                if self._inside:
                    log.info("generation is over: %s", closed)
                    self._broken = True
                else:
                    self._meet_anew(closed)
            finally:
                self._page.enter(phase, standing.detail, standing.allowed_s)
        return [value]

    def _meet_anew(self, closed: GenerationClosed) -> None:
        """In the middle of what the script does between two steps: the life goes on up to its next batch."""
        course, went = self._course, False
        assert course is not None
        self._require_others(course, closed)
        while course.asks is not None and not (went and self._is_back(course)):
            if isinstance(course.asks, ask.Train | ask.Between):
                course.closed(closed)
            went = went or isinstance(course.asks, ask.Leave)
            if course.asks is not None:
                course.carry_out(self._perform)
        if course.asks is None and course.result is not None:
            raise SystemExit(int(course.result))
        self._require_others(course, closed)

    def _is_back(self, course: Course) -> bool:
        """Where a script may say something: before a batch, or behind the last one."""
        return isinstance(course.asks, ask.Train) or (isinstance(course.asks, ask.Between) and self.has_made_all)

    def _require_others(self, course: Course, closed: GenerationClosed) -> None:
        if course.asks is None:
            said = f"A worker ended while the others did something at the end of the job: {closed}"
            raise Unavailable(said, "The job is finished, and its model is in its file.")


class _Gathered(torch.autograd.Function):  # type: ignore[misc]
    """Everybody's rows; in backward everybody's gradients of them are added, and each takes its own."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, agent: Any) -> torch.Tensor:
        parts = agent._exchange(features.detach(), "gather(features)")
        if len(parts) > 1:
            first, world = agent._first_rank, len(parts)
            parts, at = parts[first:] + parts[:first], (agent.rank - first) % world
        else:
            at = 0
        before = sum(len(part) for part in parts[:at] if part is not None)
        ctx.agent, ctx.rows = agent, slice(before, before + len(features))
        agent._own_rows = ctx.rows
        return torch.cat([part.to(features.device) for part in parts if part is not None])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        parts = [part for part in ctx.agent._exchange(grad, "gather(features)") if part is not None]
        total = functools.reduce(torch.add, [part.to(grad.device) for part in parts])
        return total[ctx.rows], None


def place_of() -> str:
    """Where the script is that calls: file and line, or as near as can be told."""
    frame: Any = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in OURS:
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


def _as_given(found: torch.Tensor, value: Any) -> Any:
    return found if isinstance(value, torch.Tensor) else found.item()
