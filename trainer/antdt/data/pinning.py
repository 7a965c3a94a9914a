"""Batches in page-locked memory: a GPU copies from it while the loop goes on (`x.to(device, non_blocking=True)`).

Owns how a batch gets there. Must not know where samples come from.

A DataLoader has a thread for it, because its batches arrive collated. Ours are collated in the loop's own thread, for
their size is not known ahead; so samples are put together in page-locked memory to begin with, and pinning costs no
copy that would not be made anyway. Only what a collate_fn has put elsewhere is copied.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map_only
from torch.utils.data._utils.collate import collate, collate_tensor_fn, default_collate_fn_map
from torch.utils.data._utils.pin_memory import pin_memory


class Pinning:
    """Collates into page-locked memory, which `empty(size, dtype, pin_memory)` gives.

    What counts as a part of a batch is up to DataLoader's own function: what mappings and sequences hold, and whatever
    has a `pin_memory` method.
    """

    def __init__(self, empty: Callable[..., torch.Tensor] = torch.empty) -> None:
        self.empty = empty
        self._map = {**default_collate_fn_map, torch.Tensor: self._stack}

    def collate(self, given: Callable[[list[Any]], Any] | None) -> Callable[[list[Any]], Any]:
        """Like `given`, or like torch's default, and pinned."""
        if given is None:
            return lambda samples: pin_memory(collate(samples, collate_fn_map=self._map))
        return lambda samples: pin_memory(tree_map_only(torch.Tensor, _apart, given(samples)))

    def rows(self, tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """`tensor[index]`, pinned."""
        if not _is_plain(tensor, tensor.dtype):
            return torch.as_tensor(pin_memory(tensor[index]), device=tensor.device)
        out = self.empty((len(index), *tensor.shape[1:]), dtype=tensor.dtype, device="cpu", pin_memory=True)
        return torch.index_select(tensor, 0, index, out=out)

    def _stack(self, batch: Sequence[torch.Tensor], *, collate_fn_map: Any) -> Any:
        first = batch[0]
        if not all(_is_plain(x, first.dtype) for x in batch):
            return collate_tensor_fn(batch, collate_fn_map=collate_fn_map)  # pinned behind it, or refused there
        out = self.empty((len(batch), *first.shape), dtype=first.dtype, device="cpu", pin_memory=True)
        return torch.stack(list(batch), 0, out=out)


def _apart(tensor: torch.Tensor) -> torch.Tensor:
    """Itself; or a copy, where several of its numbers lie in one place, as behind `expand`: it could not be written."""
    return tensor.contiguous() if tensor.layout == torch.strided and 0 in tensor.stride() else tensor


def _is_plain(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether torch can write it into given memory: one type, strided, on this side, and no gradient goes through."""
    return (
        type(tensor) is torch.Tensor
        and tensor.dtype == dtype
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.is_nested or tensor.requires_grad)
    )


def pinning_of(wanted: bool, available: Callable[[], bool] = torch.accelerator.is_available) -> Pinning | None:
    """None, with a warning as a DataLoader gives one, where no GPU would profit."""
    if wanted and not available():
        warnings.warn("pin_memory=True: no accelerator is here, so batches stay in ordinary memory.", stacklevel=3)
    return Pinning() if wanted and available() else None
