"""What a tensor has to do with the samples of a batch, as it follows from what the operation that made it was given.

    EACH     one row, or more, for each sample: nothing else is in it
    SORTED   the same, in the order of the samples' values; PLACES: where each of them was; RUNNING: offsets of each
    COUNT    a sum over all samples: what weighs a mean is one; SHARE: one over it
    PEAK     the largest of all samples, which is often subtracted from them, and changes nothing
    KEPT     a running value of earlier batches
    MIXED    any other value that all samples are in: a mean, a quantile, the hardest ones, ranks

A tensor without a trace has nothing to do with them, or nobody knows. What is unknown is never MIXED for that alone.

Pure, but for shapes and types of tensors. Must not know a graph, nor when anybody looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any, NamedTuple

import torch


class Kind(Enum):
    """See the module."""

    EACH = "each"
    SORTED = "sorted"
    PLACES = "places"
    RUNNING = "running"
    COUNT = "count"
    SHARE = "share"
    PEAK = "peak"
    KEPT = "kept"
    MIXED = "mixed"


ROWS = (Kind.EACH, Kind.SORTED, Kind.PLACES, Kind.RUNNING)


def words(text: str) -> frozenset[str]:
    """Names of operations."""
    return frozenset(text.split())


SAME = words("detach alias clone _to_copy contiguous lift_fresh positive")


class Trace(NamedTuple):
    """dims: along which the samples lie. origin: the operation that put them together, and where. entered: it has a
    graph, which such a value without one has entered: by what.
    """

    kind: Kind
    dims: tuple[int, ...] = ()
    origin: str = ""
    entered: str = ""


class Given(NamedTuple):
    """One tensor that an operation was given, as the argument of that name. shape: before it was changed in place."""

    name: str
    tensor: torch.Tensor
    shape: tuple[int, ...]
    trace: Trace | None


class Call:
    """One operation. name: without what says that it is in place. named: its arguments. given: its tensors. where: in
    the script. samples: how many the batch has.
    """

    def __init__(self, func: Any, args: Any, kwargs: Any, look: Callable[[torch.Tensor], Trace | None], samples: int):
        packet = func.overloadpacket.__name__
        self.name, self.in_place = packet.rstrip("_"), packet.endswith("_") and not packet.endswith("__")
        self.is_pointwise = torch.Tag.pointwise in func.tags
        self.namespace, self.samples = func.namespace, samples
        names = [one.name for one in func._schema.arguments]
        self.named: dict[str, Any] = {**dict(zip(names, args, strict=False)), **kwargs}
        self.given = [
            Given(name, one, tuple(one.shape), look(one))
            for name, value in self.named.items()
            for one in _tensors(value)
        ]

    @property
    def traces(self) -> list[Trace]:
        """Those that there are."""
        return [one.trace for one in self.given if one.trace is not None]

    def kinds(self) -> set[Kind]:
        """Of what it was given."""
        return {one.kind for one in self.traces}


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def trace_of(kind: Kind, dims: Iterable[int] = ()) -> Trace | None:
    """None where samples were to lie along a dimension, and do not any more."""
    dims = tuple(dims)
    return None if kind in ROWS and not dims and kind is not Kind.RUNNING else Trace(kind, dims)


def dims_of(said: Any, count: int) -> tuple[int, ...]:
    """All, where none is said."""
    dims = said if isinstance(said, list | tuple) else () if said is None else (said,)
    return tuple(dim % count for dim in dims) if dims and count else tuple(range(count))
