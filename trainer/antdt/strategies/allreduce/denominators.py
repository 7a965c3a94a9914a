"""What a loss was divided by, as far as its graph tells: the number of its samples, or something else.

A mean over tokens, boxes or class weights is no mean over samples: gradients that are weighed by samples then add up to
another model than one process would make of the same batch. Where the loss itself is such a mean its weight is read off
(`torch.nn.functional.cross_entropy` with `ignore_index` or `weight`, a sum that is divided by a tensor). Where it is a
term of the loss, or a mean over elements, it is refused as soon as it shows. What torch.compile has put together, and
what was divided by a plain number, is not seen.

Must not know members, nor what a weight is used for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from antdt_schemas.errors import UsageError

DEPTH_MAX = 8
MEAN = 1  # as torch's loss functions save their reduction
# Operations that leave a mean a mean, or a term of one.
COPIES = ("ToCopyBackward", "ViewBackward", "ReshapeAliasBackward", "AliasBackward", "SqueezeBackward", "CloneBackward")
TERMS = (*COPIES, "AddBackward", "SubBackward", "MulBackward", "DivBackward", "NegBackward")
OTHER = (
    "A mean in this loss is over {} for {} samples, and was over {} for {} before: it is divided by something else "
    "than samples. Say by what, agent.step(loss, weight=n), or see reduction='sum'."
)

SQUARE_MIN = 8  # of fewer samples the classes may be 0, 1, 2, ... by chance
COMPARES = (
    "This loss compares the samples of this worker's part of a batch with each other, so each split has another one: "
    "compare them with those of all workers, keys = agent.gather(features), whose own rows are agent.own_rows."
)


class Seen(NamedTuple):
    """One mean in a loss: of which kind, over how many, for how many samples."""

    kind: str
    number: float
    samples: int

    def is_like(self, other: Seen) -> bool:
        """As many for each sample, or as many whatever there are of them (a mean over parameters)."""
        return self.number in (other.number, other.number * self.samples / other.samples)


class Denominators:
    """Of the losses of one script, each of `samples`."""

    def __init__(self) -> None:
        self._first: list[Seen] = []

    def of(self, loss: torch.Tensor, samples: int, *, alone: bool) -> float | None:
        """What this loss was divided by; None for samples, or where nothing else is seen. alone: no other worker has
        samples of this step.

        Raises UsageError where it is seen that samples are wrong, and not what is right.
        """
        if loss.grad_fn is None:
            return None
        square = 0 if alone else samples
        with suppress(RuntimeError):  # the graph was freed: backward says so
            whole = _whole(loss.grad_fn, square)
            if whole is not None:
                return whole
            self._check([Seen(kind, number, samples) for kind, number in _means(loss.grad_fn, square)])
        return None

    def _check(self, found: list[Seen]) -> None:
        if [one.kind for one in found] != [one.kind for one in self._first]:
            self._first = self._first or found
            return
        for one, before in zip(found, self._first, strict=True):
            if not one.is_like(before):
                raise UsageError(OTHER.format(f"{one.number:g}", one.samples, f"{before.number:g}", before.samples))


def _whole(node: Any, square: int) -> float | None:
    """The denominator, where the loss is nothing but one mean that says it."""
    for _ in range(DEPTH_MAX):
        if not node.name().startswith(COPIES):
            break
        node = node.next_functions[0][0]
        if node is None:
            return None
    if node.name().startswith("NllLoss") and node._saved_reduction == MEAN:
        return _of_classes(node, square)
    divisor = getattr(node, "_saved_other", None)
    if node.name().startswith("DivBackward") and isinstance(divisor, torch.Tensor) and divisor.numel() == 1:
        above = node.next_functions[0][0]
        if above is not None and above.name().startswith("SumBackward0") and not divisor.requires_grad:
            return max(0.0, float(divisor))
    return None


def _means(node: Any, square: int, depth: int = 0) -> Iterator[tuple[str, float]]:
    name = node.name()
    if name.startswith("NllLoss") and node._saved_reduction == MEAN:
        yield name, _of_classes(node, square)
    elif name == "MeanBackward0":
        yield name, float(node._saved_self_sym_numel)
    elif getattr(node, "_saved_reduction", None) == MEAN and isinstance(
        getattr(node, "_saved_self", None), torch.Tensor
    ):
        yield name, float(node._saved_self.numel())
    elif depth < DEPTH_MAX and name.startswith(TERMS):
        for before, _ in node.next_functions:
            if before is not None:
                yield from _means(before, square, depth + 1)


def _of_classes(node: Any, square: int) -> float:
    """Of a negative log-likelihood. square: so many samples, which must not be its classes as well; 0 if they may."""
    target = node._saved_target
    compares = square >= SQUARE_MIN and tuple(node._saved_self.shape) == (square, square)
    if compares and torch.equal(target, torch.arange(square, device=target.device)):
        raise UsageError(COMPARES)
    return float(node._saved_total_weight)
