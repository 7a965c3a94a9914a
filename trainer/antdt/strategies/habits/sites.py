"""What was seen of the losses that a script gives at one of its lines: by what they were divided, for how many samples.

Pure. Must not know graphs, nor what follows.
"""

from __future__ import annotations

from typing import NamedTuple

from antdt_schemas.errors import UsageError

OTHER = (
    "A mean in this loss is over {} for {} samples, and was over {} for {} before: it is divided by something else "
    "than samples. Say by what, agent.step(loss, weight=n), or see reduction='sum'."
)
SAME_MIN, ODD_MIN = 4, 8  # losses


class Seen(NamedTuple):
    """One mean in a loss, or a sum that is divided: of which kind, over how many or by what, for how many samples.
    whole: of that many of all workers, where it is known.
    """

    kind: str
    number: float
    samples: int
    whole: int = 0

    def is_like(self, other: Seen) -> bool:
        """As many for each sample, or as many whatever there are of them (a mean over parameters)."""
        return near(self.number, other.number) or near(self.number, other.number * self.samples / other.samples)

    def differs(self, before: Seen) -> UsageError:
        """What is said of it."""
        return UsageError(OTHER.format(f"{self.number:g}", self.samples, f"{before.number:g}", before.samples))

    @property
    def is_of_all(self) -> bool:
        """Whether it is as many for each sample at hand."""
        return not self.number % self.samples

    def is_like_of_all(self, other: Seen) -> bool:
        """Whether it is as many for each sample of all workers."""
        return bool(self.whole and other.whole) and near(self.number, other.number * self.whole / other.whole)


class Constant:
    """Whether all losses so far were divided by one `number`, and how many `samples` each of them had."""

    def __init__(self) -> None:
        self.number: float | None = None
        self.samples: list[int] = []
        self._varies = False

    def is_found(self, number: float, samples: int, elements: float, whole: int) -> bool:
        """Another loss, a sum over so many elements, was divided by this. Whether it is no chance any more: it is more
        than there were, and the same for other samples, or that of all workers, or has nothing to do with how many
        there are. (As few may be what a mask has left, though hardly time and again.)
        """
        self._varies = self._varies or (self.number is not None and number != self.number)
        if self._varies:
            return False
        self.number, self.samples = number, [*self.samples[-ODD_MIN:], samples]
        others, odd = len(set(self.samples)) > 1, bool(number % samples)
        if number <= elements:
            return len(self.samples) > ODD_MIN and (others or odd)
        return (len(self.samples) >= SAME_MIN and (others or number == whole)) or (len(self.samples) >= ODD_MIN and odd)


class Site:
    """Where a script gives losses, which are alike there: those of a discriminator are none of its generator's.
    `constants`: what was divided by one number so far, by its place among the terms. `first`: the means of the first
    loss. `divided`: the sums of the first one with so many that were divided by no number of samples. `counts`: by what
    each of so many terms was divided first.
    """

    def __init__(self) -> None:
        self.first: list[Seen] = []
        self.divided: dict[int, list[Seen]] = {}
        self.counts: dict[tuple[int, int], Seen] = {}
        self.constants: dict[int, Constant] = {}


def near(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-6 * other
