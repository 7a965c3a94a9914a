"""What happens once a step besides the optimizer's own, on every member alike, and is saved with the model.

Owns the script's scheduler, scaler, clipping and further state, and the order in which a step calls them. Must not know
members, nor how gradients come together.

A step that is skipped
    scheduler   is stepped: it counts steps, as in a loop that calls `scaler.step(optimizer)`, which may skip, and
                `scheduler.step()` behind it; so a schedule of `total_steps` ends with the last step
    scaler      is updated where gradients were not finite, so that its scale falls; not where the script skipped
    on_step     is not called: the model has not changed
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from antdt_schemas.errors import UsageError
from torch.optim.lr_scheduler import ReduceLROnPlateau

BUFFERS = ("mean", "max", "sum", "local", "first")
Callback = Callable[[int], Any]


class Once:
    """What a script has stated. `epoch`: the latest one that the model has samples of; `ended`: how many the script
    has ended, where it does something then. `grad_norm`: the norm of all
    gradients before they were last clipped; None without clipping.
    """

    def __init__(
        self,
        scheduler: Any = None,
        every: Literal["step", "epoch"] = "step",
        clip_grad_norm: float | None = None,
        scaler: Any = None,
        state: Mapping[str, Any] | None = None,
        buffers: Mapping[str, str] | None = None,
    ) -> None:
        several = scheduler if isinstance(scheduler, list | tuple) else () if scheduler is None else (scheduler,)
        self.schedulers, self.every, self.scaler = tuple(several), every, scaler
        self.clip_grad_norm, self.state, self.buffers = clip_grad_norm, dict(state or {}), dict(buffers or {})
        self.epoch, self.ended, self.grad_norm, self._unscaled = 0, 0, None, False
        self.on_step: list[Callback] = []
        self._check()

    def _check(self) -> None:
        for one in self.schedulers:
            _require(one, "scheduler", "step", "state_dict", "load_state_dict")
        for name, one in self.state.items():
            _require(one, f"state[{name!r}]", "state_dict", "load_state_dict")
        if self.scaler is not None:
            _require(self.scaler, "scaler", "scale", "unscale_", "update", "state_dict", "load_state_dict")
        if self.every not in ("step", "epoch"):
            raise UsageError(f'scheduler_every={self.every!r}: a scheduler is stepped every "step" or every "epoch".')
        clip = self.clip_grad_norm
        if clip is not None and not (isinstance(clip, int | float) and clip > 0):
            raise UsageError(f"clip_grad_norm={clip!r}: it is the largest norm that gradients keep, above zero.")
        for name, rule in self.buffers.items():
            if rule not in BUFFERS:
                raise UsageError(f"buffers[{name!r}]={rule!r}: a buffer is one of {', '.join(BUFFERS)}.")

    def check_schedulers(self, known: Sequence[Any]) -> None:
        """Raises UsageError for a scheduler of another optimizer than these."""
        for one in self.schedulers:
            of = getattr(one, "optimizer", None)
            if of is not None and not any(of is single for single in known):
                raise UsageError(f"{type(one).__name__} schedules an optimizer that the Agent was not given.")

    # -- in a step

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """For backward."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    @property
    def scales(self) -> bool:
        """Whether gradients that are not finite are an ordinary event, as the scale is still too large."""
        return self.scaler is not None and bool(self.scaler.is_enabled())

    def unscale(self, optimizers: Sequence[Any]) -> None:
        """The gradients of the whole step are there: in true units from now on."""
        if self.scales:
            for one in optimizers:
                if any(param.grad is not None for group in one.param_groups for param in group["params"]):
                    self.scaler.unscale_(one)
                    self._unscaled = True

    def given_up(self) -> None:
        """The step was, perhaps behind `unscale`: the scaler knows of nothing that was unscaled."""
        if self._unscaled:
            self.scaler._per_optimizer_states.clear()
            self._unscaled = False

    def clip(self, params: Iterable[torch.nn.Parameter]) -> None:
        """Just before an optimizer steps."""
        if self.clip_grad_norm is not None:
            self.grad_norm = torch.nn.utils.clip_grad_norm_(params, self.clip_grad_norm)

    def begins(self, epoch: int) -> None:
        """Before an optimizer steps with samples of this epoch: what was due at the end of those before."""
        while self.epoch < epoch:
            self.epoch += 1
            if self.every == "epoch":
                self._schedule()

    def passed(self, unscaled: bool) -> None:
        """The optimizer has stepped, or the step was skipped. unscaled: gradients were there to be looked at."""
        if unscaled and self.scales and self._unscaled:
            self.scaler.update()
        self._unscaled = False
        if self.every == "step":
            self._schedule()

    def _schedule(self) -> None:
        for one in self.schedulers:
            if not isinstance(one, ReduceLROnPlateau):  # it needs a value that the script alone knows
                one.step()

    def call_on_step(self, step: int) -> None:
        """The model has changed to that of this step."""
        for one in self.on_step:
            one(step)

    # -- with the model

    def state_dict(self) -> dict[str, Any]:
        """All of it; read at once, or copied: it may be what the script goes on with."""
        scaler = {} if self.scaler is None else self.scaler.state_dict()
        schedulers = [one.state_dict() for one in self.schedulers]
        state = {name: one.state_dict() for name, one in self.state.items()}
        return {"epoch": self.epoch, "ended": self.ended, "schedulers": schedulers, "scaler": scaler, "state": state}

    def misfit(self, saved: Mapping[str, Any]) -> str:
        """Why that cannot be loaded, in a sentence; empty where it can."""
        if not saved:
            return "" if not (self.schedulers or self.state) else "It holds no scheduler and no state beside the model."
        if len(saved["schedulers"]) != len(self.schedulers):
            return f"It holds {len(saved['schedulers'])} schedulers, the script has {len(self.schedulers)}."
        if set(saved["state"]) != set(self.state):
            theirs, ours = (", ".join(sorted(names)) or "nothing" for names in (saved["state"], self.state))
            return f"It holds {theirs} as state beside the model, the script has {ours}."
        return ""

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """The inverse; a file of before this was saved changes nothing."""
        if not saved:
            return
        self.epoch, self.ended = saved["epoch"], saved["ended"]
        for one, theirs in zip(self.schedulers, saved["schedulers"], strict=True):
            one.load_state_dict(theirs)
        if self.scaler is not None and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        for name, theirs in saved["state"].items():
            self.state[name].load_state_dict(theirs)


def callback_of(function: Callable[..., Any]) -> Callback:
    """One that may leave out its number."""
    try:
        takes = len(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # written in C
        takes = 0
    return function if takes else lambda _number: function()


def weight_of(weight: Any) -> float:
    """Of a loss, as a number. Raises UsageError for none that can be divided by."""
    number = float(weight)
    if not math.isfinite(number) or number < 0:
        raise UsageError(f"weight={number}: pass what the loss was divided by, zero for a batch that counts nothing.")
    return number


def _require(thing: Any, name: str, *methods: str) -> None:
    lacking = [method for method in methods if not callable(getattr(thing, method, None))]
    if lacking:
        raise UsageError(f"{name} is a {type(thing).__name__}, which has no {lacking[0]}: it is saved with the model.")
