"""Rows of whole numbers that ride in a bucket of floats, and come back as what they were.

Each number is cut into pieces so small that its bucket's type counts them exactly; each member writes its own row into
zeros, so the sum over all members has everybody's. Must not know what a row says.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch


def digit_dtype(dtype: torch.dtype) -> torch.dtype:
    """bfloat16 counts exactly to 256, float16 to 2,048, float32 to 2^24."""
    return torch.uint16 if dtype in (torch.float32, torch.float64) else torch.uint8


def digits_in(width: int, dtype: torch.dtype) -> int:
    """Elements of a bucket of this type that hold `width` numbers of 64 bits."""
    return int(width * torch.int64.itemsize // digit_dtype(dtype).itemsize)


class Rows:
    """Those of all members in `within` (world, digits_in(width)), a part of a bucket. Memory is made once: to make and
    cast small tensors was a good part of what a step costs.
    """

    def __init__(self, within: torch.Tensor, width: int) -> None:
        self.within, digit = within, digit_dtype(within.dtype)
        own = torch.zeros(width, dtype=torch.int64, device="cpu")
        self._all = torch.zeros(len(within), width, dtype=torch.int64, device="cpu")
        self._format, self._bytes = struct.Struct(f"={width}q"), memoryview(own.numpy()).cast("B")
        self._own_digits, self._all_digits = own.view(digit), self._all.view(digit)

    def __len__(self) -> int:
        return len(self.within)

    def put(self, rank: int, columns: Sequence[int] | None) -> None:
        """Before the sum: this member's row, or none of it."""
        self.within.zero_()
        if columns is not None:
            self._format.pack_into(self._bytes, 0, *columns)
            self.within[rank].copy_(self._own_digits)

    def all(self) -> list[list[int]]:
        """After it: everybody's (world, width)."""
        self._all_digits.copy_(self.within.cpu())  # it is there that such digits are made
        found: list[list[int]] = self._all.tolist()
        return found
