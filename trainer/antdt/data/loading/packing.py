"""Samples in one piece of anonymous memory, which one process writes and another one maps.

Tensors and arrays are copied once, by their writer. The memory has no name, so nobody can leave it behind, and it does
not count against /dev/shm, which containers keep small. Must not know what is packed, nor how the descriptor travels.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
from typing import Any

import torch

ALIGNMENT = 64
IN_BAND_BYTES_MAX = 512  # what is smaller is copied into the pickle: a write of its own costs more
WORD = 8


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, apart: list[memoryview]) -> None:
        def keep(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes <= IN_BAND_BYTES_MAX:
                return True
            apart.append(raw)
            return False

        super().__init__(file, protocol=5, buffer_callback=keep)

    def reducer_override(self, value: Any) -> Any:
        """Plain tensors as their bytes; torch's own way would write a whole file for each of them."""
        if type(value) is not torch.Tensor or value.requires_grad or value.is_quantized:
            return NotImplemented
        if value.device.type != "cpu" or value.layout is not torch.strided:
            return NotImplemented
        flat = value.resolve_conj().resolve_neg().contiguous().reshape(-1)
        return tensor_of, (pickle.PickleBuffer(flat.view(torch.uint8).numpy()), value.dtype, tuple(value.shape))


def tensor_of(raw: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor that these bytes are, without a copy."""
    return (
        torch.frombuffer(raw, dtype=dtype).view(shape)
        if 0 not in shape
        else torch.empty(shape, dtype=dtype, device="cpu")
    )


def pack(value: Any) -> int:
    """A descriptor of new memory: three or more words (pickle's size, number of buffers, their sizes), then all of it.

    Raises:
        Exception: whatever pickle says of a value that it cannot take.
        OSError: there is no memory.
    """
    file, apart = io.BytesIO(), list[memoryview]()
    _Pickler(file, apart).dump(value)
    sizes = [file.tell(), len(apart), *(raw.nbytes for raw in apart)]
    head = b"".join(size.to_bytes(WORD, "little") for size in sizes)
    descriptor = os.memfd_create("antdt-samples")
    try:
        at = 0
        for part in (memoryview(head), file.getbuffer(), *apart):
            at = _aligned(_write(descriptor, part, at))
        os.ftruncate(descriptor, at)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _write(descriptor: int, data: memoryview, at: int) -> int:
    while data.nbytes:
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written
    return at


def _aligned(at: int) -> int:
    return -(-at // ALIGNMENT) * ALIGNMENT


def unpack(descriptor: int) -> Any:
    """What was packed; tensors and arrays are views of the memory, which is given back with the last of them.

    The descriptor is closed.
    """
    try:
        memory = memoryview(mmap.mmap(descriptor, os.fstat(descriptor).st_size, mmap.MAP_SHARED | mmap.MAP_POPULATE))
    finally:
        os.close(descriptor)

    def word(number: int) -> int:
        return int.from_bytes(memory[number * WORD : (number + 1) * WORD], "little")

    pickled, count = word(0), word(1)
    at = _aligned((2 + count) * WORD)
    body = memory[at : at + pickled]
    at, buffers = _aligned(at + pickled), list[memoryview]()
    for number in range(count):
        size = word(2 + number)
        buffers.append(memory[at : at + size])
        at = _aligned(at + size)
    return pickle.loads(body, buffers=buffers)
