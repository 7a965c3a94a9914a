"""Looks at what a script computes of a batch, from the batch to the loss, in a few steps of many.

Every operation of torch passes by here in such a step, and what its results have to do with the samples is noted down.
A value that all samples of this worker's part are in, and that has no graph, is no fault: a metric is one. That it has
entered a loss is. Nothing is changed, and tensors are not kept alive. What leaves torch (`.item()`, numpy), what a
compiled function does inside, and what other threads do is not seen.

Must not know members, nor what is done about what is found.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from types import FrameType
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack, _pop_mode, _push_mode

from antdt.strategies.habits.provenance.carried import Carried, has_storage
from antdt.strategies.habits.provenance.rules import FILLED, enters, results
from antdt.strategies.habits.provenance.traces import ROWS, Call, Kind, Trace, words

log = logging.getLogger("antdt")

FIRST = 4  # batches, all of which are looked at
GAP_MIN, GAP_MAX = 64, 1024  # batches between two that are looked at later on: twice as many each time
SEEN_MIN = 3  # losses in a row: a running value may begin as that of its first batch
NESTED_MAX = 8
OF_ROWS, SUM = "rows of this worker's samples", "a sum over this worker's samples"
OVERWRITES = words("copy fill zero normal uniform random bernoulli exponential")
CARRIED = "carried from batch to batch"
_not_the_scripts = set[str]()  # files, of which many a frame lies on the way to the script's
Named = Callable[[], Iterator[tuple[str, torch.Tensor]]]
Place = tuple[int, tuple[int, ...], tuple[int, ...]]


class Watcher:
    """Of the batches of one script. `is_on`: torch tells it. `knows`: it has looked at the batch at hand.

    buffers: of the model. averaged: those that are made of what all workers have put in, by name. known: see Carried.
    """

    def __init__(
        self,
        buffers: Callable[[], Iterator[torch.Tensor]] = lambda: iter(()),
        averaged: Named = lambda: iter(()),
        known: Callable[[], Iterator[torch.Tensor]] | None = None,
    ) -> None:
        self._buffers, self._averaged, self._carried = buffers, averaged, Carried(known)
        self._batches, self._left, self._next, self._gap = 0, FIRST, GAP_MIN, GAP_MIN
        self._seen: dict[str, tuple[int, int]] = {}
        self._along: dict[tuple[Any, ...], tuple[int, ...]] = {}
        self._book = _Book(1, self._carried)
        self._mode: _Mode | None = None
        self.is_on = self.knows = False

    def begin(self, batch: Any, samples: int) -> None:
        """The script gets this batch next. It is looked at if it is one of the first, or of many."""
        self.leave()
        self.knows = False
        self._batches += 1
        if samples < 2 or (not self._left and self._batches < self._next):
            return
        if self._batches >= self._next:
            self._gap = min(GAP_MAX, 2 * self._gap)
            self._next = self._batches + self._gap
        _take_off()
        self._left = max(0, self._left - 1)
        self._carried.begin(self._book.left_behind())
        kept = self._book.statistics_left_behind()
        self._book = book = _Book(samples, self._carried)
        book.keep(kept, [one.untyped_storage()._cdata for one in self._buffers() if has_storage(one)])
        for path, tensor in _tensors(batch, ()):
            dims = self._dims(path, tensor, samples)
            if dims and has_storage(tensor):
                book.note(tensor, Trace(Kind.EACH, dims))
        self._mode, self.knows = _Mode(book), True
        self.enter()

    def look_again(self) -> None:
        """The script computes something else from here on."""
        self._left = FIRST

    def enter(self) -> None:
        """The script goes on with the batch."""
        if self._mode is not None and not self.is_on:
            _push_mode(self._mode)
            self.is_on = True

    def leave(self) -> None:
        """What follows is not the script's. A mode that the script has entered since stays where it is."""
        if self.is_on:
            self.is_on = False
            _take_off()

    @contextmanager
    def away(self) -> Iterator[None]:
        """What the script has others do is not its own."""
        before = self.is_on
        self.leave()
        try:
            yield
        finally:
            if before:
                self.enter()

    def end(self) -> None:
        """The batch has all its losses."""
        self.leave()
        self._mode, self.knows = None, False

    def forget(self, found: Any) -> None:
        """All workers have given these values: they are not of this one's batch alone."""
        if self.knows:
            for _, tensor in _tensors(found, ()):
                self._book.note(tensor, None)

    def mean_of_workers(self, given: torch.Tensor, found: torch.Tensor) -> None:
        """In this mean each worker counts the same, however many samples it has: of what each has of its part, it is
        another one for each split.
        """
        trace = self._book.look(given) if self.knows else None
        if trace is not None and trace.kind is not Kind.KEPT:
            origin = f"a mean over workers, whose parts differ in size{where()}"
            self._book.note(found, Trace(Kind.MIXED, (), origin))

    def found(self, loss: torch.Tensor) -> str:
        """What has entered this loss, once it is no chance; empty where nothing is known."""
        trace = self._book.look(loss)
        return self._no_chance(trace.entered if trace is not None else "")

    def spoiled(self) -> tuple[str, str]:
        """The buffer that was given what is of this worker's samples alone and is no mean over them, and what; once it
        is no chance, else nothing.
        """
        for name, buffer in self._averaged():
            given = self._book.given_to(buffer)
            if given and self._no_chance(f"{name}: {given}"):
                return name, given
        return "", ""

    def _no_chance(self, seen: str) -> str:
        if not seen:
            return ""
        last, times = self._seen.get(seen, (0, 0))
        if last != self._batches:
            times = times + 1 if last == self._batches - 1 else 1
            self._seen[seen] = self._batches, times
        self._left = max(self._left, 1)
        return seen if times >= SEEN_MIN else ""

    def _dims(self, path: tuple[Any, ...], tensor: torch.Tensor, samples: int) -> tuple[int, ...]:
        """Along which samples lie: one that was as long as there were samples in every batch, the first of them. None
        where time or samples may come first.
        """
        long = tuple(dim for dim, length in enumerate(tensor.shape) if length == samples)
        before = self._along.get(path, long)
        self._along[path] = now = tuple(dim for dim in before if dim in long)
        return () if now[:2] == (0, 1) else now[:1]


