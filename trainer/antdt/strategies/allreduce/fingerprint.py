"""Fingerprints of tensors and of an optimizer's numbers, 64 bits each: equal bits, equal fingerprint, anywhere.

Made from the bytes of tensors as they are, never from sums of floats. Must not know what is compared, nor with whom.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from hashlib import blake2b
from typing import Any

import torch

BATCH_SIZE_BYTES = 2**20  # what is looked at together: what it is copied into stays in the processor's cache
ROW_WORDS = 2**13
SHIFT = 29
PLAIN = (int, float, bool, str, type(None))
MULTIPLIER = 0x5851F42D4C957F2D

_of_thread = threading.local()


def of_tensors(tensors: Iterable[torch.Tensor]) -> int:
    """The fingerprint of some tensors in this order: a signed number of 64 bits, never 0.

    It waits for their devices once.
    """
    sums: dict[torch.device, torch.Tensor] = {}
    for words in _words(tensors):
        mixed = torch.bitwise_right_shift(words, SHIFT, out=_scratch(words.device)[1][: len(words)])
        mixed ^= words  # the highest bits alone would vanish in a product
        rows = mixed.view(-1, ROW_WORDS)
        weights = _weights(words.device)
        rows *= weights
        batch = (rows.sum(1) * weights[: len(rows)]).sum()
        before = sums.get(words.device)
        sums[words.device] = batch if before is None else before * MULTIPLIER + batch
    total = 0
    for one in sums.values():
        total = (total * MULTIPLIER + int(one)) % 2**64
    return _signed(total)


def of_numbers(numbers: Sequence[Any]) -> int:
    """The same for numbers as Python has them."""
    return _signed(int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest(), "big"))


def _signed(value: int) -> int:
    return (value - 2**64 if value >= 2**63 else value) or 1


def _words(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The bytes of all tensors as whole rows of int64, batch by batch; zeros behind the last ones of a device.

    Each batch is overwritten by the next one.
    """
    filled: dict[torch.device, int] = {}
    for tensor in tensors:
        if tensor.layout is not torch.strided or tensor.numel() == 0:
            continue
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        words = _scratch(flat.device)[0]
        room = words.view(torch.uint8)
        at = filled.get(flat.device, 0)
        for part in _cut(flat, BATCH_SIZE_BYTES - at):
            room[at : at + part.numel()] = part
            at += part.numel()
            if at == BATCH_SIZE_BYTES:
                yield words
                at = 0
        filled[flat.device] = at
    for device, at in filled.items():
        if at:
            words = _scratch(device)[0]
            end = -(-at // (8 * ROW_WORDS)) * ROW_WORDS
            words.view(torch.uint8)[at : 8 * end] = 0
            yield words[:end]


def _cut(flat: torch.Tensor, first: int) -> list[torch.Tensor]:
    return [part for part in (flat[:first], *flat[first:].split(BATCH_SIZE_BYTES)) if part.numel()]


def _scratch(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Two batches of this thread: memory that is new each time takes longer than all the rest."""
    found: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = _of_thread.__dict__
    if device not in found:
        new = (torch.empty(BATCH_SIZE_BYTES // 8, dtype=torch.int64, device=device) for _ in range(2))
        found[device] = next(new), next(new)
    return found[device]


@cache
def _weights(device: torch.device) -> torch.Tensor:
    """ROW_WORDS odd numbers without a pattern (splitmix64), the same everywhere."""
    out = []
    for index in range(1, ROW_WORDS + 1):
        value = index * 0x9E3779B97F4A7C15 % 2**64
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        out.append(_signed((value ^ value >> 31) | 1))
    return torch.tensor(out, dtype=torch.int64, device=device)


# -- an optimizer's numbers


def numbers_of(groups: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    """What a step depends on besides tensors: the numbers of all parameter groups, in the groups' order.

    Equal numbers are equal whatever their type: a learning rate may be numpy's.
    """
    return tuple([_plain(value) for group in groups for name, value in group.items() if name != "params"])


def are_plain(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a setting can only change by another one in its place: all are numbers, texts, or tuples of such."""
    values = [value for group in groups for name, value in group.items() if name != "params"]
    return all(type(one) in PLAIN for value in values for one in (value if type(value) is tuple else (value,)))


def names_of(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to call each of `numbers_of`."""
    return [
        f"{name!r} of parameter group {index}"
        for index, group in enumerate(groups)
        for name in group
        if name != "params"
    ]


def tensors_of(groups: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
    """Settings that are tensors, on whatever device: to be compared with the parameters."""
    return [v for group in groups for n, v in group.items() if n != "params" and isinstance(v, torch.Tensor)]


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind is float or kind is bool or kind is int or value is None:
        return value
    if isinstance(value, tuple | list):
        return tuple([_plain(one) for one in value])
    shape: Any = getattr(value, "shape", ())
    return None if isinstance(value, torch.Tensor) or shape or not hasattr(value, "__float__") else float(value)
