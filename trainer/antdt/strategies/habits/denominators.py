"""What a loss was divided by, as far as its graph tells: the number of its samples, or something else.

A mean over tokens, boxes or class weights is no mean over samples: gradients that are weighed by samples then add up to
another model than one process would make of the same batch. Where the loss itself is such a mean its weight is read off
(`torch.nn.functional.cross_entropy` with `ignore_index` or `weight`, a sum that is divided). Where that cannot be, or
no weight would make it right, it is refused as soon as it shows: a sum, a mean over elements, terms that are divided by
different things, a root of a mean, samples that are compared with each other, and what a function of its own
(torch.compile) has put together.

Must not know members, nor what a weight is used for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from antdt_schemas.errors import UsageError

from antdt.strategies.habits import guard
from antdt.strategies.habits.mixing import Mixing, is_averaged, mixers
from antdt.strategies.habits.provenance.watcher import CARRIED, Watcher, line_of_script
from antdt.strategies.habits.sites import Constant, Seen, Site, near
from antdt.strategies.habits.terms import (
    Term,
    is_gathered,
    is_of_one,
    is_of_one_sample,
    is_of_parameters,
    mean_of,
    merged,
    shape_of,
    terms,
)
from antdt.strategies.habits.weights import Weights

COMPARES = (
    "This loss compares the samples of this worker's part of a batch with each other, so each split has another one: "
    "compare them with those of all workers, keys = agent.gather(features), whose own rows are agent.own_rows. (Where "
    "it does not, say agent.step(loss, weight=len(x)).)"
)
MIXES = (
    "This loss puts the samples of this worker's part of a batch together ({}), so each split has another one: compute "
    "it over those of all workers, agent.gather(outputs) and agent.gather(targets). (Where it is one number for each "
    "sample, say agent.step(loss, weight=len(x)).)"
)
UNSEEN = (
    "This loss depends on a value without a gradient that is of all samples of this worker's part of a batch ({}), so "
    "each split has another one: make it of those of all workers, agent.gather(values), which need no gradient, or, of "
    "a mean or the gradient of one, agent.all_reduce(len(x) * mean) / agent.all_reduce(len(x)). (Where it is the same "
    "for each split, say agent.step(loss, weight=len(x)).)"
)
CARRIES = (
    "This loss depends on {}, which the Agent does not know: each worker has its own, and one that comes later begins "
    "with another. Make it a parameter or buffer of a module that the Agent is given, antdt.Agent([model, teacher], "
    "...), or pass it as antdt.Agent(..., state={{'teacher': teacher}}), and change it in a function under "
    "@agent.on_step. (Where it is the same on all workers at every step, say agent.step(loss, weight=len(x)).)"
)
SPOILED = (
    "Buffer {0} is given {1}, and becomes the mean over the workers of what each has there (of whole numbers, the "
    "largest): put in those of all workers, agent.gather(rows) or agent.all_reduce(total), or say what it is, "
    "antdt.Agent(..., buffers={{'{0}': 'sum'}}) where what each adds is to be added up, 'first', 'local', or 'mean'."
)
SUMMED = (
    "This loss is a sum over the micro-batch, agent.step(loss) weighs means by their samples: use reduction='mean', "
    "divide it by the number of samples in the batch, or say what it is: agent.step(loss, reduction='sum') where "
    "nothing shall divide it."
)
CONSTANT = (
    "This loss is a sum over {} samples that is divided by {:g}, as it was before with {}: that is no mean over what "
    "this worker has, and its parts are to be added up. Say agent.step(loss, reduction='sum'), or divide by what is in "
    "the batch. (Where it is what this batch has, say agent.step(loss, weight=n).)"
)
BENT = (
    "This loss is not linear in a mean or sum over the batch ({}), so parts of a batch do not add up to the whole: "
    "compute it over the rows of all workers, agent.gather(outputs) and agent.gather(targets), or take the mean last. "
    "(Where it is one number for each sample, say agent.step(loss, weight=len(x)).)"
)
HIDDEN = (
    "This loss was put together by {}, and what it was divided by cannot be seen: say it, "
    "agent.step(loss, weight=len(x)) for a mean over samples, weight=n for one over n tokens or boxes. (Where the loss "
    "is outside of what is compiled, nothing needs to be said.)"
)
CLAMPED = (
    "A sum in this loss is divided by 1 for {} samples. If that is a number of tokens or boxes that is kept above zero "
    "(clamp(min=1), max(1, n)), parts of a batch that have none would count as if they had one: divide by what all "
    "workers have, agent.step(total / max(1, agent.all_reduce(n)), reduction='sum'). (Where it is what this batch has, "
    "say agent.step(loss, weight=n).)"
)
CHANCE = 16.0  # as the negative of a logarithm: what is rarer than that is no chance
SITES_MAX = 64


class Denominators:
    """Of the losses of one script, each of `samples`. `_surprise`: how unlikely it is by now that targets are numbers
    of samples by chance. `_sites`: by line of the script, and how many optimizers have stepped before it in the body.
    `watcher`: of what has no graph.
    """

    def __init__(self, watcher: Watcher | None = None, carries: str = CARRIES) -> None:
        """carries: what is said of a value that is carried from batch to batch."""
        self.watcher, self._carries = watcher or Watcher(), carries
        self._sites: dict[tuple[tuple[str, int], int], Site] = {}
        self._site = Site()
        self._surprise = 0.0
        self._mixing = Mixing()

    def weigh(
        self,
        weights: Weights,
        loss: torch.Tensor,
        samples: int,
        weight: float | None,
        *,
        summed: bool = False,
        alone: bool,
        whole: int = 0,
    ) -> float:
        """What a loss of the micro-batch at hand weighs among these. See `of` and Weights.of. Raises UsageError."""
        guard.check_loss(loss)
        if weight is None and not summed:
            at = line_of_script(), weights.updates
            self._site = self._sites.get(at) or (
                self._sites.setdefault(at, Site()) if len(self._sites) < SITES_MAX else self._site
            )
            weight = self.of(loss, samples, alone=alone, whole=whole)
        return weights.of(samples, weight, summed=summed)

    def of(self, loss: torch.Tensor, samples: int, *, alone: bool, whole: int = 0) -> float | None:
        """What this loss was divided by; None for samples, or where nothing else is seen. alone: this micro-batch is
        the whole step of all workers. whole: samples of that step, where they are known.

        Raises UsageError where it is seen that samples are wrong, and not what is right.
        """
        node = loss.grad_fn
        if node is None:
            return None
        try:
            one = mean_of(node)
            if one is not None:
                return self._of_mean(loss, one, samples, alone=alone, whole=whole)
            return self._of_terms(loss, list(terms(node)), samples, alone=alone, whole=whole)
        except RuntimeError:  # the graph was freed: backward says so
            return None

    def _of_mean(self, loss: torch.Tensor, term: Term, samples: int, *, alone: bool, whole: int) -> float | None:
        """As `_of_terms` of this one alone, which nothing divides: most losses, at every step."""
        self._refuse(term, samples, alone=alone)
        self._refuse_mixed(loss, [term], samples, alone=alone)
        weights = term.weights
        if weights is None:
            self._check([term], samples, whole)
        return weights

    def _of_terms(
        self, loss: torch.Tensor, found: list[Term], samples: int, *, alone: bool, whole: int
    ) -> float | None:
        found = merged([term for term in found if not _is_of_no_sample(term)], samples)
        for term in found:
            self._refuse(term, samples, alone=alone)
        self._refuse_mixed(loss, found, samples, alone=alone)
        found = _over_all(found, samples)
        counts = [self._count(at, term, samples, whole) for at, term in enumerate(found)]
        same = bool(counts) and counts[0] is not None and counts.count(counts[0]) == len(counts)
        for at, (term, count) in enumerate(zip(found, counts, strict=True)):
            if count and term.kind == "sum" and not is_of_one(term):
                self._check_count((len(found), at), Seen("sum", count, samples), same=same)
        if same:
            if counts[0] == 1 and not (alone or samples == 1 or all(_is_one(term, samples) for term in found)):
                raise UsageError(CLAMPED.format(samples))
            return counts[0]
        self._check([term for term in found if term.kind == "mean"], samples, whole)
        divided = _divided(found, counts, samples)
        for one, before in zip(divided, self._site.divided.setdefault(len(divided), divided), strict=True):
            if not one.is_like(before):
                raise one.differs(before)
        return None

    def _check_count(self, place: tuple[int, int], one: Seen, *, same: bool) -> None:
        """By what one of so many terms is divided, which now and then is all samples there are: of two, half of the
        time. same: so are the others, and it is what the loss weighs. Raises UsageError.
        """
        before = self._site.counts.get(place, one) if same else self._site.counts.setdefault(place, one)
        if not (one.is_like(before) or (one.is_of_all and before.is_of_all)):
            raise one.differs(before)

    def _refuse_mixed(self, loss: torch.Tensor, found: list[Term], samples: int, *, alone: bool) -> None:
        """Raises UsageError where a script puts samples of one batch together below these, with a graph or without; or
        those of several, which nobody has alone.
        """
        entered = self.watcher.found(loss) if self.watcher.knows else ""
        if CARRIED in entered:
            raise UsageError(self._carries.format(entered))
        if alone or samples < 2:
            return
        if self._mixing.is_due(found):
            name = self._mixing.found([term for term in found if not is_gathered(term.node)], samples)
            if name:
                raise UsageError(MIXES.format(name))
        if self._mixing.is_new:
            self.watcher.look_again()
        if entered:
            raise UsageError(UNSEEN.format(entered))
        name, given = self.watcher.spoiled() if self.watcher.knows else ("", "")
        if name:
            raise UsageError(SPOILED.format(name, given))

    def _refuse(self, term: Term, samples: int, *, alone: bool) -> None:
        """Raises UsageError for what no weight makes right."""
        if term.kind == "hidden":
            raise UsageError(HIDDEN.format("torch.compile" if term.name.startswith("Compiled") else term.name))
        if term.kind == "sum" and _is_undivided(term, samples) and not is_gathered(term.node):
            mixer = None if alone or samples < 2 else next(mixers(term, samples), None)
            raise UsageError(SUMMED if mixer is None else MIXES.format(mixer.name))
        if alone or samples == 1:
            return
        if term.kind == "bent" and not is_of_one_sample(term.node) and not is_gathered(term.node):
            raise UsageError(BENT.format(term.name))
        if term.kind == "mean" and self._surprise >= 0:
            self._surprise = max(-1.0, self._surprise + _surprise(term, samples))
            if self._surprise >= CHANCE and not is_gathered(term.node):
                raise UsageError(COMPARES)

    def _count(self, at: int, term: Term, samples: int, whole: int) -> float | None:
        """What it was divided by, where that is seen. Raises UsageError where it is the same for all there is."""
        if term.kind == "mean":
            return term.weights
        if term.kind != "sum" or not term.divisors:
            return None
        if _is_of_elements(term, samples):
            return float(samples)
        number, constant = max(0.0, term.divisors[-1]), self._site.constants.setdefault(at, Constant())
        if constant.is_found(number, samples, term.number, whole):
            raise UsageError(CONSTANT.format(samples, number, constant.samples[-2]))
        return number

    def _check(self, found: list[Term], samples: int, whole: int) -> None:
        """Raises UsageError where one of them is over another number for each sample than before."""
        seen, site = [Seen(term.name, term.number, samples, whole) for term in found], self._site
        if seen == site.first:
            return
        if [one.kind for one in seen] != [one.kind for one in site.first]:
            site.first = site.first or seen
            return
        for term, one, before in zip(found, seen, site.first, strict=True):
            if one.is_like(before) or (one.is_like_of_all(before) and is_gathered(term.node)):
                continue
            raise one.differs(before)


def _divided(found: Sequence[Term], counts: Sequence[float | None], samples: int) -> list[Seen]:
    """The sums in a loss of several terms that were divided by what is no number of samples, nor a multiple. Those of
    single samples count as one, where all of them were divided by the same: else each has a number of its own.
    """
    whole, single = list[float](), list[float]()
    for term, count in zip(found, counts, strict=True):
        if term.kind == "sum" and count and count % samples and not _is_divided_by(term, samples):
            (single if is_of_one_sample(term.node) else whole).append(count)
    if len(single) > 1 and single.count(single[0]) == len(single):
        whole.append(single[0])
    return [Seen("sum", count, samples) for count in whole]


def _over_all(found: Sequence[Term], samples: int) -> list[Term]:
    """Those over what all samples have. Left out are those of one sample each, which were divided by the number of
    samples, where there are as many: together they are a mean over samples, whatever each of them is over.
    """
    each = [term.kind in ("mean", "sum") and _is_divided_by(term, samples) for term in found]
    alike = Counter(term.name for term, one in zip(found, each, strict=True) if one)
    return [term for term, one in zip(found, each, strict=True) if not one or alike[term.name] < samples]


def _is_divided_by(term: Term, samples: int) -> bool:
    if any(near(one, samples) for one in term.divisors):
        return True
    # The weight of a term, 0.1 of ten samples, may be that by chance; that of the loss of one sample is none.
    return samples > 1 and near(1 / (term.factor or 1.0), samples) and is_of_one(term)


def _is_one(term: Term, samples: int) -> bool:
    """Whether a sum that is divided by 1 is of one thing, or of one sample that is divided by their number as well."""
    if _is_divided_by(term, samples) or is_of_one_sample(term.node) or term.number == 1:
        return True
    product = term.node.next_functions[0][0] if term.node.next_functions else None
    masks = [getattr(product, f"_saved_{name}", None) for name in ("self", "other")]
    return any(isinstance(mask, torch.Tensor) and float(mask.detach().double().sum()) == 1 for mask in masks)


def _is_of_no_sample(term: Term) -> bool:
    """Whether it is the same on all workers, whatever samples they have."""
    return term.kind in ("sum", "bent") and is_of_parameters(term.node)


def _is_undivided(term: Term, samples: int) -> bool:
    """Whether it adds up what samples have, and nothing has divided it by what could be their number."""
    if samples == 1 or term.number % samples or (not term.parts and is_of_one_sample(term.node)):
        return False
    inverse = 1 / (term.factor or 1.0)
    if term.divisors or near(inverse, samples) or near(inverse, term.number):
        return False
    return bool(term.parts) or not is_averaged(term, samples)


def _is_of_elements(term: Term, samples: int) -> bool:
    """Whether it is a mean over samples, or over all elements of them, which are as many for each."""
    nearest, *others = reversed(term.divisors)
    if near(nearest, samples) or (near(nearest, term.number) and not term.number % samples):
        return True
    return near(math.prod(term.divisors), term.number) and any(near(one, samples) for one in others)


def _surprise(term: Term, samples: int) -> float:
    """How unlikely it is by chance, as the negative of a logarithm, that these targets are other samples; minus
    infinity where they are not.
    """
    target, shape = getattr(term.node, "_saved_target", None), shape_of(term.node)
    if term.name != "NllLoss" or target is None or len(shape) != 2:
        return 0.0
    rows, classes = shape
    if classes == rows - 1 and not target.any():  # the positive first, then the negatives
        return rows * math.log(classes)
    if classes != rows or rows % samples:
        return -math.inf
    numbers = torch.arange(rows, device=target.device)
    if torch.equal(target, numbers):
        return rows * math.log(rows)
    if torch.equal(target.sort().values, numbers):
        return rows * math.log(rows) - math.lgamma(rows + 1)
    return -math.inf
