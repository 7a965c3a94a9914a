"""Gradients on their way through the members: flat buckets, reduced while backward still runs.

Knows parameters and a generation; must not know what a step means.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from antdt_schemas.errors import UsageError
from torch._utils import _flatten_dense_tensors
from torch.nn import Parameter

from antdt.strategies.allreduce.composition import ROW_WIDTH
from antdt.strategies.allreduce.rendezvous import Generation
from antdt.strategies.allreduce.rows import Rows, digits_in

SMALL_SIZE = 2**14  # elements: smaller gradients are added up together
FOREIGN = (
    "There are gradients that agent.step has not made, as the script called loss.backward(): pass all that is to be "
    "learned from as one loss, agent.step(loss_a + loss_b), or one by one, agent.backward(loss_a), "
    "agent.backward(loss_b), agent.apply(). For gradients of something else use torch.autograd.grad."
)
CHANGED = (
    "Gradients were changed between two micro-batches of one step: leave out zero_grad(set_to_none=False), agent.step "
    "clears gradients itself, and change them between agent.reduce() and agent.apply(), where they are those of the "
    "whole step."
)


def partition(
    params: Sequence[Parameter], first_bucket_size_bytes: int, bucket_size_bytes: int
) -> list[list[Parameter]]:
    """Parameters in the order in which backward tends to reach them, cut by size, dtype and device.

    The first bucket is small: the sooner something is on its way, the more of it is hidden.
    """
    groups: list[list[Parameter]] = []
    room = 0
    for param in reversed(params):
        size = param.numel() * param.element_size()
        kind = param.dtype, param.device
        if not groups or room < size or kind != (groups[-1][0].dtype, groups[-1][0].device):
            room = bucket_size_bytes if groups else first_bucket_size_bytes
            groups.append([])
        groups[-1].append(param)
        room -= size
    return groups


def total_of(grads: torch.Tensor) -> torch.Tensor:
    """A number that is finite only if all of these are; it may be infinite where their sum is too large."""
    return grads.sum(dtype=torch.float32 if grads.element_size() < 4 else None)


def all_finite(grads: Sequence[torch.Tensor]) -> bool:
    """Whether every number is. Waits once for each device."""
    sums: dict[torch.device, torch.Tensor] = {}
    for one in grads:
        sums[one.device] = sums[one.device] + total_of(one) if one.device in sums else total_of(one)
    if all(map(math.isfinite, sums.values())):
        return True
    return all(bool(torch.isfinite(one).all()) for one in grads)


class _Slot:
    """A parameter's place in its bucket. used: has it got a gradient in this step? done: in its last backward?"""

    __slots__ = ("bucket", "done", "param", "used", "view")

    def __init__(self, param: Parameter, bucket: _Bucket) -> None:
        self.param, self.bucket = param, bucket
        self.view: torch.Tensor
        self.used = self.done = False


class _Bucket:
    """One flat tensor: gradients, one "used" flag per parameter, and perhaps rows of compositions behind them."""

    def __init__(self, params: Sequence[Parameter]) -> None:
        self.slots = [_Slot(param, self) for param in params]
        self.rows: Rows | None = None
        self.work: Any = None
        self.missing = 0
        self.allocate(world=0)

    def allocate(self, world: int) -> None:
        """world: how many rows of compositions to make room for."""
        like = self.slots[0].param
        sizes = [slot.param.numel() for slot in self.slots]
        grads, flags = sum(sizes), len(self.slots)
        row = digits_in(ROW_WIDTH, like.dtype)
        self.flat = torch.zeros(grads + flags + world * row, dtype=like.dtype, device=like.device)
        self.grads, self.flags = self.flat[:grads], self.flat[grads : grads + flags]
        self.rows = Rows(self.flat[grads + flags :].view(world, row), ROW_WIDTH) if world else None
        for slot, part in zip(self.slots, self.grads.split(sizes), strict=True):
            slot.view = part.view_as(slot.param)

    @property
    def all_used(self) -> bool:
        return all(slot.used for slot in self.slots)

    def reset(self) -> None:
        self.missing, self.work = len(self.slots), None
        for slot in self.slots:
            slot.used = slot.done = False

    def fill(self) -> None:
        """Zeros for what this member did not use, and the flags that say so."""
        if self.missing == 0 or self.all_used:
            self.flags.fill_(1)
            return
        for slot in self.slots:
            if not slot.used:
                slot.view.zero_()
        self.flags.copy_(torch.tensor([float(slot.used) for slot in self.slots], device="cpu"))


