"""Data sets and processes for the tests of loading."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from antdt.data.loading import InThread, Loader
from antdt_schemas.ranges import Range
from torch.utils.data import Dataset, IterableDataset

SIZE = 300


class Numbers(Dataset[Any]):
    """Samples of several kinds, large and small ones, which say their number. `spoil(index)` may raise or wait."""

    def __init__(self, size: int = SIZE, spoil: Callable[[int], object] = bool) -> None:
        self.size, self.spoil = size, spoil

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        self.spoil(index)
        image = torch.full((3, 16, 1 + index % 3), index / 7)
        return {"image": image, "name": f"n{index}", "array": np.arange(index), "number": index}


class Augmented(Dataset[Any]):
    """What a sample draws, from all of the generators that data sets draw from."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        return index, random.random(), torch.rand(3).tolist(), float(np.random.rand())


class Stream(IterableDataset[Any]):
    """Gives any range of its samples."""

    def __iter__(self) -> Iterator[Any]:
        return self.iter_range(0, SIZE)

    def iter_range(self, start: int, stop: int) -> Iterator[Any]:
        """Samples of these positions; random, too."""
        for n in range(start, min(stop, SIZE)):
            yield n, random.random()


def same(left: Any, right: Any) -> bool:
    """Bit by bit."""
    if isinstance(left, torch.Tensor):
        return type(right) is torch.Tensor and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return isinstance(right, np.ndarray) and left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and bool(left == right)


def batches(loader: Loader | InThread, sizes: Sequence[int], epoch: int = 0, size: int = SIZE) -> Iterator[Any]:
    """Those of one epoch, in steps of these sizes, over and over."""
    at, step = 0, 0
    while at < size:
        length = min(sizes[step % len(sizes)], size - at)
        behind = min(size - at - length, loader.ahead(length))
        loader.expect([(epoch, at, length), (epoch, at + length, behind)], length)
        yield loader.fetch([Range(1, 1, epoch, at, length)])
        at, step = at + length, step + 1


def running(pid: int) -> bool:
    """Whether there is such a process, and it has not ended: somebody else may be slow to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def gone(pids: Sequence[int], within_s: float = 10.0) -> bool:
    """Whether all of them end in time."""
    until = time.monotonic() + within_s
    while any(map(running, pids)):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)  # between two looks
    return True


def children(pid: int) -> list[int]:
    """Ids of a process's children."""
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def sockets(pid: int) -> set[str]:
    """Those that a process has open, as the kernel numbers them."""
    folder = Path(f"/proc/{pid}/fd")
    links = set[str]()
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):  # it was closed since
            links.add(os.readlink(folder / name))
    return {link for link in links if link.startswith("socket:")}


def forked(act: Callable[[int], object], log: Path) -> tuple[int, int]:
    """Runs act(writing end of a pipe) in a session of its own, as a program would; its id, and the reading end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        import traceback

        os.setsid()
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 2)
        status = 0
        try:
            act(writing)
        except BaseException:  # noqa: BLE001  as the interpreter does
            os.write(2, traceback.format_exc().encode())
            status = 1
        os._exit(status)
    os.close(writing)
    return pid, reading
