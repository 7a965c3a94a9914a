"""Operations below a loss that put samples of one batch together: parts of a batch then have another loss each.

A triplet that is mined in the batch, a similarity of all with all, a covariance, a normalisation by the batch's own
mean, the hardest tenth: no weight makes of their parts what one process would make of the whole. They show in the graph
by what they do along the first dimension, where its length is the number of samples.

Must not know members, nor what a weight is used for. What is computed without a graph is `provenance`'s affair, but for
a factor that was standardised over the batch, which shows wherever it was computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from ctypes import c_int64
from typing import Any, NamedTuple

import torch

from antdt.strategies.habits.terms import COPIES, OF_MANY, Term, is_of_parameters, name_of, shape_of

BELOW_MAX = 8192  # operations that are looked at
FIRST, EVERY = 16, 64  # losses that are looked at: the first ones, and one of so many later on
KNOWN_MAX = 64  # kinds of losses, by their terms
SAME_MIN = 4  # losses of one number of samples: then a length that equals it is no chance
WEIGHT_MAX = 16  # operations between a product and a parameter
PAIRED = 2  # two views of each sample may lie in one tensor
# Of many numbers along a dimension, or of all of them.
ALONG = frozenset(
    f"{OF_MANY} Mean Sum Nansum StdMean VarMean Prod Median Nanmedian Mode Kthvalue Sort Topk Cumsum Cumprod "
    "Logcumsumexp Cummax Cummin Softmax LogSoftmax".split()
)
ADDING = ("Mean", "Sum", "Nansum")
# Linear in what they are given: a mean over samples below them is a mean of the loss, too.
LINEAR = frozenset(
    f"{COPIES} Mean Sum Nansum Add Sub Rsub Neg Expand Slice Gather Cat Stack Where MaskedFill MaskedSelect NanToNum "
    "Split".split()
)
BROADCAST = ("Add", "Sub", "Rsub", "Mul", "Div", "Maximum", "Minimum")
PRODUCTS = ("Mm", "Addmm", "Bmm", "Baddbmm")
STANDARD = 1e-3  # how near to 0 and 1 mean and deviation of a standardised factor are


class Mixer(NamedTuple):
    """An operation that mixes, by its name. certain: no other dimension may be that of samples. token: of a constant
    that is multiplied with them; one that stays is none of theirs.
    """

    name: str
    certain: bool = True
    token: float | None = None


class Mixing:
    """What was found in the losses of one script. A length that does not follow the number of samples equals it by
    chance. `is_new`: the loss that was asked for last has terms that none before had.
    """

    def __init__(self) -> None:
        self._losses = 0
        self._kinds: tuple[str, ...] = ()
        self._known, self.is_new = set[tuple[str, ...]](), False
        self._found: dict[str, list[int]] = {}
        self._tokens: dict[str, float | None] = {}
        self._chance: set[str] = set()

    def is_due(self, found: list[Term]) -> bool:
        """Whether another loss is looked at: one of the first, of terms that are new, or one of many."""
        kinds = tuple(term.name for term in found)
        self.is_new = kinds != self._kinds and kinds not in self._known
        if kinds != self._kinds:
            self._kinds, self._losses = kinds, 0
            if len(self._known) < KNOWN_MAX:
                self._known.add(kinds)
        self._losses += 1
        return self._losses <= FIRST or self._losses % EVERY == 0

    def found(self, found: list[Term], samples: int) -> str:
        """The operation that mixes, once it is no chance; empty while none is known."""
        seen = {mixer.name: mixer for term in found for mixer in mixers(term, samples)}
        self._chance |= {name for name, sizes in self._found.items() if name not in seen and samples not in sizes}
        for name, mixer in seen.items():
            if mixer.token is not None and self._tokens.get(name) == mixer.token:
                self._chance.add(name)
            self._tokens[name] = mixer.token
            sizes = self._found.setdefault(name, [])
            sizes.append(samples)
            enough = len(set(sizes)) > 1 or (mixer.certain and len(sizes) >= SAME_MIN)
            if enough and name not in self._chance:
                return name
        return ""


def mixers(term: Term, samples: int) -> Iterator[Mixer]:
    """The operations below a term that mix samples."""
    adds = term.name in ADDING and term.kind != "bent"
    for node, linear in _ways(term.node, linear=adds):
        found = _mixes(node, name_of(node), samples, linear=linear)
        if found is not None and not is_of_parameters(node):
            yield found


def is_averaged(term: Term, samples: int) -> bool:
    """Whether what a sum adds up are means over samples, as of each feature."""
    ways = ((node, linear) for node, linear in _ways(term.node, linear=True) if linear and name_of(node) == "Mean")
    return any(_along(node, "Mean", samples) is not None for node, _ in ways)


def _ways(node: Any, *, linear: bool) -> Iterator[tuple[Any, bool]]:
    """What lies below, and whether the loss is linear in it."""
    waiting: deque[tuple[Any, bool]] = deque((one, linear) for one, _ in node.next_functions if one is not None)
    seen = set(waiting)
    while waiting and len(seen) < BELOW_MAX:
        node, linear = waiting.popleft()
        yield node, linear
        name = name_of(node)
        linear = linear and (name in LINEAR or _scales(node, name))
        for one, _ in node.next_functions:
            if one is not None and (one, linear) not in seen:
                seen.add((one, linear))
                waiting.append((one, linear))


def _scales(node: Any, name: str) -> bool:
    """Whether it multiplies by constants or parameters alone."""
    if name not in ("Mul", "Div"):
        return False
    given = [one for one, _ in node.next_functions if one is not None]
    return sum(not is_of_parameters(one) for one in given) <= 1 and (name == "Mul" or _is_first(node))


def _is_first(node: Any) -> bool:
    """Whether what it divides by is no sample."""
    divisor = node.next_functions[1][0] if len(node.next_functions) > 1 else None
    return divisor is None or is_of_parameters(divisor)


def _mixes(node: Any, name: str, samples: int, *, linear: bool) -> Mixer | None:
    if name in ALONG:
        return None if linear and name in ADDING else _along(node, name, samples)
    if name in PRODUCTS:
        return _multiplied(node, name, samples)
    if name in ("Cdist", "EuclideanDist"):
        all_of_them = tuple(node._input_metadata[0].shape)[-2:] == (samples, samples)
        return _operands(node, name) if all_of_them else None
    if name == "Pdist" or (name in BROADCAST and _pairs(node, samples)):
        return Mixer(name)
    standardised = name == "Mul" and _is_standardised(node, samples)
    return Mixer(f"{name} by a standardised factor") if standardised else None


def _along(node: Any, name: str, samples: int) -> Mixer | None:
    """Along the first dimension, or all of them."""
    shape = _given(node)
    if not shape or shape[0] not in (samples, samples * PAIRED):
        return None
    dims = getattr(node, "_saved_dim", None)
    if dims is not None and dims != ():
        along = [c_int64(dim).value % len(shape) for dim in (dims if isinstance(dims, tuple | list) else (dims,))]
        if 0 not in along:
            return None
    return Mixer(name, certain=samples not in shape[1:2])


def _given(node: Any) -> tuple[int, ...]:
    """The shape of what it was given."""
    result = getattr(node, "_saved_result", None)
    if name_of(node) in ("Softmax", "LogSoftmax", "Cumprod") and isinstance(result, torch.Tensor):
        return tuple(result.shape)
    if name_of(node) in ("Cumsum", "Logcumsumexp"):
        return tuple(node._input_metadata[0].shape)
    return shape_of(node)


def _multiplied(node: Any, name: str, samples: int) -> Mixer | None:
    """Samples with samples: over them, or each with each."""
    out, lengths = tuple(node._input_metadata[0].shape), (samples, samples * PAIRED)
    if name in ("Bmm", "Baddbmm") and out[0] != 1:
        return None
    if not ((out[-2] == out[-1] and out[-1] in lengths) or _contracted(node) in lengths):
        return None
    return _operands(node, name)


def _operands(node: Any, name: str) -> Mixer | None:
    """None where one of the two is a parameter, be it in another form."""
    left, right = node.next_functions[-2:]
    if any(one is not None and (is_of_parameters(one) or _is_weight(one, at)) for one, at in (left, right)):
        return None
    if left[0] is not None and right[0] is not None:
        return Mixer(name)
    saved = "self mat1 batch1 x1" if left[0] is None else "mat2 batch2 x2"
    values = [getattr(node, f"_saved_{one}", None) for one in saved.split()]
    constant = next((one for one in values if isinstance(one, torch.Tensor)), None)
    return Mixer(name, token=None if constant is None else float(constant.detach().double().abs().sum()))


def _is_weight(node: Any, at: int) -> bool:
    """Whether it has the shape of a parameter that it was made of without a product: a weight that is normalised."""
    shape = tuple(node._input_metadata[at].shape)
    waiting, looked = deque([node]), 0
    while waiting and looked < WEIGHT_MAX:
        one, looked = waiting.popleft(), looked + 1
        variable = getattr(one, "variable", None)
        if variable is not None and sorted(variable.shape) == sorted(shape) and len(shape) > 1:
            return True
        if name_of(one) not in PRODUCTS:
            waiting.extend(below for below, _ in one.next_functions if below is not None)
    return False


def _contracted(node: Any) -> int:
    """The length that is summed over."""
    for name, at in (("mat2", -2), ("batch2", -2), ("self", -1), ("mat1", -1), ("batch1", -1)):
        sizes = getattr(node, f"_saved_{name}_sym_sizes", None)
        saved = getattr(node, f"_saved_{name}", None)
        if sizes is not None:
            return int(sizes[at])
        if isinstance(saved, torch.Tensor):
            return int(saved.shape[at])
    return 0


def _pairs(node: Any, samples: int) -> bool:
    """Each with each, by broadcasting a row of samples over a column of them."""
    out = tuple(node._input_metadata[0].shape)
    if len(out) < 2 or out[0] != out[1] or out[0] not in (samples, samples * PAIRED):
        return False
    given = [(one, tuple(one._input_metadata[at].shape)) for one, at in node.next_functions if one is not None]
    rows = [(1,) * (len(out) - len(shape)) + shape for one, shape in given if not is_of_parameters(one)]
    return any(shape[:2] == (1, out[0]) for shape in rows) and any(shape[:2] == (out[0], 1) for shape in rows)


def _is_standardised(node: Any, samples: int) -> bool:
    """Whether a constant factor has mean 0 and deviation 1 over these very samples, as advantages are made to have."""
    factor = getattr(node, "_saved_other", None)
    if not isinstance(factor, torch.Tensor) or node.next_functions[-1][0] is not None:
        factor = getattr(node, "_saved_self", None)
        if not isinstance(factor, torch.Tensor) or node.next_functions[0][0] is not None:
            return False
    if not factor.is_floating_point() or factor.numel() < samples or factor.shape[0] != samples or samples < 3:
        return False
    values = factor.detach().double()
    if abs(float(values.mean())) > STANDARD or len(values.unique()) <= 2:  # labels of 1 and -1 may do so by chance
        return False
    return any(abs(float(values.std(correction=correction)) - 1) < STANDARD for correction in (0, 1))
