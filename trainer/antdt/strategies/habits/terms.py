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
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch.autograd.function import BackwardCFunction

DEPTH_MAX, NODES_MAX = 8, 8192
BELOW_MAX, NEAR = 8192, 8  # operations that are looked at
PENALTY_DEPTH_MAX = 64  # operations between a penalty on parameters and one of them
MEAN, SUM = 1, 2  # as torch's loss functions save their reduction
# Operations that leave a mean a mean, or a term of one.
COPIES = "ToCopy View ReshapeAlias UnsafeView Alias Clone Squeeze Unsqueeze Permute Transpose T Select Index Unbind"
ADDED = tuple(f"{one}Backward" for one in f"{COPIES} Add Sub Rsub Neg Stack Cat".split())
# Operations that are not linear: of many numbers, or of one.
OF_ONE = (
    "Sqrt Rsqrt Pow Exp Expm1 Log Log2 Log10 Log1P Abs Relu Clamp Reciprocal Maximum Minimum Sigmoid LogSigmoid Tanh "
    "Softplus"
)
OF_MANY = "Max Min Amax Amin Norm LinalgVectorNorm Std Var Logsumexp"
BENT = tuple(f"{one}Backward" for one in f"{OF_ONE} {OF_MANY}".split())
ELEMENTWISE = ("AddBackward", "SubBackward", "RsubBackward", "MulBackward", "DivBackward")
LOOKS_UP = ("EmbeddingBackward", "IndexBackward", "GatherBackward", "TakeBackward")
GATHERED = "_GatheredBackward"
PRODUCTS = ("DotBackward", "VdotBackward", "BmmBackward", "MmBackward")


class Term(NamedTuple):
    """kind: "mean"; "sum", which perhaps was divided; "bent" where it is not linear in a mean; "hidden" where a
    function of its own has made it. node: its reduction, or where it is not linear. divisors: by what it was divided on
    the way, the last of them first; factor: by what it was multiplied. parts: of the samples that a script adds up one
    by one; 0 where it does not.
    """

    kind: Literal["mean", "sum", "bent", "hidden"]
    node: Any
    divisors: tuple[float, ...]
    factor: float
    parts: int = 0

    @property
    def name(self) -> str:
        """Of the operation, without its number."""
        return name_of(self.node)

    @property
    def number(self) -> float:
        """Of elements that it was reduced from; of a weighted loss, their weights."""
        if self.parts:
            return float(self.parts)
        weights = self.weights
        return float(math.prod(shape_of(self.node))) if weights is None else weights

    @property
    def weights(self) -> float | None:
        """Of all elements of a weighted loss together; None of another one."""
        total = getattr(self.node, "_saved_total_weight", None)
        return None if total is None else float(total)


def name_of(node: Any) -> str:
    """Of an operation, without its number."""
    return _without_number(node.name())


@lru_cache(maxsize=1024)
def _without_number(name: str) -> str:
    return name.rstrip("0123456789").removesuffix("Backward").removeprefix("torch::autograd::")


def mean_of(node: Any) -> Term | None:
    """The term of a loss that is one of torch's means, and nothing else; None of another one. Raises as `terms`."""
    return Term("mean", node, (), 1.0) if getattr(node, "_saved_reduction", None) == MEAN else None


def terms(node: Any) -> Iterator[Term]:
    """All of them, in order, within DEPTH_MAX operations that are no sums, and NODES_MAX of all. Raises RuntimeError
    where the graph was freed.
    """
    waiting: list[_Way] = [_Way(node)]
    looked = 0
    while waiting and looked < NODES_MAX:
        way, looked = waiting.pop(), looked + 1
        if way.depth > DEPTH_MAX:
            continue
        found = _term(way)
        if isinstance(found, Term):
            yield found
        else:
            waiting.extend(reversed(found))


class _Way(NamedTuple):
    """From the loss to an operation."""

    node: Any
    divisors: tuple[float, ...] = ()
    factor: float = 1.0
    depth: int = 0

    def to(self, nodes: list[Any]) -> list[_Way]:
        """Further on. A sum of many is as deep as it has terms, and no way is lost in it."""
        deeper = 0 if self.node.name().startswith(("AddBackward", "SubBackward")) else 1
        return [self._replace(node=one, depth=self.depth + deeper) for one in nodes]


def _term(way: _Way) -> Term | list[_Way]:
    """The term that this operation is, or where to look for those that it is made of."""
    node, divisors, factor, _ = way
    # At every step: most losses are torch's, and what the others ask is not asked of them.
    reduction = getattr(node, "_saved_reduction", None)
    if reduction in (MEAN, SUM):
        return Term("mean" if reduction == MEAN else "sum", node, divisors, factor)
    name, before = node.name(), [one for one, _ in node.next_functions if one is not None]
    if name.startswith(("SumBackward", "MeanBackward", "NansumBackward")):
        if before and before[0].name().startswith(("StackBackward", "CatBackward")) and _is_of_numbers(before[0]):
            numbers = (float(math.prod(shape_of(node))),) if name.startswith("Mean") else ()
            return way._replace(divisors=divisors + numbers).to(before[:1])
        return Term("mean" if name.startswith("Mean") else "sum", node, divisors, factor)
    if name.startswith(("MulBackward", "DivBackward")):
        return _scaled(way, before)
    if isinstance(node, BackwardCFunction) and name != GATHERED:
        return Term("hidden", node, divisors, factor)
    if name.startswith(BENT):
        return Term("bent", node, divisors, factor)
    if name.startswith(ADDED) or (before and _is_of_numbers(node)):
        return way.to(before)
    if name.startswith(PRODUCTS):
        return Term("sum", node, divisors, factor)
    return Term("bent", node, divisors, factor) if before and name != GATHERED else []


def _scaled(way: _Way, before: list[Any]) -> Term | list[_Way]:
    """By a constant, or by what follows from parameters alone (a learned weight of a term)."""
    node, divisors, factor, _ = way
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
        return Term("bent", node, divisors, factor)
    return way._replace(divisors=divisors, factor=factor).to(of_samples)


def merged(found: list[Term], samples: int) -> list[Term]:
    """Terms that a script adds up one by one, a sample each, are one sum over all of them."""
    if samples < 2 or len(found) < samples:
        return found
    alike: dict[Any, list[Term]] = {}
    for term in found:
        alike.setdefault((term.name, term.divisors, term.factor, is_of_one(term)), []).append(term)
    out = list[Term]()
    for (_, _, _, of_one), some in alike.items():
        whole = of_one and len(some) == samples
        out += [some[0]._replace(kind="sum", parts=samples)] if whole else some
    return out


def is_of_one(term: Term) -> bool:
    """Whether it is the loss of one sample."""
    return term.kind in ("mean", "sum") and (shape_of(term.node)[:1] in ((), (1,)) or is_of_one_sample(term.node))


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
    """Whether no sample is in it: all that it was made of is parameters, and constants that are shaped like them. What
    is deeper than any penalty is a model.
    """
    seen, level = {node}, [node]
    for _ in range(PENALTY_DEPTH_MAX):
        following = list[Any]()
        for one in level:
            if hasattr(one, "variable"):
                continue
            if isinstance(one, BackwardCFunction) or one.name().startswith(LOOKS_UP):
                return False
            if not one.next_functions or _has_samples(one):
                return False
            following += [found for found, _ in one.next_functions if found is not None and found not in seen]
            seen.update(following)
        level = list(dict.fromkeys(following))
        if not level or len(seen) > BELOW_MAX:
            break
    return not level


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
