"""Being another worker for a moment, as a data set sees it: the second of two. Only in a process forked for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch.distributed

SECOND = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "NODE_RANK": "1",
    "ANTDT_WORKER": "w1",
    "ANTDT_RANK": "1",
    "ANTDT_WORLD_SIZE": "2",
}


@contextmanager
def _by_environment() -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(SECOND)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _by_group() -> Iterator[None]:
    """As in a process group; whatever would exchange something fails."""
    said = {"is_available": True, "is_initialized": True, "get_rank": 1, "get_world_size": 2}
    before = {name: getattr(torch.distributed, name) for name in said}
    for name, value in said.items():
        setattr(torch.distributed, name, lambda *_, _value=value, **__: _value)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(torch.distributed, name, function)


# What a data set may look at to divide itself. Not `get_worker_info()`: that is None in the loop, where streams are
# read, and one that divides itself between data processes gives all of it there.
ANOTHER_WORKER: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "RANK and WORLD_SIZE": _by_environment,
    "torch.distributed": _by_group,
}
