"""The Controller's own options; a policy has its own."""

from __future__ import annotations

from dataclasses import dataclass

from antdt_schemas.errors import UsageError


@dataclass(frozen=True, slots=True)
class ControllerOptions:
    """A plan that is not in effect after both of these is no longer waited for."""

    patience_windows: int = 6
    patience_ms: int = 10_000
    proposals_max: int = 16
    """Decisions that one measurement may cause."""

    def __post_init__(self) -> None:
        if min(self.patience_windows, self.patience_ms, self.proposals_max) < 1:
            raise UsageError("patience_windows, patience_ms and proposals_max must be at least 1.")