class ReducedGradients:
    """The sum over all members of each parameter's gradient.

    Invariant: buckets are launched in index order only, on every member alike, each once a step; from its launch until
    its handle is done nobody here writes into it.
    """

    def __init__(self, groups: Sequence[Sequence[Parameter]], overlap: bool) -> None:
        self.buckets = [_Bucket(params) for params in groups]
        self._overlap = overlap
        self._generation: Generation
        self._hooks = [
            slot.param.register_post_accumulate_grad_hook(partial(self._ready, slot))
            for bucket in self.buckets
            for slot in bucket.slots
        ]
        self.first_at: float | None = None
        self._row: Sequence[int] | None = None
        self.reset()

    def connect(self, generation: Generation, inline: bool) -> None:
        """For the steps of this generation. inline: compositions ride in the first bucket."""
        self._generation = generation
        world = generation.world if inline else 0
        if world != (0 if self.buckets[0].rows is None else len(self.buckets[0].rows)):
            self.buckets[0].allocate(world)
        self.reset()

    def renounce(self) -> None:
        """An operation may still write into the buckets: let it have them."""
        for bucket in self.buckets:
            bucket.allocate(world=0)

    def disconnect(self) -> None:
        """Leaves the model as an ordinary one."""
        for handle in self._hooks:
            handle.remove()
        self.reset()

    def reset(self) -> None:
        """No gradients; ready for the next step."""
        for bucket in self.buckets:
            bucket.reset()
            for slot in bucket.slots:
                slot.param.grad = None
        self._launched, self._last, self._row = 0, False, None
        self._going, self._marks = False, list[int]()
        self._own: list[torch.Tensor] = []
        self.first_at = None

    @property
    def touched(self) -> bool:
        """Some parameter got a gradient in this step."""
        return any(slot.used for bucket in self.buckets for slot in bucket.slots)

    def announce(self, columns: Sequence[int]) -> None:
        """This member's row of ROW_WIDTH numbers, to ride in the first bucket."""
        self._row = columns

    def announced(self) -> list[list[int]]:
        """Everybody's rows (world, ROW_WIDTH), as soon as the first bucket has come round."""
        if self._launched == 0:
            self._launch()
        bucket = self.buckets[0]
        self._generation.wait(bucket.work)
        assert bucket.rows is not None
        return bucket.rows.all()

    def expect(self, last: bool) -> None:
        """Before each backward. last: after it nothing more is accumulated, so full buckets may leave.

        Raises UsageError where somebody else has made or changed gradients. One that was only set to None, as zero_grad
        does, is put back.
        """
        if self._marks and self._marks != [bucket.flat._version for bucket in self.buckets]:
            raise UsageError(CHANGED)
        for bucket in self.buckets:
            for slot in bucket.slots:
                grad = slot.param.grad
                if slot.used and grad is None:
                    slot.param.grad = slot.view
                elif grad is not (slot.view if slot.used else None):
                    raise UsageError(FOREIGN)
        self._last, self._going = last, True

    def done(self, last: bool) -> None:
        """After each backward."""
        self._last, self._going = False, False
        if not last:
            self._marks = [bucket.flat._version for bucket in self.buckets]

    def _ready(self, slot: _Slot, param: Parameter) -> None:
        """Autograd has accumulated a gradient into `param`."""
        if not self._going:
            return  # the script's own backward: it counts for nothing, and must be cleared
        bucket = slot.bucket
        if bucket.work is not None:
            raise UsageError(
                "A parameter got a second gradient in the last backward of a step, after its bucket had left "
                "(re-entrant checkpointing does this): set overlap=False in AllReduce."
            )
        if param.grad is not slot.view:  # the first micro-batch: autograd handed over a tensor of its own
            _require_dense(param)
            slot.view.copy_(param.grad)
            param.grad = slot.view
        slot.used = True
        if self._last and not slot.done:
            slot.done = True
            bucket.missing -= 1
            if bucket.missing == 0:
                self._full(bucket)

    def _full(self, bucket: _Bucket) -> None:
        if bucket is self.buckets[0]:
            self.first_at = time.perf_counter()
        while self._overlap and self._launched < len(self.buckets) and self.buckets[self._launched].missing == 0:
            self._launch()

    def _launch(self) -> None:
        bucket = self.buckets[self._launched]
        self._launched += 1
        bucket.fill()
        if any(slot.used for slot in bucket.slots):
            self._own.append(total_of(bucket.grads))
        if bucket.rows is not None:
            bucket.rows.put(self._generation.rank, self._row)  # none in the middle of a step
        bucket.work = self._generation.allreduce(bucket.flat, again=True)

    def launch_rest(self) -> None:
        """At the end of the step: whatever backward did not fill."""
        while self._launched < len(self.buckets):
            self._launch()

    def finish(self, factor: float) -> None:
        """Waits for everything; each gradient is then the sum times `factor`, None where no member used it."""
        for bucket in self.buckets:
            self._generation.wait(bucket.work)
        for bucket in self.buckets:
            if factor != 1.0:
                bucket.grads.mul_(factor)
            if not bucket.all_used:
                for slot, users in zip(bucket.slots, bucket.flags.tolist(), strict=True):
                    slot.param.grad = slot.view if users else None

    def is_finite(self) -> bool:
        """Whether the finished gradients are; the same on all members."""
        return all_finite([bucket.grads for bucket in self.buckets])

    def own_is_finite(self) -> bool:
        """Whether this member's part of them was."""
        return all(math.isfinite(total) for total in self._own)


