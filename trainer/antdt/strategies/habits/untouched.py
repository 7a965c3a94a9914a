"""What a script may change between the steps of its model only: frozen parameters, and the state that goes with it.

A body may run for a step that is given up, once for each micro-batch, or not at all on a worker without samples; what
it does to the model's parameters by their gradients, and to buffers, is undone or reduced then. A teacher that is moved
in the body is moved once too often, and nobody else knows. `agent.on_step` is called once for each step, on all
workers. Where servers hold what is trained, and nothing else, a script may change nothing at all. A few numbers of each
tensor are compared, in the first batches and in few later on.

Must not know members, nor how a step is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from antdt_schemas.errors import UsageError

from antdt.strategies.habits.provenance.carried import has_storage, some_of
from antdt.strategies.once import Once

FIRST, EVERY = 4, 256  # batches that are looked at: the first ones, and one of so many later on
NUMBERS = 16  # of each tensor
DEPTH_MAX = 8
TOUCHED = (
    "{} was changed in the loop's body: a step that is given up would change it again, one in micro-batches several "
    "times, and a worker without samples not at all. Change it in a function under @agent.on_step, which is called "
    "behind each step on every worker."
)
FROZEN = f"Frozen parameter {TOUCHED} (What follows from the samples may be a buffer: those become the mean over all.)"
STATE = (
    f"{TOUCHED} (What follows from the samples themselves belongs into a buffer of a module that the Agent is given: "
    "buffers become the mean over all samples. What is only logged belongs into no state.)"
)
TRAINED = (
    "Parameter {} was changed by the script behind agent.step, in the loop's body: the file of that step, and a worker "
    "that takes over the model, have it as it was before. Change it in a function under @agent.on_step, which every "
    "worker calls behind each step, and which belongs to it."
)


class Part(NamedTuple):
    """What is compared: its name, its value, and what is said where it was changed, with a place for the name."""

    name: str
    value: Any
    said: str


def parts_of(model: torch.nn.Module, once: Once) -> Iterator[Part]:
    """Of a replica."""
    for name, param in model.named_parameters():
        if not param.requires_grad:
            yield Part(name, param, FROZEN)
    for key, held in once.state.items():
        for name, value in _leaves(held.state_dict(), f"state[{key!r}]"):
            yield Part(name, value, STATE)


def trained_of(model: torch.nn.Module) -> Iterator[Part]:
    """Of a replica: what its optimizers change, and nobody else once a step is made."""
    for name, param in model.named_parameters():
        if param.requires_grad:
            yield Part(name, param, TRAINED)


Found = dict[tuple[str, str], Any]


class Untouched:
    """Compares, from `begin` of a batch on. `renew`: what was changed until now is as it shall be."""

    def __init__(self, parts: Callable[[], Iterable[Part]], behind: Callable[[], Iterable[Part]] = lambda: ()) -> None:
        """behind: what may not change in what is left of the body once its step is made."""
        self._parts, self._parts_behind, self._batches = parts, behind, 0
        self._before: Found | None = None
        self._behind: Found | None = None

    def begin(self) -> None:
        """The script gets a batch."""
        self._batches += 1
        due = self._batches <= FIRST or self._batches % EVERY == 0
        self._before, self._behind = _now(self._parts()) if due else None, None

    def renew(self, *, made: bool = False) -> None:
        """An optimizer has stepped. made: the step was."""
        if self._before is not None:
            self._before = _now(self._parts())
            self._behind = _now(self._parts_behind()) if made else None

    def check(self) -> None:
        """Raises UsageError."""
        if self._before is not None:
            _compare(self._before, self._parts())

    def end(self) -> None:
        """The body is over: what follows may change anything."""
        self.check()
        if self._behind is not None:
            _compare(self._behind, self._parts_behind())
        self._before = self._behind = None


def _compare(before: Found, parts: Iterable[Part]) -> None:
    for (said, name), now in _now(parts).items():
        if before.get((said, name), now) != now:
            raise UsageError(said.format(name))


def _now(parts: Iterable[Part]) -> Found:
    found, samples = Found(), dict[tuple[str, str], torch.Tensor]()
    for name, value, said in parts:
        if not isinstance(value, torch.Tensor):
            found[said, name] = repr(value)
        elif has_storage(value) and value.numel():
            samples[said, name] = _numbers_of(value)
    for device in {one.device for one in samples.values()}:
        here = {at: one for at, one in samples.items() if one.device == device}
        flat = torch.cat(list(here.values())).cpu()
        parted = flat.split([len(one) for one in here.values()])
        found |= {at: one.numpy().tobytes() for at, one in zip(here, parted, strict=True)}
    return found


def _numbers_of(tensor: torch.Tensor) -> torch.Tensor:
    whole = tensor.detach()
    flat = (torch.view_as_real(whole) if whole.is_complex() else whole).reshape(-1)
    return some_of(flat, NUMBERS).double()


def _leaves(held: Any, name: str, depth: int = DEPTH_MAX) -> Iterator[tuple[str, Any]]:
    parts: Any = None
    if isinstance(held, Mapping):
        parts = held.items()
    elif isinstance(held, list | tuple):
        parts = enumerate(held)
    if parts is None or not depth:
        if isinstance(held, torch.Tensor | int | float | str | bool | bytes | None):
            yield name, held
        return
    for key, one in parts:
        yield from _leaves(one, f"{name}[{key!r}]", depth - 1)
