"""What would be silently wrong is refused: models that reduce by themselves, and calls around agent.step that change a
replica, or that would seem to do something and do not.

While training runs, torch tells this module when any optimizer steps, gradients are clipped, or a loss is scaled. Must
not know generations, nor how a step is made.
"""

from __future__ import annotations

import inspect
import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial, wraps
from typing import Any

import torch
from antdt_schemas.errors import UsageError
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import clip_grad
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data.dataloader import _BaseDataLoaderIter

from antdt.strategies.habits import hooks
from antdt.strategies.once import Once
from antdt.strategies.together import Group, optimizers_of

log = logging.getLogger("antdt")

GRAPH_DEPTH_MAX = 8
CLIPPED = (
    "Gradients are clipped where there are none of the whole step: say antdt.Agent(..., clip_grad_norm=1.0), or clip "
    "between agent.reduce() and agent.apply()."
)
SCALED = (
    "{} was called by the script, on the scaler that the Agent has: agent.step(loss) scales the loss, unscales the "
    "gradients of all workers, and updates the scaler. Pass the loss itself, and leave the call out."
)
UNKNOWN_SCALER = (
    "GradScaler.{} would look at this worker's gradients alone: say antdt.Agent(..., scaler=scaler), pass the loss "
    "itself to agent.step(loss), and leave the calls of the scaler out."
)
CARRIED = (
    "{} was given a state that no gradient goes through, as it is carried from batch to batch (truncated "
    "backpropagation): here the next batch of a worker has other samples, and the state would be that of others. Make "
    "whole sequences the samples, and begin each with no state. (Where it belongs to these samples, say "
    "state.requires_grad_().)"
)
SCHEDULED = (
    "{}.step() was called by the script: say antdt.Agent(..., scheduler=scheduler), or scheduler_every='epoch', and "
    "leave the call out: the Agent steps it on every worker, saves it, and restores it with the model."
)

FETCHED = (
    "A DataLoader gives a batch in the loop's body: each worker goes through its samples by itself, nobody accounts "
    "for them, and a worker that comes later begins anew. Make one data set whose samples have a part of each, "
    "(labelled[i], unlabelled[j]), and give it to the Agent. (An evaluation is made under torch.no_grad(), or behind "
    "model.eval().)"
)

# Reentrant: an Agent whose loop an error has left is ended by the garbage collector, whatever its thread does then.
_lock = threading.RLock()
# Read at every step, as a copy and without the lock, for which a WeakSet has no way; written to under the lock.
_open: list[weakref.ref[Guard]] = []
_undo: list[Callable[[], None]] = []
_scalers: set[weakref.ref[Any]] = set()