def _tensors(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        if not value.is_nested:  # it has no shape
            yield path, value
    elif len(path) < NESTED_MAX:
        parts: Any = ()
        if isinstance(value, Mapping):
            parts = value.items()
        elif isinstance(value, list | tuple):
            parts = enumerate(value)
        elif is_dataclass(value):
            parts = [(one.name, getattr(value, one.name)) for one in fields(value)]
        for name, one in parts:
            yield from _tensors(one, (*path, name))


class _Book:
    """Traces of tensors, by where they lie: views of one storage may have others. Storages are not kept alive."""

    def __init__(self, samples: int, carried: Carried) -> None:
        self.samples, self._carried = samples, carried
        self._given = dict[int, str]()
        self._storages: dict[int, tuple[StorageWeakRef, dict[Place, Trace | None]]] = {}
        self._kept = dict[int, Any]()

    def keep(self, storages: list[StorageWeakRef], others: list[int]) -> None:
        """In these are running values."""
        self._kept = {**dict.fromkeys(others), **{one.cdata: one for one in storages}}

    def give(self, tensor: torch.Tensor, what: str) -> None:
        """To a running value, what is of some samples."""
        self._given[tensor.untyped_storage()._cdata] = what

    def given_to(self, buffer: torch.Tensor) -> str:
        """What that was, in place or in a new tensor; empty for a mean."""
        if not has_storage(buffer):
            return ""
        at = buffer.untyped_storage()._cdata
        trace = next((one for one in self._storages.get(at, (None, {}))[1].values() if one is not None), None)
        if trace is None or at in self._kept or trace.kind is Kind.KEPT:
            return self._given.get(at, "")
        return SUM if trace.kind is Kind.COUNT else OF_ROWS if trace.kind in ROWS and trace.origin != FILLED else ""

    def left_behind(self) -> list[StorageWeakRef]:
        """Storages of what was made of samples, and the script still has."""
        return [
            ref
            for at, (ref, traces) in self._storages.items()
            if any(one is not None and one.origin != FILLED for one in traces.values())
            and at not in self._kept
            and not ref.expired()
        ]

    def statistics_left_behind(self) -> list[StorageWeakRef]:
        """Storages of statistics that the script still has."""
        kept = [Kind.KEPT, Kind.MIXED, Kind.COUNT, Kind.PEAK]
        return [
            ref
            for ref, traces in self._storages.values()
            if any(one is not None and one.kind in kept for one in traces.values()) and not ref.expired()
        ]

    def look(self, tensor: torch.Tensor) -> Trace | None:
        storage = tensor.untyped_storage()._cdata
        found = self._storages.get(storage)
        if found is None:
            if self._carried.is_carried(tensor, storage):
                return Trace(Kind.MIXED, (), f"a value that is {CARRIED}{where()}")
            return Trace(Kind.KEPT) if storage in self._kept else None
        return found[1].get(_place(tensor))

    def keeps(self, tensor: torch.Tensor) -> bool:
        """Whether it is a running value."""
        return tensor.untyped_storage()._cdata in self._kept

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether it was made since the batch came."""
        return tensor.untyped_storage()._cdata in self._storages

    def note(self, tensor: torch.Tensor, trace: Trace | None) -> None:
        storage = tensor.untyped_storage()
        _, traces = self._storages.setdefault(storage._cdata, (StorageWeakRef(storage), {}))
        traces[_place(tensor)] = trace

    def note_change(self, tensor: torch.Tensor, trace: Trace | None) -> None:
        """In place: other views of it have the same in them."""
        self.note(tensor, trace)
        if trace is None or (trace.kind in ROWS and not trace.entered):
            return
        _, traces = self._storages[tensor.untyped_storage()._cdata]
        for place, one in traces.items():
            dims = one.dims if one is not None else ()
            traces[place] = trace if place == _place(tensor) else trace._replace(dims=dims)


def _place(tensor: torch.Tensor) -> Place:
    return tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride())


def _take_off() -> None:
    """Of this thread: what others hand to another one has stayed on."""
    above = list[Any]()
    while _get_current_dispatch_mode_stack():
        above.append(_pop_mode())
    for mode in reversed(above):
        if not isinstance(mode, _Mode):
            _push_mode(mode)


class _Mode(TorchDispatchMode):  # type: ignore[misc]
    def __init__(self, book: _Book) -> None:
        super().__init__()
        self._book = book

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        try:
            call = Call(func, args, kwargs, self._book.look, self._book.samples)
        except Exception as error:  # noqa: BLE001  what has no storage, and whatever else torch may have
            log.debug("cannot follow %s: %s", func, error)
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        try:
            self._note(call, out)
        except Exception as error:  # noqa: BLE001
            log.debug("cannot follow %s: %s", func, error)
        return out

    def _note(self, call: Call, out: Any) -> None:
        book = self._book
        outs = [one for one in (out if isinstance(out, list | tuple) else (out,)) if isinstance(one, torch.Tensor)]
        entered = _entered(call, outs)
        for one, trace in zip(outs, results(call, outs, where), strict=True):
            if entered and one.is_floating_point():
                trace = (trace or Trace(Kind.EACH))._replace(entered=entered)
            self._note_given(call, one)
            fills = call.name in OVERWRITES and not book.has(one) and not book.keeps(one)
            if fills or not call.in_place:
                book.note(one, trace)
            elif book.has(one):
                book.note_change(one, trace)

    def _note_given(self, call: Call, out: torch.Tensor) -> None:
        """To a running value, or a new one that takes its place."""
        kinds, book = call.kinds(), self._book
        others = [one.trace for one in call.given if one.trace is not None and one.tensor is not out]
        if call.in_place and book.keeps(out):
            if any(one.kind in ROWS and one.dims and one.origin != FILLED for one in others):
                book.give(out, OF_ROWS)
            elif any(one.kind is Kind.COUNT for one in others):
                book.give(out, SUM)
        elif kinds == {Kind.KEPT, Kind.COUNT} and call.is_pointwise:
            book.give(out, SUM)


def _entered(call: Call, outs: list[torch.Tensor]) -> str:
    """By what a value of all samples has come into a graph, now or before."""
    for trace in call.traces:
        if trace.entered:
            return trace.entered
    if not torch.is_grad_enabled() or not any(one.is_floating_point() for one in outs):
        return ""
    if not any(one.tensor.requires_grad for one in call.given):
        return ""
    for one in call.given:
        if not one.tensor.requires_grad and enters(call, one):
            origin = one.trace.origin if one.trace is not None else ""
            return f"{origin}, in {call.name}{where()}"
    return ""


def where() -> str:
    """The line of the script that called, as far as it is one."""
    path, line = line_of_script()
    return f" ({path.rpartition('/')[2]}:{line})" if path else ""


def line_of_script() -> tuple[str, int]:
    """Its file, and the number of the line."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path not in _not_the_scripts:
            if frame.f_globals.get("__name__", "").split(".")[0] not in ("antdt", "torch"):
                return path, frame.f_lineno
            if not path.startswith("<"):  # what has no file has one name for all
                _not_the_scripts.add(path)  # asked of each loss
        frame = frame.f_back
    return "", 0
