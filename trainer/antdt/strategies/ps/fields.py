"""Which numbers of a batch a table is looked up with: found by comparing what was looked up with what the script was
given, so that the same numbers of the next batch can be read before the script asks for them.

A guess that is wrong costs rows that nobody wants. It changes nothing that is computed.

Must not know servers, nor what a row is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import torch

LEAVES_MAX, COLUMNS_MAX, DEPTH_MAX = 64, 256, 4


class Field(NamedTuple):
    """leaf: which tensor of a batch. first, last: its columns, of the last dimension; 0, 0: all of it."""

    leaf: int
    first: int = 0
    last: int = 0


def leaves_of(batch: Any) -> list[torch.Tensor]:
    """The tensors of a batch in their order, whatever lists, tuples and dicts they are in."""
    return list(islice(_leaves(batch, DEPTH_MAX), LEAVES_MAX))


def _leaves(batch: Any, depth: int) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch.detach()
    elif depth and isinstance(batch, list | tuple | Mapping):
        for one in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _leaves(one, depth - 1)


def field_of(leaves: list[torch.Tensor], ids: torch.Tensor) -> Field | None:
    """The first one that is equal to these ids: all of a tensor, in whatever shape, or some columns of it."""
    if not ids.numel() or not ids.dim():
        return None
    for at, leaf in enumerate(leaves):
        if leaf.numel() == ids.numel() and _equal(leaf.reshape(-1), ids.reshape(-1)):
            return Field(at)
        wanted = ids.unsqueeze(-1) if leaf.dim() == ids.dim() + 1 else ids
        if leaf.shape[:-1] != wanted.shape[:-1] or leaf.dim() != wanted.dim():
            continue
        width = wanted.shape[-1]
        for first in range(min(leaf.shape[-1], COLUMNS_MAX) - width + 1):
            if _equal(leaf[..., first : first + width], wanted):
                return Field(at, first, first + width)
    return None


def ids_in(leaves: list[torch.Tensor], field: Field) -> torch.Tensor:
    """A flat row of whole numbers; empty where a batch has no such field."""
    if field.leaf >= len(leaves):
        return torch.empty(0, dtype=torch.int64, device="cpu")
    leaf = leaves[field.leaf]
    chosen = leaf[..., field.first : field.last] if field.last else leaf
    return chosen.reshape(-1).cpu().long()


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one.to(other.device) == other).all())