Kept = list[tuple[torch.Tensor | None, int]]


def kept_of(params: Sequence[Parameter]) -> Kept:
    """The gradients between two backwards of one step, with their versions."""
    return [(param.grad, 0 if param.grad is None else param.grad._version) for param in params]


def put_back(params: Sequence[Parameter], kept: Kept) -> None:
    """Those that were only set to None come back. Raises UsageError where somebody else has made or changed some."""
    for param, (grad, version) in zip(params, kept or [(None, 0)] * len(params), strict=True):
        if grad is not None and grad._version != version:
            raise UsageError(CHANGED)
        now = param.grad
        if now is None and grad is not None:
            param.grad = grad
        elif now is not grad:
            raise UsageError(FOREIGN)


class LocalGradients:
    """The same for a generation of one member: nothing is copied, nothing is sent."""

    def __init__(self, groups: Sequence[Sequence[Parameter]]) -> None:
        self._params = [param for group in groups for param in group]
        self._alike, self._first = _alike(self._params), len(groups[0])
        self._hooks = [
            param.register_post_accumulate_grad_hook(partial(self._ready, place))
            for place, param in enumerate(groups[0])
        ]
        self.reset()

    def renounce(self) -> None:
        """Nothing is ever on its way."""

    def disconnect(self) -> None:
        """Leaves the model as an ordinary one."""
        for handle in self._hooks:
            handle.remove()
        self.reset()

    def reset(self) -> None:
        """No gradients; ready for the next step."""
        for param in self._params:
            param.grad = None
        self._last, self._done = False, set[int]()
        self._kept: Kept = []
        self.first_at: float | None = None

    def expect(self, last: bool) -> None:
        """Before each backward. Raises UsageError where somebody else has made or changed gradients."""
        put_back(self._params, self._kept)
        self._last = last

    def done(self, last: bool) -> None:
        """After each backward."""
        self._last = False
        if not last:
            self._kept = kept_of(self._params)

    @property
    def touched(self) -> bool:
        """Some parameter got a gradient in this step."""
        return any(param.grad is not None for param in self._params)

    def _ready(self, place: int, _param: Parameter) -> None:
        if self._last:
            self._done.add(place)
            if len(self._done) == self._first:
                self.first_at = time.perf_counter()

    def launch_rest(self) -> None:
        """Nothing is sent."""

    def finish(self, factor: float) -> None:
        """Each gradient times `factor`."""
        if factor != 1.0:
            for param in self._params:
                if param.grad is not None:
                    param.grad.mul_(factor)

    def is_finite(self) -> bool:
        """Whether the finished gradients are."""
        found: list[torch.Tensor] = []
        for params in self._alike:
            grads = [g.coalesce().values() if g.is_sparse else g for one in params if (g := one.grad) is not None]
            found += [_flatten_dense_tensors(grads)] if len(grads) > 1 else grads
        return all_finite(found)

    def own_is_finite(self) -> bool:
        """Of a step whose gradients are not finite: there is nobody else."""
        return False


def _alike(params: Sequence[Parameter]) -> list[list[Parameter]]:
    """Small ones of one type and device together, each other one by itself."""
    alike = defaultdict[Any, list[Parameter]](list)
    for param in params:
        alike[(param.dtype, param.device) if param.numel() < SMALL_SIZE else id(param)].append(param)
    return list(alike.values())


def _require_dense(param: Parameter) -> None:
    if param.grad.layout is not torch.strided:
        raise UsageError("Sparse gradients cannot be reduced: build the embedding with sparse=False.")
