"""What kind of value comes of values of these kinds, element by element.

Pure. Must not know shapes.
"""

from __future__ import annotations

import torch

from antdt.strategies.habits.provenance.traces import ROWS, SAME, Call, Kind, words

ADDS = words("add sub rsub lerp")
# What leaves a count one that weighs a mean.
SCALES = SAME | ADDS | words("mul neg abs clamp clamp_min clamp_max maximum where")


def kind_of(call: Call, kinds: set[Kind]) -> Kind:
    """Of what is put together element by element."""
    clean = any(one.trace is None for one in call.given)
    if Kind.KEPT in kinds and call.name in ADDS and not any(one.dims for one in call.traces):
        return Kind.KEPT
    if Kind.MIXED in kinds:
        return Kind.MIXED
    if Kind.PEAK in kinds:
        if kinds == {Kind.PEAK}:
            return Kind.PEAK if call.name in SAME and not clean else Kind.MIXED
        return Kind.EACH if call.name == "sub" and kinds <= {Kind.PEAK, *ROWS} else Kind.MIXED
    if Kind.COUNT in kinds or Kind.SHARE in kinds:
        return _kind_of_count(call, kinds)
    if Kind.RUNNING in kinds or Kind.PLACES in kinds:
        return _kind_of_places(call, kinds)
    if Kind.EACH in kinds or (Kind.SORTED in kinds and Kind.KEPT in kinds):
        return Kind.EACH
    return Kind.SORTED if Kind.SORTED in kinds else Kind.KEPT


def _kind_of_count(call: Call, kinds: set[Kind]) -> Kind:
    name = call.name
    if kinds == {Kind.SHARE}:
        return Kind.SHARE if name in SAME or (name == "mul" and len(call.traces) == 1) else Kind.MIXED
    if kinds - {Kind.COUNT, Kind.KEPT} or (len(call.traces) > 1 and name not in ADDS | {"maximum", "where"}):
        return Kind.MIXED
    if name == "div":
        number = call.named.get("other")
        if isinstance(number, torch.Tensor):
            number = float(number) if call.given[-1].trace is None and number.numel() == 1 else None
        if number is None:
            return Kind.SHARE
        return Kind.MIXED if number % call.samples == 0 else Kind.COUNT
    if name == "reciprocal":
        return Kind.SHARE
    return Kind.COUNT if name in SCALES else Kind.MIXED


def _kind_of_places(call: Call, kinds: set[Kind]) -> Kind:
    """Numbers of rows are that as long as nothing is made of them but other numbers of rows."""
    to_float = call.name in SAME and getattr(call.named.get("dtype"), "is_floating_point", False)
    if call.name in SAME and not to_float:
        return Kind.RUNNING if Kind.RUNNING in kinds else Kind.PLACES
    if Kind.RUNNING in kinds and call.name in ADDS | {"mul"} and Kind.PLACES not in kinds:
        return Kind.RUNNING
    return Kind.MIXED
