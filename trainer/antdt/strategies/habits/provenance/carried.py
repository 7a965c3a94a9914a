"""What a script carries from batch to batch beside its model: a teacher, a queue of features, a running baseline.

Each worker has its own of these, and one that comes later begins anew. A tensor that neither the batch nor the model
has, nor what the Agent saves with it, is one if it is not what it was in the batch before, or was made of the samples
of that one. Only a few numbers of each are compared.

Must not know what is computed of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

NUMBERS = 64  # of each tensor that are compared
DEPTH_MAX = 4  # of what holds tensors

Storages = dict[int, StorageWeakRef]


class Carried:
    """known: tensors that are the Agent's affair; None: nobody can say, and nothing is carried."""

    def __init__(self, known: Callable[[], Iterator[torch.Tensor]] | None) -> None:
        self._known = known
        self._ours = set[int]()
        self._before = dict[int, tuple[StorageWeakRef, torch.Tensor]]()
        self._now = dict[int, tuple[StorageWeakRef, torch.Tensor]]()
        self._left: Storages = {}
        self._moving = dict[int, bool]()

    def begin(self, left: Iterable[StorageWeakRef]) -> None:
        """Another batch. left: storages of what was made of the samples of the one before."""
        if self._known is None:
            return
        self._ours = {one.untyped_storage()._cdata for one in self._known() if has_storage(one)}
        self._before, self._now, self._moving = {**self._before, **self._now}, {}, {}
        self._before = {at: one for at, one in self._before.items() if not one[0].expired()}
        self._left = {one.cdata: one for one in left if one.cdata not in self._ours}

    def is_carried(self, tensor: torch.Tensor, at: int) -> bool:
        """Whether it is, as it is read for the first time in this batch. at: of its storage."""
        if self._known is None or at in self._ours:
            return False
        if at in self._left:
            return True
        found = self._moving.get(at)
        if found is None:
            found = self._moving[at] = self._has_moved(tensor, at)
        return found

    def _has_moved(self, tensor: torch.Tensor, at: int) -> bool:
        if not (tensor.is_floating_point() and has_storage(tensor)):
            return False
        storage, before = tensor.untyped_storage(), self._before.get(at)
        flat = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storage)
        sample = some_of(flat, NUMBERS).clone()
        self._now[at] = StorageWeakRef(storage), sample
        return before is not None and before[1].dtype == sample.dtype and not torch.equal(before[1], sample)


def some_of(flat: torch.Tensor, count: int) -> torch.Tensor:
    """So many numbers at most, from all over it, to be compared with what they were."""
    return flat[:: max(1, len(flat) // count)][:count]


def has_storage(tensor: torch.Tensor) -> bool:
    """Whether it has a storage of its own."""
    return tensor.layout == torch.strided and not torch.nn.parameter.is_lazy(tensor)


def tensors_in(holder: Any, depth: int = DEPTH_MAX) -> Iterator[torch.Tensor]:
    """All that such an object holds, as far as that shows."""
    if isinstance(holder, torch.Tensor):
        yield holder
    elif isinstance(holder, torch.nn.Module):
        yield from holder.parameters()
        yield from holder.buffers()
    elif depth and not isinstance(holder, str | bytes | int | float | type):
        parts: Any = vars(holder).values() if hasattr(holder, "__dict__") else ()
        if isinstance(holder, Mapping):
            parts = holder.values()
        elif isinstance(holder, list | tuple | set):
            parts = holder
        for one in list(parts):
            yield from tensors_in(one, depth - 1)
