"""Epochs as a script sees them: what it does at the end of each, and loops that are nested.

    for epoch in agent.epochs():          @agent.on_epoch
        for x, y in epoch:                def evaluate(epoch): ...
            agent.step(loss)
        evaluate()

Owns where one epoch ends and the next one begins for this worker's script. Must not know how a step is made.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from antdt_schemas.errors import UsageError
from antdt_schemas.records import JobSpec

from antdt.hand import Hand
from antdt.host.whereabouts import At
from antdt.strategies.base import Strategy
from antdt.strategies.once import callback_of

NONE, HOLD = -1, -2
BETWEEN_S = 3600.0  # so long may a script be busy at the end of an epoch, while the others wait
BROKE_OFF = (
    "The loop over epoch {} was left before its end, and the one over epochs goes on: every sample counts once. "
    "Leave both loops, or call agent.skip(reason) for batches that shall not count."
)


class Begins(NamedTuple):
    """Between two batches: another epoch. HOLD: the last one is at its end, and perhaps more comes."""

    epoch: int


class Epoch:
    """The batches of one epoch, once. `number` counts from 0."""

    def __init__(self, number: int, batches: Callable[[], Iterator[Any]]) -> None:
        self.number, self._batches = number, batches

    def __iter__(self) -> Iterator[Any]:
        return self._batches()

    def __int__(self) -> int:
        return self.number

    __index__ = __int__

    def __repr__(self) -> str:
        return f"Epoch({self.number})"


class Epochs:
    """A part of the Agent. `once.ended` of the strategy is with the model: how many epochs were ended by the script."""

    strategy: Strategy
    spec: JobSpec
    _hand: Hand
    _page: Any
    __iter__: Callable[[], Iterator[Any]]
    _on_epoch: tuple[Callable[[int], Any], ...] = ()
    _nested = False
    _held_to = -1  # up to here it was done with all members together
    _told = -1  # the epoch that the script was last told of, where it nests its loops

    def on_step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A decorator: every worker calls it when a step has changed the model, with the step's number if it takes one.

        What it changes (an average of the weights, say) belongs into `state`, which is saved with that very step.
        """
        self.strategy.once.on_step.append(callback_of(function))
        return function

    @contextmanager
    def pause(self, seconds: float, what: str = "") -> Iterator[None]:
        """Announce that the script itself is busy for up to so long, between two batches: with an evaluation, say.

        Others wait meanwhile, and this worker is not given up for it. Without announcement it is, once it has held them
        up for longer than the ledger's `--stuck-ms`. What all workers do alike need not be announced.
        """
        page, before = self._page, self._page.phase
        page.enter(At.USER, what, seconds)
        try:
            yield
        finally:
            page.enter(before)

    def on_epoch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A decorator: every worker calls it at the end of every epoch, with the epoch's number if it takes one.

        The others wait meanwhile, and nobody is given up for it.
        """
        self._on_epoch = (*self._on_epoch, callback_of(function))
        return function

    def epochs(self) -> Iterator[Epoch]:
        """`for epoch in agent.epochs(): for batch in epoch:` is the loop over the Agent, nested. What follows the inner
        loop is done by every worker, while the others wait. A worker that comes later begins with the epoch at hand.
        """
        self._nested = True
        batches = iter(self)
        return self._each_epoch(batches)

    def _each_epoch(self, batches: Iterator[Any]) -> Generator[Epoch]:
        begins = next(batches, None)
        while begins is not None and begins.epoch != NONE:
            following: list[Begins | None] = []

            def inner(following: list[Begins | None] = following) -> Iterator[Any]:
                for item in batches:
                    if isinstance(item, Begins):
                        following.append(item)
                        return
                    yield item
                following.append(None)

            yield Epoch(begins.epoch, partial(self._begin, inner))
            if not following:
                raise UsageError(BROKE_OFF.format(begins.epoch))
            self._page.enter(At.USER)
            self._hand.goes_on()
            begins = following[0]
            if begins is not None and begins.epoch == HOLD:
                begins = next(batches, None)
        next(batches, None)  # to its end

    def _begin(self, inner: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        return self._hand.counting.goes_through(inner())  # type: ignore[no-any-return]

    def _turn(self, to: int, *, over: bool = False, hold: bool = False) -> Generator[Begins]:
        """The next batch is of epoch `to`, or all are over: what the script does at the end of those before. Epochs
        come again where the model went back to an older one. hold: all steps are made, and the members are together
        still; the end of the job parts them.
        """
        once = self.strategy.once
        if not (self._nested or self._on_epoch):
            return
        if over and self._held_to == to:
            once.ended = to  # the file of the last step, which may have been loaded since, is of before that
        while once.ended < to:
            number = once.ended
            if self._nested and self._told != number:  # this worker has come for its end only
                self._told = number
                yield Begins(number)
            self._page.enter(At.USER, f"the end of epoch {number}", BETWEEN_S)
            for function in self._on_epoch:
                function(number)
            self._hand.goes_on()
            if self._nested:  # what the script does behind its inner loop comes now, and ends the epoch
                self._told = number + 1
                after = (HOLD if hold else NONE) if number + 1 == to and (over or hold) else number + 1
                yield Begins(after)
            once.ended = number + 1
        if hold:
            self._held_to = to
        if self._nested and self._told != to and not (over or hold):
            self._told = to
            yield Begins(to)

    @property
    def has_made_all(self) -> bool:
        """Whether no step of any epoch is left, and the members that have made them are still together."""
        strategy, steps = self.strategy, self.spec.steps
        over = strategy.step_number >= steps if steps else strategy.cursor.epoch >= self.spec.epochs
        return bool(self.spec.batches) and over and strategy.stands

    @property
    def _epochs_begun(self) -> int:
        """How many have, when no step is left."""
        return self.strategy.once.epoch + 1 if self.spec.steps else self.spec.epochs
