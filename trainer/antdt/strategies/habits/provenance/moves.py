"""Where the samples are in what has only been given another shape, or a part of it.

Pure, but for shapes. Must not know what is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from antdt.strategies.habits.provenance.kinds import kind_of
from antdt.strategies.habits.provenance.traces import SAME, Call, Kind, Trace, dims_of, trace_of


def moved(call: Call, out: torch.Tensor, _at: int) -> Trace | None:
    one = call.given[0]
    if one.trace is None:
        return None
    kind = kind_of(call, {one.trace.kind}) if call.name in SAME else one.trace.kind
    dims, gone = MOVES[call.name](call, one.shape, tuple(out.shape), one.trace.dims)
    if gone and kind is not Kind.MIXED:
        if kind in (Kind.SORTED, Kind.PLACES):
            return Trace(Kind.MIXED, dims)
        if kind is Kind.EACH and not dims:
            return None
    return trace_of(kind, dims)


Shape = tuple[int, ...]
Moved = tuple[tuple[int, ...], bool]


def _stay(_call: Call, _one: Shape, _out: Shape, dims: tuple[int, ...]) -> Moved:
    return dims, False


def _view(call: Call, one: Shape, out: Shape, dims: tuple[int, ...]) -> Moved:
    found = set[int]()
    for dim in dims:
        inner = math.prod(one[dim + 1 :])
        span, over = inner * one[dim], list[int]()
        for at in range(len(out)):
            below = math.prod(out[at + 1 :])
            if max(inner, below) < min(span, below * out[at]):
                over.append(at)
        found |= set([at for at in over if out[at] == call.samples][:1] or over[:1])
    return tuple(sorted(found)), False


def _permute(call: Call, one: Shape, _out: Shape, dims: tuple[int, ...]) -> Moved:
    count, named = len(one), call.named
    order = list(range(count))
    if "dims" in named:
        order = [dim % count for dim in named["dims"]]
    elif count > 1:
        first, second = named.get("dim0", 0) % count, named.get("dim1", 1) % count
        order[first], order[second] = second, first
    return tuple(sorted(order.index(dim) for dim in dims)), False


def _unsqueeze(call: Call, _one: Shape, out: Shape, dims: tuple[int, ...]) -> Moved:
    new = call.named["dim"] % len(out)
    return tuple(dim + (dim >= new) for dim in dims), False


def _squeeze(call: Call, one: Shape, _out: Shape, dims: tuple[int, ...]) -> Moved:
    over = [dim for dim in dims_of(call.named.get("dim"), len(one)) if one[dim] == 1]
    return tuple(dim - sum(gone < dim for gone in over) for dim in dims if dim not in over), False


def _select(call: Call, one: Shape, _out: Shape, dims: tuple[int, ...]) -> Moved:
    (gone,) = dims_of(call.named.get("dim", 0), len(one))[:1]
    return tuple(dim - (dim > gone) for dim in dims if dim != gone), gone in dims


def _slice(call: Call, one: Shape, out: Shape, dims: tuple[int, ...]) -> Moved:
    """One row of many is a sample, and no batch any more."""
    (along,) = dims_of(call.named.get("dim", 0), len(one))[:1]
    if along not in dims or out[along] == one[along]:
        return dims, False
    return tuple(dim for dim in dims if dim != along or out[dim] > 1), True


def _expand(_call: Call, one: Shape, out: Shape, dims: tuple[int, ...]) -> Moved:
    return tuple(dim + len(out) - len(one) for dim in dims), False


def _diagonal(call: Call, one: Shape, out: Shape, dims: tuple[int, ...]) -> Moved:
    return ((len(out) - 1,) if dims else ()), False


MOVES: dict[str, Callable[[Call, Shape, Shape, tuple[int, ...]], Moved]] = {
    **dict.fromkeys(SAME | {"flip", "roll", "nan_to_num", "tril", "triu"}, _stay),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), _view),
    **dict.fromkeys(("permute", "transpose", "t"), _permute),
    **dict.fromkeys(("unbind", "select"), _select),
    **dict.fromkeys(("slice", "split", "split_with_sizes", "narrow"), _slice),
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    "diagonal": _diagonal,
}
