"""What a replica does in the middle of a step: hear what other members' scripts say, and step some of its optimizers.

Rules
    An optimizer may step before the end of a step (a discriminator, then a generator that is judged by the new one):
    with the gradients of all members, on all of them, also on who has no batch. Until the step is made, `abort` leads
    back: parameters and optimizers are kept as they were, which costs their memory once more.

Must not know how a step ends.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import torch
from antdt_schemas.errors import UsageError

from antdt.strategies.allreduce import finite
from antdt.strategies.allreduce.judging import Judging
from antdt.strategies.allreduce.state import Held, Saved
from antdt.strategies.allreduce.talk import UPDATE, Said, Talk
from antdt.strategies.base import GenerationClosed
from antdt.strategies.habits.denominators import Denominators
from antdt.strategies.habits.provenance.carried import tensors_in
from antdt.strategies.habits.provenance.watcher import Watcher
from antdt.strategies.habits.untouched import Untouched, parts_of, trained_of
from antdt.strategies.habits.weights import Weights
from antdt.strategies.once import Once
from antdt.strategies.together import optimizers_of

log = logging.getLogger("antdt")

WHOLE = "needs a step's whole batch at once, and AllReduce(deterministic='bitwise') makes it of units: leave one out."


class Undo:
    """The state before the first optimizer stepped in the middle of a step. Buffers are kept elsewhere."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self._params = [(param, param.detach().clone()) for param in held.model.parameters() if param.requires_grad]
        self._optimizer = copy.deepcopy(held.optimizer.state_dict())
        self._once = copy.deepcopy({**held.once.state_dict(), "state": {}})

    def restore(self) -> None:
        """As it was."""
        with torch.no_grad():
            for param, kept in self._params:
                param.copy_(kept)
        self._held.optimizer.load_state_dict(self._optimizer)
        self._held.once.load_state_dict(self._once)


