"""A model's state on its way from the source to all other members, without a second copy of it on either side.

What is small travels as one piece of bytes, in which each large tensor is one without numbers (of torch's device
"meta"). Their numbers follow, tensor by tensor, straight into the memory that the receiver goes on with. Owns that way.
Must not know what a state consists of.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from antdt.strategies.allreduce.rendezvous import Generation
from antdt.strategies.allreduce.state import broadcast, read

APART_SIZE_BYTES = 64 * 2**10
PIECE_SIZE_BYTES = 16 * 2**20


class Apart(NamedTuple):
    """bare: what `torch.save` wrote of a state without the numbers of its large tensors; those, in order."""

    bare: bytes
    large: list[torch.Tensor]

    @classmethod
    def of(cls, whole: Any) -> Apart:
        """whole: nested dicts and lists, whose tensors stay where they are."""
        large = list[torch.Tensor]()

        def without(tensor: torch.Tensor) -> torch.Tensor:
            assert not tensor.is_meta, "a state has numbers"
            if not _is_large(tensor):
                return tensor
            large.append(tensor)
            return torch.empty_like(tensor, device="meta")

        out = io.BytesIO()
        torch.save(_each(whole, without), out)
        return cls(out.getvalue(), large)

    def read(self) -> Any:
        """As who receives it reads it, before the numbers come."""
        return read(io.BytesIO(self.bare))


def hand_on(generation: Generation, source_rank: int, whole: Any) -> Any:
    """The source's state, on every member; the others pass None. Nothing of it is shared with what the source holds.

    Raises GenerationClosed; then nobody has it.
    """
    assert (whole is not None) == (generation.rank == source_rank)
    if whole is not None:
        given = Apart.of(whole)
        broadcast(generation, source_rank, given.bare)
        for tensor in given.large:
            _send(generation, tensor)
        return whole
    found = read(io.BytesIO(broadcast(generation, source_rank, None)))
    return _each(found, lambda tensor: _receive(generation, source_rank, tensor) if tensor.is_meta else tensor)


def _send(generation: Generation, tensor: torch.Tensor) -> None:
    """In copies of a bounded size: where this member leaves meanwhile, the last of them may still be on its way, and
    must be of the step that it began with.
    """
    for piece in _bytes_of(tensor):
        _exchange(generation, generation.rank, piece.to("cpu", copy=True))


def _receive(generation: Generation, source_rank: int, like: torch.Tensor) -> torch.Tensor:
    made = torch.empty_like(like, device="cpu")
    flat = made if made.is_contiguous() else torch.empty(made.shape, dtype=made.dtype, device="cpu")
    for piece in _bytes_of(flat):
        _exchange(generation, source_rank, piece)
    return made if flat is made else made.copy_(flat)


def _exchange(generation: Generation, source_rank: int, piece: torch.Tensor) -> None:
    generation.wait(generation.broadcast(piece, source_rank))
    generation.settled()  # it is not kept until the last one has come


def _bytes_of(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return tuple(flat.split(PIECE_SIZE_BYTES))


def _is_large(tensor: torch.Tensor) -> bool:
    """And plain: what is more than numbers in a row travels as `torch.save` writes it."""
    plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided and not tensor.is_quantized
    return plain and not tensor.is_complex() and tensor.numel() * tensor.element_size() >= APART_SIZE_BYTES


def _each(value: Any, act: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same with other tensors, in one order everywhere."""
    if isinstance(value, torch.Tensor):
        return act(value)
    if isinstance(value, dict):
        found: Any = copy.copy(value)  # a module's state has attributes of its own
        for name, one in value.items():
            found[name] = _each(one, act)
        return found
    if type(value) in (list, tuple):
        return type(value)(_each(one, act) for one in value)
    return value
