"""What the losses of one member's part of a step weigh: each micro-batch counts once, however many losses it has.

Pure. It must not know tensors, nor what others weigh.
"""

from __future__ import annotations

from antdt_schemas.errors import UsageError

MIXED = (
    "Losses of one step are sums and means: pass all of them with reduction='sum', each divided by what all workers "
    "have of its denominator, agent.all_reduce(n)."
)

EXACT = 2.0**20  # a sum of 2^33 at most has room for these digits


class Weights:
    """Of the step that is open. `total`: what its micro-batches weigh so far; `samples`: how many they have; `parts`:
    how many there were. `updates`: how often optimizers have stepped before its end. `reason`: why the script wants the
    step skipped, or None. `bare`: its gradients were applied before its end.
    """

    def __init__(self, *, rounded: bool = False) -> None:
        """rounded: to so few digits that sums of them are exact, in whatever order."""
        self._rounded = rounded
        self.clear()

    def clear(self) -> None:
        """No step is open."""
        self.total, self.samples, self.parts, self.updates = 0.0, 0, 0, 0
        self.reason: str | None = None
        self.bare = False
        self._summed: bool | None = None
        self._at_hand: float | None = None

    @property
    def summed(self) -> bool:
        """Whether nothing divides the sum of all gradients."""
        return bool(self._summed)

    @property
    def counts_nothing(self) -> bool:
        """Whether no gradient is expected."""
        return self.bare or self.reason is not None or (self.total == 0 and not self._summed)

    def of(self, samples: int, weight: float | None, *, summed: bool) -> float:
        """What a loss of the micro-batch at hand weighs.

        Raises UsageError where another loss of it weighs something else: they would have to be divided apart.
        """
        if summed and weight is not None:
            raise UsageError("A loss with reduction='sum' has no weight: nothing is divided. Leave weight out.")
        if self._summed is not None and self._summed != summed and not (self.bare and self._at_hand is None):
            raise UsageError(MIXED)
        weight = 1.0 if summed else float(samples) if weight is None else weight
        if self._rounded:
            weight = round(weight * EXACT) / EXACT
        if self._at_hand not in (None, weight):
            raise UsageError(
                f"Two losses of one batch weigh {self._at_hand:g} and {weight:g}, and would be divided by one number: "
                "divide each by what all workers have of its denominator, agent.all_reduce(n), and pass them with "
                "reduction='sum'."
            )
        self._summed, self._at_hand = summed, weight
        return weight

    def through(self, samples: int) -> None:
        """No other loss of this micro-batch follows."""
        self.total += float(samples) if self.bare else self._at_hand or 0.0
        self.samples, self.parts = self.samples + samples, self.parts + 1
        self._at_hand = None

    def updated(self) -> float:
        """The gradients so far are applied, and forgotten. Returns what they weigh."""
        if self._at_hand is None:
            raise UsageError("There is no gradient to apply: call agent.backward(loss) before agent.apply(optimizer).")
        weight, self._at_hand, self.bare = self._at_hand, None, True
        self.updates += 1
        return weight

    def skip(self, samples: int, reason: str) -> None:
        """The micro-batch at hand goes without a loss, and the step is to be skipped."""
        self.reason, self._at_hand = reason, None
        self.samples += samples
