"""The terms of a loss, read off its graph: means, sums, and what is neither.

A loss is a sum of terms, each of which is reduced from many elements to one number. On the way from the loss to a
reduction are operations on single numbers only; those that are linear leave a mean a mean. What lies below a reduction
is the model, and is not looked at, but to find out whether it has samples in it at all: a penalty on parameters is the
same on every worker.

Must not know samples, members, nor what follows from a term.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch.autograd.function import BackwardCFunction

DEPTH_MAX, TERMS_MAX = 8, 256  # operations on the way to a term, but for the sums that a loop has added up
BELOW_MAX, NEAR = 200, 8  # operations that are looked at
MEAN, SUM = 1, 2  # as torch's loss functions save their reduction
# Operations that leave a mean a mean, or a term of one.
COPIES = "ToCopy View ReshapeAlias Alias Clone Squeeze Unsqueeze"
ADDED = tuple(f"{one}Backward" for one in f"{COPIES} Add Sub Rsub Neg Stack Cat".split())
# Operations that are not linear: of many numbers, or of one.
OF_ONE = "Sqrt Rsqrt Pow Exp Expm1 Log Log2 Log10 Log1P Abs Relu Clamp Reciprocal Maximum Minimum Sigmoid Tanh Softplus"
OF_MANY = "Max Min Amax Amin Norm LinalgVectorNorm Std Var Logsumexp LogSigmoid"
BENT = tuple(f"{one}Backward" for one in f"{OF_ONE} {OF_MANY}".split())
ELEMENTWISE = ("AddBackward", "SubBackward", "RsubBackward", "MulBackward", "DivBackward")
LOOKS_UP = ("EmbeddingBackward", "IndexBackward", "GatherBackward", "TakeBackward")
GATHERED = "_GatheredBackward"


class Term(NamedTuple):
    """kind: "mean"; "sum", which perhaps was divided; "bent" where it is not linear in a mean; "hidden" where a
    function of its own has made it. node: its reduction, or where it is not linear. divisors: by what it was divided on
    the way, the last of them first; factor: by what it was multiplied.
    """

    kind: Literal["mean", "sum", "bent", "hidden"]
    node: Any
    divisors: tuple[float, ...]
    factor: float

    @property
    def name(self) -> str:
        """Of the operation, without its number."""
        name: str = self.node.name()
        return name.rstrip("0123456789").removesuffix("Backward").removeprefix("torch::autograd::")

    @property
    def number(self) -> float:
        """Of elements that it was reduced from; of a weighted loss, their weights."""
        total = getattr(self.node, "_saved_total_weight", None)
        return float(math.prod(shape_of(self.node))) if total is None else float(total)


class _At(NamedTuple):
    """A place on the way: see Term. depth: operations behind it, but for sums."""

    node: Any
    divisors: tuple[float, ...] = ()
    factor: float = 1.0
    depth: int = 0


def terms(node: Any) -> Iterator[Term]:
    """All that are found within DEPTH_MAX operations, TERMS_MAX at most. Raises RuntimeError where the graph was
    freed.
    """
    waiting, seen = [_At(node)], 0
    while waiting and seen < 2 * TERMS_MAX:
        seen += 1
        for one in _next(waiting.pop()):
            if isinstance(one, Term):
                yield one
            else:
                waiting.append(one)


def _next(at: _At) -> Iterator[Term | _At]:
    """What a place is made of, the first one last."""
    node, divisors, factor, depth = at
    name, before = node.name(), [one for one, _ in node.next_functions if one is not None]
    reduction = getattr(node, "_saved_reduction", None)
    if depth > DEPTH_MAX:
        return
    if name.startswith(ADDED):
        for one in reversed(before):
            yield _At(one, divisors, factor, depth if len(before) > 1 else depth + 1)
    elif name.startswith(("MulBackward", "DivBackward")):
        yield from _scaled(at, before)
    elif reduction in (MEAN, SUM):
        yield Term("mean" if reduction == MEAN else "sum", node, divisors, factor)
    elif name.startswith(("SumBackward", "MeanBackward")):
        if before and before[0].name().startswith(("StackBackward", "CatBackward")) and _is_of_numbers(before[0]):
            numbers = (float(math.prod(shape_of(node))),) if name.startswith("Mean") else ()
            yield _At(before[0], divisors + numbers, factor, depth + 1)
        else:
            yield Term("mean" if name.startswith("Mean") else "sum", node, divisors, factor)
    elif name.startswith("DotBackward"):
        yield Term("sum", node, divisors, factor)
    elif isinstance(node, BackwardCFunction) and name != GATHERED:
        yield Term("hidden", node, divisors, factor)
    elif name.startswith(BENT):
        yield Term("bent", node, divisors, factor)


def _scaled(at: _At, before: list[Any]) -> Iterator[Term | _At]:
    """By a constant, or by what follows from parameters alone (a learned weight of a term)."""
    node, divisors, factor, depth = at
    divides, of_samples = node.name().startswith("DivBackward"), before
    if len(before) == 1:
        number = _number(node)
        if number is not None and divides:
            divisors = (*divisors, number)
        elif number is not None:
            factor *= number
    else:
        of_samples = [one for one in before if not is_of_parameters(one)]
    divisor = node.next_functions[1][0] if divides and len(node.next_functions) > 1 else None
    if len(of_samples) > 1 or (divisor is not None and divisor in of_samples):
        yield Term("bent", node, divisors, factor)
    elif of_samples:
        yield _At(of_samples[0], divisors, factor, depth + 1)


def _number(node: Any) -> float | None:
    """The constant that it multiplies or divides by, where that is one number."""
    other = getattr(node, "_saved_other", None)
    if isinstance(other, torch.Tensor):
        return float(other) if other.numel() == 1 else None
    return None if other is None else float(other)


# -- what lies below


def shape_of(node: Any) -> tuple[int, ...]:
    """Of what a reduction was given, as far as it says it."""
    sizes = getattr(node, "_saved_self_sym_sizes", None)
    if sizes is not None:
        return tuple(sizes)
    saved = getattr(node, "_saved_self", None)
    if isinstance(saved, torch.Tensor):
        return tuple(saved.shape)
    numel = getattr(node, "_saved_self_sym_numel", None)
    if numel is not None:
        return (int(numel),)
    one, at = node.next_functions[0] if node.next_functions else (None, 0)
    return () if one is None else tuple(one._input_metadata[at].shape)


def below(node: Any, count: int = BELOW_MAX) -> Iterator[Any]:
    """It and what it was made of, the nearest first, each once."""
    seen, waiting = {node}, deque([node])
    while waiting and len(seen) < count:
        node = waiting.popleft()
        yield node
        for one, _ in node.next_functions:
            if one is not None and one not in seen:
                seen.add(one)
                waiting.append(one)
    yield from waiting


def is_of_parameters(node: Any) -> bool:
    """Whether no sample is in it: all that it was made of is parameters, and constants that are shaped like them."""
    for one in below(node):
        if isinstance(one, BackwardCFunction) or one.name().startswith(LOOKS_UP):
            return False
        if not hasattr(one, "variable") and (not one.next_functions or _has_samples(one)):
            return False
    return True


def _has_samples(node: Any) -> bool:
    """Whether a constant has come in that gives it another shape, as samples do and a target or a mask does not."""
    given = [(one, at) for one, at in node.next_functions if one is not None]
    if len(given) == len(node.next_functions):
        return False
    if not node.name().startswith(ELEMENTWISE):
        return True
    shapes = [tuple(one._input_metadata[at].shape) for one, at in given]
    return tuple(node._input_metadata[0].shape) not in shapes


def is_of_one_sample(node: Any) -> bool:
    """Whether it was made of single samples that a script has taken out of the batch."""
    return any(_takes_out(one) for one in below(node, NEAR))


def _takes_out(node: Any) -> bool:
    name = node.name()
    if name.startswith(("UnbindBackward", "SplitBackward")):
        return True
    if getattr(node, "_saved_dim", None) != 0:
        return False
    if name.startswith("SliceBackward"):
        return bool(node._input_metadata[0].shape[0] < node._saved_self_sym_sizes[0])
    return bool(name.startswith("SelectBackward"))


def is_gathered(node: Any) -> bool:
    """Whether rows of all workers are in it."""
    return any(one.name() == GATHERED for one in below(node))


def _is_of_numbers(stack: Any) -> bool:
    """Whether single numbers were put together, and not tensors of many."""
    given = [(one, at) for one, at in stack.next_functions if one is not None]
    return all(math.prod(one._input_metadata[at].shape) == 1 for one, at in given)
