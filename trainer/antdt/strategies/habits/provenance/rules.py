"""What has come of one operation, and whether it puts samples of a batch together.

Pure, but for shapes and types of tensors. Must not know when anybody looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from antdt.strategies.habits.provenance.kinds import kind_of
from antdt.strategies.habits.provenance.moves import MOVES, moved
from antdt.strategies.habits.provenance.traces import ROWS, Call, Given, Kind, Trace, dims_of, trace_of, words

SUMS, PEAKS = words("sum nansum count_nonzero"), words("amax max")
REDUCES = (
    SUMS
    | PEAKS
    | words("mean nanmean amin min aminmax std var std_mean var_mean norm linalg_vector_norm logsumexp prod any all")
    | words("median nanmedian argmax argmin kthvalue mode")
)
ALONG = words("sort argsort cumsum topk cumprod logcumsumexp cummax cummin _softmax _log_softmax softmax log_softmax")
FILLS = words(
    "zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full zero fill new_empty_strided"
)
DRAWS = words("rand_like randn_like randint_like bernoulli uniform normal exponential random native_dropout")
LOOKS_UP = words("index index_select gather take take_along_dim embedding masked_select index_put")
NORMS = words(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
    "cudnn_batch_norm miopen_batch_norm _batch_norm_with_update _batch_norm_no_update batch_norm "
    "native_layer_norm native_group_norm"
)
COUNTS = words("bincount histc _unique2 unique_dim unique_consecutive")
SCATTERS = words("scatter scatter_add scatter_reduce index_add index_reduce index_copy index_fill")
OF_PARAMETERS = words(
    "convolution_backward native_layer_norm_backward native_group_norm_backward native_batch_norm_backward "
    "cudnn_batch_norm_backward embedding_dense_backward"
)
FILLED = "filled"  # in place of an origin: it has the shape of samples, and nothing of them
PRODUCTS = words("mm addmm bmm baddbmm mv dot addmv vdot")


def results(call: Call, outs: Sequence[torch.Tensor], where: Callable[[], str]) -> list[Trace | None]:
    """What has come of it, for each tensor that it returns. where: it is called where a statistic is made."""
    if not call.traces or "c10d" in call.namespace:  # what workers tell each other is the same for all of them
        return [None] * len(outs)
    rule = _rule(call)
    found = [rule(call, out, at) for at, out in enumerate(outs)]
    return [_with_origin(call, one, where) for one in found]


def _with_origin(call: Call, trace: Trace | None, where: Callable[[], str]) -> Trace | None:
    if trace is None or trace.kind in ROWS or trace.kind is Kind.KEPT:
        return trace
    before = next((one.origin for one in call.traces if one.origin and one.origin != FILLED), "")
    return trace._replace(origin=before or f"{call.name}{where()}")


def enters(call: Call, one: Given) -> bool:
    """Whether what has no graph, and all samples in it, decides what comes of an operation that has one."""
    trace, name = one.trace, call.name
    if trace is None or trace.kind in (Kind.EACH, Kind.SORTED, Kind.KEPT):
        return False
    if "norm" in name and one.name != "input":  # running values
        return False
    single = one.tensor.numel() == 1
    if trace.kind is Kind.COUNT and single and name in ("div", "mul"):
        return False
    if trace.kind is Kind.SHARE and single and name == "mul":
        return False
    if trace.kind is Kind.PEAK and name == "sub":
        return False
    if trace.kind in (Kind.PLACES, Kind.RUNNING):
        return call.is_pointwise
    return call.is_pointwise or name in LOOKS_UP or name in PRODUCTS or one.tensor.is_floating_point()


Rule = Callable[[Call, torch.Tensor, int], Trace | None]


def _rule(call: Call) -> Rule:
    name = call.name
    if call.namespace != "aten":
        return _unknown
    if name.endswith("_backward"):
        return _backward
    if name in REDUCES and (name not in ("max", "min") or "other" not in call.named):
        return _reduced
    if "reduction" in call.named:
        return _loss
    return RULES.get(name) or (_pointwise if call.is_pointwise else _unknown)


def _aligned(call: Call, out: torch.Tensor) -> tuple[int, ...]:
    """Dimensions of samples, where shapes are broadcast."""
    found = set[int]()
    for one in call.given:
        for dim in one.trace.dims if one.trace else ():
            at = dim + out.dim() - len(one.shape)
            if 0 <= at < out.dim() and out.shape[at] == one.shape[dim]:
                found.add(at)
    return tuple(sorted(found))


def _pointwise(call: Call, out: torch.Tensor, _at: int) -> Trace | None:
    return trace_of(kind_of(call, call.kinds()), _aligned(call, out))


def _copied(call: Call, out: torch.Tensor, _at: int) -> Trace | None:
    """What was there before is gone."""
    source = call.given[-1].trace
    return None if source is None else trace_of(kind_of(call, {source.kind}), _aligned(call, out))


def _unknown(call: Call, out: torch.Tensor, _at: int) -> Trace | None:
    """Samples are where they were, if there are as many."""
    dims = _at_same_length(call, out)
    kinds = {one.trace.kind for one in call.given if one.trace and one.tensor.is_floating_point()}
    if kinds & {Kind.MIXED, Kind.COUNT, Kind.SHARE, Kind.PEAK}:
        return Trace(Kind.MIXED, dims)
    return trace_of(Kind.EACH, dims)


def _at_same_length(call: Call, out: torch.Tensor) -> tuple[int, ...]:
    found = {
        dim
        for one in call.given
        for dim in (one.trace.dims if one.trace else ())
        if dim < out.dim() and out.shape[dim] == one.shape[dim]
    }
    return tuple(sorted(found))


def _backward(call: Call, out: torch.Tensor, _at: int) -> Trace | None:
    """The gradient of each sample, whatever divides the loss; and of parameters, which adds up those of all."""
    of_input = any(one.name == "input" and one.shape == tuple(out.shape) for one in call.given)
    of_parameters = call.name in OF_PARAMETERS and not of_input
    dims = () if of_parameters else _at_same_length(call, out)
    grads = [one.trace for one in call.given if one.name.startswith("grad") and one.trace is not None]
    if any(one.kind is Kind.MIXED for one in grads):
        return Trace(Kind.MIXED, dims)
    return Trace(Kind.COUNT) if of_parameters and grads else trace_of(Kind.EACH, dims)


def _normalised(call: Call, out: torch.Tensor, at: int) -> Trace | None:
    """BatchNorm has a rule of its own."""
    first = call.given[0].trace
    return first if at == 0 and tuple(out.shape) == call.given[0].shape else None


def _filled(call: Call, out: torch.Tensor, _at: int) -> Trace | None:
    trace = trace_of(Kind.EACH, _aligned(call, out) if tuple(out.shape) == call.given[0].shape else ())
    return trace._replace(origin=FILLED) if trace is not None else None


def _drawn(call: Call, out: torch.Tensor, at: int) -> Trace | None:
    if call.name == "native_dropout" and at == 0:
        return call.given[0].trace
    return _filled(call, out, at)


def _reduced(call: Call, out: torch.Tensor, at: int) -> Trace | None:
    one = call.given[0]
    if one.trace is None:
        return None
    kind, count, name = one.trace.kind, len(one.shape), call.name
    over = dims_of(call.named.get("dim"), count)
    left = [dim for dim in one.trace.dims if dim not in over]
    dims = [dim if out.dim() == count else dim - sum(gone < dim for gone in over) for dim in left]
    if kind in (Kind.EACH, Kind.SORTED) and len(left) == len(one.trace.dims):
        return trace_of(kind, dims)
    if kind is Kind.KEPT:
        return one.trace._replace(dims=())
    first = at == 0 and not left
    if name in SUMS and first and kind in (Kind.EACH, Kind.SORTED, Kind.COUNT):
        return Trace(Kind.COUNT)
    if name in PEAKS and first and kind in (Kind.EACH, Kind.SORTED, Kind.PEAK):
        return Trace(Kind.PEAK)
    return Trace(Kind.MIXED, tuple(dims))


def _loss(call: Call, out: torch.Tensor, at: int) -> Trace | None:
    reduction = call.named["reduction"]
    if reduction == 0:
        return _unknown(call, out, at)
    rows = [one for one in call.traces if one.kind in ROWS]
    if not rows or any(one.kind is Kind.MIXED for one in call.traces):
        return Trace(Kind.MIXED) if call.kinds() & {Kind.MIXED} else None
    return Trace(Kind.COUNT if reduction == 2 or at == 1 else Kind.MIXED)


def _along(call: Call, out: torch.Tensor, at: int) -> Trace | None:
    one = call.given[0]
    if one.trace is None or not out.dim():
        return one.trace
    kind, name = one.trace.kind, call.name
    (dim,) = dims_of(call.named.get("dim", -1), out.dim())[:1]
    if dim not in one.trace.dims or kind not in (*ROWS, Kind.MIXED):
        return one.trace
    if name in ("sort", "argsort") and kind is not Kind.MIXED:
        is_places = at == 1 or name == "argsort"
        return Trace(Kind.PLACES if is_places else Kind.SORTED, one.trace.dims)
    if name == "cumsum" and kind in (Kind.EACH, Kind.SORTED) and not out.is_floating_point():
        return Trace(Kind.RUNNING, one.trace.dims)
    return Trace(Kind.MIXED, one.trace.dims)


def _counted(call: Call, out: torch.Tensor, at: int) -> Trace | None:
    """How many of each: of as many as there are samples they are parts of each."""
    if call.name.startswith("unique") or call.name == "_unique2":
        return None if at != 2 or out.numel() == call.samples else Trace(Kind.MIXED)
    return None if out.numel() == call.samples else Trace(Kind.COUNT)


def _scattered(call: Call, out: torch.Tensor, _at: int) -> Trace | None:
    """Into rows of samples; what is added up in groups may be parts of one sample."""
    if Kind.MIXED in call.kinds():
        return Trace(Kind.MIXED)
    dim = dims_of(call.named.get("dim", 0), max(1, out.dim()))[0]
    rows = {at for one in call.given for at in (one.trace.dims if one.trace else ()) if at < out.dim()}
    return trace_of(Kind.EACH, sorted(rows - {dim}))


def _looked_up(call: Call, out: torch.Tensor, _at: int) -> Trace | None:
    kinds, source = call.kinds(), call.given[0]
    places = [one for one in call.given[1:] if one.trace is not None and one.name != "values"]
    dims = _dims_of_rows(call, out)
    kind = source.trace.kind if source.trace else None
    if Kind.MIXED in kinds or Kind.PEAK in kinds or any(one.trace and one.trace.kind is Kind.COUNT for one in places):
        return Trace(Kind.MIXED, dims)
    if kind in (Kind.COUNT, Kind.SHARE, Kind.KEPT):
        return Trace(Kind.MIXED if places and kind is not Kind.KEPT else kind, dims)
    if kind in (Kind.SORTED, Kind.PLACES) and not places:
        return Trace(Kind.MIXED, dims)
    return trace_of(Kind.RUNNING if kind is Kind.RUNNING else Kind.EACH, dims)


def _dims_of_rows(call: Call, out: torch.Tensor) -> tuple[int, ...]:
    source, indices = call.given[0], [one for one in call.given[1:] if one.name != "values"]
    if call.name in ("gather", "take_along_dim", "embedding", "index_put", "take"):
        return _same_place(call.given, out)
    if call.name == "masked_select":
        return (0,)
    dims = set[int]()
    if call.name == "index_select":
        at = [dims_of(call.named["dim"], len(source.shape))[0]]
    else:
        at = [place for place, one in enumerate(call.named["indices"]) if one is not None]
    taken, width = at[0] if at else 0, max((_width(one.tensor) for one in indices), default=0)
    for dim in source.trace.dims if source.trace else ():
        if dim in at or any(one.tensor.dtype == torch.bool for one in indices):
            dims |= {taken} if width else set()
        else:
            dims.add(dim if dim < taken else dim + width - len(at))
    for one in indices:
        for dim in one.trace.dims if one.trace else ():
            dims.add(taken if one.tensor.dtype == torch.bool else taken + dim + width - len(one.shape))
    return tuple(sorted(dim for dim in dims if 0 <= dim < out.dim()))


def _width(index: torch.Tensor) -> int:
    """Dimensions that come of it."""
    return 1 if index.dtype == torch.bool else index.dim()


def _same_place(given: Iterable[Given], out: torch.Tensor) -> tuple[int, ...]:
    found = {dim for one in given for dim in (one.trace.dims if one.trace else ()) if dim < out.dim()}
    return tuple(sorted(found))


def _multiplied(call: Call, out: torch.Tensor, _at: int) -> Trace | None:
    left, right = call.given[-2:]
    rows = (left.trace.dims if left.trace else ()), (right.trace.dims if right.trace else ())
    last = len(left.shape) - 1
    inner = max(0, len(right.shape) - 2)
    summed = last in rows[0] or inner in rows[1]
    dims = {dim for dim in rows[0] if dim != last} | {
        dim - len(right.shape) + out.dim() for dim in rows[1] if dim != inner and len(right.shape) > 1
    }
    dims = {dim for dim in dims if 0 <= dim < out.dim()}
    if call.kinds() - set(ROWS) - {Kind.KEPT} or (summed and dims):
        return Trace(Kind.MIXED, tuple(sorted(dims)))
    return Trace(Kind.COUNT) if summed else trace_of(Kind.EACH, sorted(dims))


def _joined(call: Call, out: torch.Tensor, _at: int) -> Trace | None:
    kinds, dim = call.kinds(), dims_of(call.named.get("dim", 0), out.dim())[0]
    new = call.name == "stack"
    dims = sorted({at + (new and at >= dim) for one in call.traces for at in one.dims})
    if kinds <= set(ROWS):
        return trace_of(next(iter(kinds)) if len(kinds) == 1 else Kind.EACH, dims)
    return Trace(next(iter(kinds)) if len(kinds) == 1 else Kind.MIXED, tuple(dims))


RULES: dict[str, Rule] = {
    **dict.fromkeys(FILLS, _filled),
    **dict.fromkeys(DRAWS, _drawn),
    **dict.fromkeys(MOVES, moved),
    "copy": _copied,
    **dict.fromkeys(NORMS, _normalised),
    **dict.fromkeys(("cat", "stack"), _joined),
    **dict.fromkeys(ALONG, _along),
    **dict.fromkeys(LOOKS_UP, _looked_up),
    **dict.fromkeys(PRODUCTS, _multiplied),
    **dict.fromkeys(COUNTS, _counted),
    **dict.fromkeys(SCATTERS, _scattered),
}
