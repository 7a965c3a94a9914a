"""An optimizer's learning rates times a factor that is not the script's.

Invariant: outside of the optimizer's own step the rates are those of the script and its scheduler. So a scheduler that
multiplies the present rate never sees the factor, and one that sets it from the step never loses it, wherever either is
stepped: in the loop, or in a hook of the optimizer. Checkpoints hold the script's rates, and the factor beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from antdt_schemas.errors import UsageError

from antdt.strategies.together import optimizers_of


class LearningRates:
    """Of all parameter groups of all optimizers. `factor`: of the plan, which is with the model; `batch_factor`: of the
    global batch at hand. Both are positive; 1.0 leaves everything to the script.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self.factor, self.batch_factor = optimizer, 1.0, 1.0
        self._each = [(one, _Rates(one)) for one in optimizers_of(optimizer)]

    @property
    def total(self) -> float:
        """What all rates are multiplied by."""
        return self.factor * self.batch_factor

    def step(self, only: Sequence[Any] | None = None) -> None:
        """One step of each optimizer, or of these only.

        Raises UsageError for an optimizer whose rates cannot be multiplied from outside.
        """
        for optimizer, rates in self._each:
            if only is None or any(one is optimizer for one in only):
                rates.step(self.total)


class _Rates:
    """Of one optimizer."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self.factor = optimizer, 1.0
        self._kept: list[tuple[dict[str, Any], Any, Any]] = []  # group, the script's rate, the one that is stepped by

    def step(self, factor: float) -> None:
        optimizer, self.factor = self.optimizer, factor
        if factor == 1.0:
            optimizer.step()
        elif hasattr(optimizer, "_optimizer_step_post_hooks"):
            self._step_inside_of_hooks()
        else:  # none of torch's, or one that is wrapped around another and has not called its parent's __init__
            self._scale()
            try:
                optimizer.step()
            finally:
                self._give_back()

    def _step_inside_of_hooks(self) -> None:
        """Behind all hooks of the script that run before the optimizer, and before all that run behind it."""
        optimizer = self.optimizer
        last = optimizer.register_step_pre_hook(self._scale)
        first = optimizer.register_step_post_hook(self._give_back)
        # torch can only append.
        optimizer._optimizer_step_post_hooks.move_to_end(first.id, last=False)
        try:
            optimizer.step()
        finally:
            last.remove()
            first.remove()
            self._give_back()

    def _scale(self, *_: Any) -> None:
        if self._kept:
            return  # a step that calls its parent's step: torch calls hooks for both
        for index, group in enumerate(self.optimizer.param_groups):
            if "lr" not in group:
                raise UsageError(
                    f"A plan multiplies the learning rates by {self.factor}, but parameter group {index} of "
                    f"{type(self.optimizer).__name__} has none: take a policy without ADJUST_LR."
                )
            self._kept.append((group, group["lr"], group["lr"] * self.factor))
        for group, _base, scaled in self._kept:
            group["lr"] = scaled

    def _give_back(self, *_: Any) -> None:
        kept, self._kept = self._kept, []
        written = [index for index, (group, _, scaled) in enumerate(kept) if group["lr"] is not scaled]
        for group, base, _scaled in kept:
            group["lr"] = base
        if written:
            raise UsageError(
                f"{type(self.optimizer).__name__} sets the learning rate of parameter group {written[0]} in its own "
                "step, where a plan has multiplied it: take a policy without ADJUST_LR."
            )
