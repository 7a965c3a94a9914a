"""The files of a process that trains alone: none. Its model is the script's own, and in its hands when the loop ends.

Owns that whatever asks for a file is answered as if there were one. Must not know who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from antdt_schemas import records

from antdt.strategies.base import Model
from antdt.worker.session import Session


class NoFiles:
    """As `ModelFiles`, of which it has what a life of one worker uses."""

    def __init__(self, strategy: Model) -> None:
        self.strategy, self.run_id, self.folder = strategy, "", Path()
        self.written_step, self.written_name = -1, ""
        self.owes, self.may_try = False, True

    def restore(self, grant: records.Grant, rank: int) -> None:
        """The model is the one that the script has made."""

    def size_bytes(self, grant: records.Grant) -> int:
        """There is no file."""
        return 0

    @property
    def owes_init(self) -> bool:
        """Nobody goes back to the model before any step."""
        return False

    def retry_init(self) -> None:
        """Nobody goes back."""

    def write(self, session: Session, random: Sequence[bytes], patience_s: float = 0.0) -> records.Checkpoint:
        """The model stays where it is. Raises NotFinite for one that nobody should go on with."""
        self.strategy.check_finite()
        self.written_step = self.strategy.step_number
        return records.Checkpoint(session.generation, self.written_step, self.strategy.lineage, "none")

    def prune(self, session: Session) -> None:
        """Nothing is there."""

    def last_good(self, session: Session) -> str:
        """Which checkpoint there is."""
        return "there is none"

    def take_final(self, file: str) -> str:
        """The model is the one at hand."""
        return ""
