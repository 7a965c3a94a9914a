"""What a data process is loading, in memory that outlives it: whoever finds it dead knows of which sample it died."""

from __future__ import annotations

import mmap
import os
import struct
from multiprocessing import reduction
from typing import Any

_NUMBERS = struct.Struct("=qqq")


class Beginning:
    """Epoch, start and length of the samples at hand; length 0: none. Passed on to processes however they start."""

    def __init__(self, descriptor: int | None = None) -> None:
        """descriptor: of the memory of another one; it is closed."""
        if descriptor is None:
            descriptor = os.memfd_create("antdt-beginning")
            os.ftruncate(descriptor, _NUMBERS.size)
        self._descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _NUMBERS.size)

    def __reduce__(self) -> Any:
        return _received, (reduction.DupFd(self._descriptor),)

    def write(self, epoch: int, start: int, length: int) -> None:
        """These are being loaded from now on."""
        _NUMBERS.pack_into(self._memory, 0, epoch, start, length)

    def read(self) -> tuple[int, int, int]:
        """The last that were written."""
        epoch, start, length = _NUMBERS.unpack_from(self._memory)
        return epoch, start, length

    def close(self) -> None:
        """Nobody asks any more."""
        self._memory.close()
        os.close(self._descriptor)


def _received(descriptor: Any) -> Beginning:
    return Beginning(descriptor.detach())