class Updating(Judging):
    """A part of AllReduceReplica. `_updated`: of each update of the open step, whether it was applied."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._weights = Weights(rounded=bool(self.options.deterministic))
        self._denominators = Denominators(Watcher(self.model.buffers, self._averaged, self._known))
        self._talk = Talk(self._carry_out)
        self._undo: Undo | None = None
        self._updated: list[bool] = []
        self._seed: tuple[Any, torch.Tensor] | None = None  # the gradient of a loss by itself, and for which kind

    def _averaged(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._buffers.averaged()

    def _known(self) -> Iterator[torch.Tensor]:
        """Tensors that are handed on, saved and restored."""
        for held in (self.model, self.once.state, self.optimizer):
            yield from tensors_in(held)

    @property
    def watcher(self) -> Watcher:
        """See base.Watches."""
        return self._denominators.watcher

    def watch(self, batch: Any, samples: int) -> None:
        """See base.Watches. A batch that is the whole step of all has nothing wrong in it; and a step that must be the
        same bit by bit is computed in the same way by all.
        """
        row = self._row
        self._untouched.begin()
        self._guard.body = threading.get_ident()
        alone = row is None or (samples >= row.samples and self._attached().world == 1)
        if not (alone or self.options.deterministic):
            self.watcher.begin(batch, samples)

    def unwatch(self, *, whole: bool) -> None:
        """See base.Watches."""
        self.watcher.end()
        self._guard.body = None
        if whole:
            self._untouched.end()

    def accompany(self, once: Once) -> None:
        """See Holding."""
        super().accompany(once)
        self._untouched = Untouched(lambda: parts_of(self.model, once), lambda: trained_of(self.model))

    def restore(self, data: bytes | BinaryIO | Saved, *more: Any, **named: Any) -> None:
        """See Holding: who has another model now has not made its last step."""
        before = self.step_number, self.lineage
        super().restore(data, *more, **named)
        if before != (self.step_number, self.lineage):
            self._talk.adopted()

    def exchange(
        self, value: torch.Tensor | None, *, inside: bool, between: bool = False, call: str = ""
    ) -> list[torch.Tensor | None]:
        """What the script of each member gives here, by rank; None of who does not come by. inside: in a step's body.
        between: there, behind the loss of a micro-batch. call: what it is, and where in the script.

        Raises UsageError where others make no such call, and GenerationClosed: between two steps it is then called
        again in the next generation; in a step, that is given up.
        """
        generation = self._attached()
        generation.check()
        if inside and self.options.deterministic:
            raise UsageError(f"A call in the loop's body that waits for other workers {WHOLE}")
        self._begin_to_talk(inside=inside)
        return self._talk.exchange(generation, 2 * self.step_number + inside, value, call, between=between)

    def _begin_to_talk(self, *, inside: bool) -> None:
        """Raises GenerationClosed for the first time: others do not ask yet, and learn it when they meet.

        Between two steps the others make the one before first: who takes it over from another member does not come by
        what scripts do behind it. Behind the last one nobody meets anew, and all who are there do the same.
        """
        if self.talks or self._attached().world == 1 or self._attached().outlived:
            self.talks = True
            return
        try:
            if not inside:
                self._wants_to_talk()
        finally:
            self.talks = True
        raise GenerationClosed("A script has something to say to the others in a step, which is given up for that.")

    def _wants_to_talk(self) -> None:
        raise NotImplementedError

    def _go_backward(self, loss: torch.Tensor, scale: float, retain_graph: bool) -> None:
        """scale: what this loss counts. The gradient begins with it: to multiply the loss would cost another node.

        What hooks of the script do meanwhile is its own: optimizers may not step there.
        """
        if self.once.scaler is not None:
            loss = self._guard.within(self.once.scaled, loss)
        if self._seed is None or self._seed[0] != (scale, loss.dtype, loss.device, loss.shape):
            self._seed = (scale, loss.dtype, loss.device, loss.shape), torch.full_like(loss, scale)
        loss.backward(self._seed[1], retain_graph=retain_graph)

    def update(self, optimizers: Sequence[Any]) -> bool:
        """These optimizers step now, with the gradients of all members since the last update. No gradient is left.
        False where they are not finite, and nothing was changed.

        Raises GenerationClosed, NotFinite, and UsageError where it cannot be made right.
        """
        generation, row, weights = self._attached(), self._row, self._weights
        assert row is not None, "take first"
        if self.options.deterministic:
            raise UsageError(f"agent.apply(optimizer) {WHOLE}")
        if self._guard.reduced:
            raise UsageError(
                "agent.reduce() is for all optimizers at once: leave it out where agent.apply(optimizer) steps one."
            )
        generation.check()
        if self._undo is None:  # what else the script does in a body that is given up from here on is undone as well
            self._undo = Undo(self._held)
        self._begin_to_talk(inside=True)
        self._look_again()
        known = optimizers_of(self.optimizer)
        mask = sum(1 << at for at, one in enumerate(known) if any(one is chosen for chosen in optimizers))
        if mask.bit_count() != len(optimizers):
            raise UsageError("agent.apply(optimizer) takes an optimizer that the Agent was given.")
        place = self._place
        epoch = max((taken.epoch for taken in row.ranges), default=-1) if place is None else place.epoch
        weight = weights.updated()
        said = Said(UPDATE, 2 * self.step_number + 1, 0, 0, mask, weight, weights.summed, epoch)
        self._talk.update(generation, said)
        return self._updated[-1]

    def _carry_out(self, called: list[Said]) -> None:
        """By all members alike, also by who has not called."""
        generation, gradients = self._attached(), self._gradients
        assert gradients is not None
        first = called[0]
        if any((one.optimizers, one.summed) != (first.optimizers, first.summed) for one in called):
            raise UsageError("In one step workers called agent.apply for different optimizers, or with other losses.")
        chosen = [one for at, one in enumerate(optimizers_of(self.optimizer)) if first.optimizers >> at & 1]
        weight, reference = sum(one.weight for one in called), self._row.reference if self._row is not None else 1
        gradients.launch_rest()
        gradients.finish(1.0 if first.summed or not weight else reference / weight)
        generation.settled()
        if self._undo is None:
            self._undo = Undo(self._held)
        self._guard.within(self._step_some, chosen, max(one.epoch for one in called), bool(weight) or first.summed)
        gradients.reset()

    def _step_some(self, chosen: list[Any], epoch: int, weighs: bool) -> None:
        gradients, once = self._gradients, self.once
        assert gradients is not None
        once.begins(epoch)
        if weighs:
            once.unscale(chosen)
        good = weighs and gradients.is_finite()
        self._updated.append(good)
        if not good:
            self._say_not_updated(chosen, weighs)
            return
        self.void = True
        once.clip([param for one in chosen for group in one.param_groups for param in group["params"]])
        self.rates.step(chosen)
        self.void = False
        self._untouched.renew()

    def _say_not_updated(self, chosen: list[Any], weighs: bool) -> None:
        if weighs and self.options.on_nonfinite == "raise" and not self.once.scales:
            raise finite.not_to_be_skipped(self.step_number + 1, (), None)
        names = ", ".join(type(one).__name__ for one in chosen)
        why = "its gradient is not finite" if weighs else "its losses weigh nothing"
        log.warning("step %d: %s was not stepped, %s", self.step_number + 1, names, why)

    def _give_up_updates(self) -> None:
        """The state is that of the last applied step again."""
        if self._undo is not None:
            self._undo.restore()
        self.once.given_up()
        self._talk.given_up()
