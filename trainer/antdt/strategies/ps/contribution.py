"""What is known of a contribution besides its gradients. Must not know torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Contribution(NamedTuple):
    """What one worker has done in a round. See base.Said."""

    samples: int
    plan: int
    reference: int
    leaving: bool = False
    checkpoint: bool = False
    stopping: bool = False


@dataclass(slots=True)
class Factor:
    """Of learning rates, where this process has none of them: servers have, and the primary says it. See base.Rates."""

    factor: float = 1.0
    batch_factor: float = 1.0

    @property
    def total(self) -> float:
        """What they are multiplied by in all."""
        return self.factor * self.batch_factor