class Guard:
    """Watches one model and its optimizers between `open` and `close`. `applying`: they are called by us. `reduced`:
    the script has the gradients of the whole step. `scheduling`: a scheduler of ours steps, perhaps by others in it.
    `once`: what else is ours to call. `body`: the thread that has a batch without all its losses, or None.
    """

    body: int | None = None

    def __init__(self, model: torch.nn.Module, optimizers: Sequence[Any]) -> None:
        self.model, self.optimizers = model, optimizers
        self.applying, self.reduced, self.scheduling, self.once = False, False, False, Once()
        self._params = list(model.parameters())
        self.ids = {id(param) for param in self._params}
        self._warned, self._hooks = False, list[Any]()

    @property
    def is_training(self) -> bool:
        """Whether the script has not said that it evaluates."""
        models = self.model.children() if isinstance(self.model, Group) else [self.model]
        return any(one.training for one in models)

    def within(self, act: Callable[..., Any], *args: Any) -> Any:
        """What this does is ours."""
        before, self.applying = self.applying, True
        try:
            return act(*args)
        finally:
            self.applying = before

    def schedule(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A scheduler that the Agent was given steps."""
        before, self.scheduling = self.scheduling, True
        try:
            return step(*args, **kwargs)
        finally:
            self.scheduling = before

    def open(self) -> None:
        """Training runs."""
        if not self._hooks:
            recurrent = nn.RNNBase, nn.RNNCellBase
            cells = [module for module in self.model.modules() if isinstance(module, recurrent)]
            self._hooks = [one.register_forward_pre_hook(_refuse_carried, with_kwargs=True) for one in cells]
        hooks.refuse(self.model)  # those of before were looked at when the Agent was made
        with _lock:
            if weakref.ref(self) not in _open:
                _open.append(weakref.ref(self))
            if not _undo:
                _watch()

    def close(self) -> None:
        """It does not any more: the model is the script's own."""
        while self._hooks:
            self._hooks.pop().remove()
        with _lock:
            _open[:] = [weakref.ref(guard) for guard in _guards() if guard is not self]
            while _undo and not _open:
                _undo.pop()()

    def check_parameters(self) -> None:
        """Raises UsageError where the model or its optimizer got other parameters than it was given with."""
        now = list(self.model.parameters())
        if len(now) != len(self._params) or any(a is not b for a, b in zip(now, self._params, strict=True)):
            raise UsageError(
                "Parameters were added to the model, removed or replaced since the Agent was made, and would not be "
                "reduced: make the model whole first, then the optimizer, then the Agent."
            )
        for one in self.optimizers:
            _refuse_strangers(self.ids, one)

    def stepped_elsewhere(self, optimizer: Any, params: set[int]) -> None:
        """Some other optimizer is about to step."""
        if params & self.ids:
            if not self.applying:  # in a hook of ours it has the gradients of all
                raise UsageError(
                    f"{type(optimizer).__name__}.step() would change parameters of the Agent's model by gradients of "
                    "this worker alone: give the Agent all optimizers, antdt.Agent(model, [a, b], ...), which "
                    "agent.step(loss) steps."
                )
            return
        if not self._warned:
            self._warned = True
            log.warning(
                "%s steps parameters that the Agent does not know: they are trained by this worker's samples alone, "
                "neither compared nor saved. One module and one optimizer that hold everything are trained exactly.",
                type(optimizer).__name__,
            )


def _guards() -> list[Guard]:
    return [guard for one in _open[:] if (guard := one()) is not None]


def _watch() -> None:
    """Have torch tell. What cannot be watched in this version of torch is not."""
    _undo.append(register_optimizer_step_pre_hook(_before_step).remove)
    _replace(clip_grad, "_clip_grads_with_norm_", _clipping)
    for module in (torch.nn.utils, clip_grad):
        _replace(module, "clip_grad_value_", _clipping)
    _replace(torch.amp.GradScaler, "scale", _scaling)
    _replace(_BaseDataLoaderIter, "__next__", _fetching)
    for name in ("unscale_", "update"):
        _replace(torch.amp.GradScaler, name, partial(_of_scaler, name))
    for kind in _schedulers(LRScheduler):
        _replace(kind, "step", _scheduling)


def _schedulers(kind: Any) -> Iterator[Any]:
    """All that have a step of their own."""
    if "step" in vars(kind):
        yield kind
    for heir in kind.__subclasses__():
        yield from _schedulers(heir)


def _replace(owner: Any, name: str, around: Callable[[Any], Any]) -> None:
    original = getattr(owner, name, None)
    if original is not None:
        setattr(owner, name, around(original))
        _undo.append(lambda: setattr(owner, name, original))


def _before_step(optimizer: Any, _args: Any, _kwargs: Any) -> None:
    guards = _guards()
    for guard in guards:
        if any(one is optimizer for one in guard.optimizers):
            if not guard.applying:
                raise UsageError(
                    "optimizer.step() was called by the script, or by GradScaler.step: agent.step(loss) steps the "
                    "optimizer itself, after the last micro-batch. Leave the call out."
                )
            return
    params = {id(param) for group in optimizer.param_groups for param in group["params"]}
    for guard in guards:
        guard.stepped_elsewhere(optimizer, params)


def _clipping(original: Any) -> Any:
    @wraps(original)
    def clip(parameters: Any, *args: Any, **kwargs: Any) -> Any:
        parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        for guard in _guards():
            if not (guard.applying or guard.reduced) and any(id(param) in guard.ids for param in parameters):
                raise UsageError(CLIPPED)
        return original(parameters, *args, **kwargs)

    return clip


def _fetching(original: Any) -> Any:
    @wraps(original)
    def fetch(iterator: Any) -> Any:
        thread = threading.get_ident()
        if torch.is_grad_enabled() and any(guard.body == thread and guard.is_training for guard in _guards()):
            raise UsageError(FETCHED)
        return original(iterator)

    return fetch


def _scaling(original: Any) -> Any:
    @wraps(original)
    def scale(scaler: Any, outputs: Any) -> Any:
        owner = _owner_of(scaler)
        if owner is None:
            _scalers.add(weakref.ref(scaler, _scalers.discard))
        elif not owner.applying:
            raise UsageError(SCALED.format("scaler.scale"))
        return original(scaler, outputs)

    return scale


def _of_scaler(name: str, original: Any) -> Any:
    @wraps(original)
    def call(scaler: Any, *args: Any, **kwargs: Any) -> Any:
        owner = _owner_of(scaler)
        if owner is not None and not owner.applying:
            raise UsageError(SCALED.format(f"scaler.{name}"))
        if owner is None and name == "unscale_" and scaler.is_enabled():
            params = {id(param) for group in args[0].param_groups for param in group["params"]}
            if any(params & guard.ids and not guard.applying for guard in _guards()):
                raise UsageError(UNKNOWN_SCALER.format(name))
        return original(scaler, *args, **kwargs)

    return call


def _owner_of(scaler: Any) -> Guard | None:
    return next((guard for guard in _guards() if guard.once.scaler is scaler), None)


def _scheduling(original: Any) -> Any:
    """One that is just being made sets its first rate; one that needs a value of the script's is stepped by it."""

    @wraps(original)
    def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        for guard in _guards():
            needs_value = isinstance(scheduler, ReduceLROnPlateau)
            if any(one is scheduler for one in guard.once.schedulers) and (guard.applying or needs_value):
                return guard.schedule(original, scheduler, *args, **kwargs)
            ours = any(one is getattr(scheduler, "optimizer", None) for one in guard.optimizers)
            # One that was not given is not restored either, in whichever hook it is stepped.
            if ours and not guard.scheduling and getattr(scheduler, "last_epoch", -1) != -1:
                raise UsageError(SCHEDULED.format(type(scheduler).__name__))
        return original(scheduler, *args, **kwargs)

    return step


def _refuse_carried(module: Any, args: Any, kwargs: Any) -> None:
    state = kwargs.get("hx", args[1] if len(args) > 1 else None)
    if state is None or not (module.training and torch.is_grad_enabled()):
        return
    parts = [state] if isinstance(state, torch.Tensor) else state
    if not any(one.requires_grad for one in parts) and any(bool(one.any()) for one in parts):
        raise UsageError(CARRIED.format(type(module).__name__))


# -- a loss


def check_loss(loss: Any) -> None:
    """Raises UsageError for what is no number over the micro-batch that can be learned from.

    A scaled loss is found where the scale is among the last few operations; a script may hide it.
    """
    if not isinstance(loss, torch.Tensor):
        raise UsageError(f"agent.step(loss) takes the loss as a tensor, not {type(loss).__name__}: leave out .item().")
    if loss.numel() != 1 or not loss.is_floating_point():
        raise UsageError(
            f"agent.step(loss) takes one real number, not {tuple(loss.shape)} of {loss.dtype}: pass the mean over the "
            "micro-batch, loss.mean()."
        )
    if not loss.requires_grad:
        raise UsageError(
            "This loss depends on no trainable parameter (computed under torch.no_grad(), or detached?): compute it "
            "with gradients, and pass loss * 0.0 to learn nothing from a batch."
        )
    if _scalers and loss.grad_fn is not None and _is_scaled(loss.grad_fn):
        raise UsageError(
            "This loss was scaled by a GradScaler, and nothing unscales its gradients: pass the loss itself, and say "
            "antdt.Agent(..., scaler=scaler), which does the rest. torch.autocast with bfloat16 needs none."
        )


def _is_scaled(node: Any) -> bool:
    alive = [scaler for one in list(_scalers) if (scaler := one()) is not None]
    scales = {scaler.get_scale() for scaler in alive if scaler.is_enabled()} - {1.0}
    for _ in range(GRAPH_DEPTH_MAX):
        if node.name().startswith("Mul"):
            for name in ("_saved_self", "_saved_other"):
                with suppress(RuntimeError):  # the graph was freed: backward says so
                    factor = getattr(node, name, None)
                    if isinstance(factor, torch.Tensor) and factor.numel() == 1 and float(factor) in scales:
                        return True
        before = [found for found, _ in node.next_functions if found is not None]
        if len(before) != 1:
            return False
        node = before[0]
    return False


# -- a model


def refuse(model: torch.nn.Module, optimizer: Any) -> None:
    """Raises UsageError for what cannot be made exact."""
    _refuse_modules(model)
    params = list(model.parameters())
    if any(is_lazy(param) for param in params):
        raise UsageError("The model has lazy parameters without a shape: call it once on a batch, then make the Agent.")
    if any(kind.__name__ == "DTensor" for param in params for kind in type(param).__mro__):
        raise UsageError(
            "The model has parameters that are spread over processes (DTensor, FSDP): the Agent reduces a whole model "
            "in each worker. Give it the plain module."
        )
    hooks.refuse(model)
    if not any(param.requires_grad for param in params):
        raise UsageError("The model has no trainable parameters: at least one must have requires_grad=True.")
    if not all(param.is_floating_point() for param in params if param.requires_grad):
        raise UsageError("Trainable parameters must be real floating-point numbers: hold complex ones as pairs.")
    for one in optimizers_of(optimizer):
        closure = inspect.signature(one.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise UsageError(
                f"{type(one).__name__} evaluates the loss several times a step: choose an optimizer without closure."
            )
        _refuse_strangers({id(param) for param in params}, one)


def _refuse_modules(model: torch.nn.Module) -> None:
    for module in model.modules():
        kind = type(module)
        if isinstance(module, torch.nn.parallel.DistributedDataParallel) or _is_sharded(kind.__mro__):
            raise UsageError(
                f"The model is wrapped in {kind.__name__}, which reduces gradients by itself: give the Agent the plain "
                "module, it does that. Leave init_process_group out unless the script uses it for something else."
            )
        if getattr(module, "max_norm", None) is not None and isinstance(module, nn.Embedding | nn.EmbeddingBag):
            raise UsageError(
                f"{kind.__name__}(max_norm={module.max_norm:g}) changes the rows that a worker looks up, and no other "
                "worker does: leave max_norm out. (With AllReduce a function under @agent.on_step may bound all rows.)"
            )
        if isinstance(module, torch.nn.SyncBatchNorm):
            raise UsageError(
                "SyncBatchNorm needs every worker in every forward, but a worker may have no sample in a step: use "
                "BatchNorm (its running statistics are averaged over the workers after each step), or GroupNorm."
            )


def _is_sharded(kinds: Iterable[type]) -> bool:
    return any(kind.__module__.startswith("torch.distributed.fsdp") for kind in kinds)


def _refuse_strangers(ids: set[int], optimizer: Any) -> None:
    if any(id(param) not in ids for group in optimizer.param_groups for param in group["params"]):
        raise UsageError(
            "The optimizer holds parameters that the model does not: pass one module that holds them all, or all "
            "modules, antdt.Agent([encoder, decoder], optimizer, ...)."
        )
