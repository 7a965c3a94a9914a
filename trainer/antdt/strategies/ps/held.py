"""What a worker of servers is asked for as any `Strategy` is, and has not: a model of its own, and steps that are made
together with others. Refused, with what to do instead, or nothing to be done.

Must not know what is pulled and pushed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from antdt_schemas.errors import UsageError

from antdt.strategies.ps.refusals import CALLED


class HeldByServers:
    """A part of ServedMember."""

    undivided = wants_undivided = False

    # -- steps that are made together

    def skip(self, samples: int, reason: str) -> None:
        """Refused."""
        raise UsageError(CALLED.format("skip(reason)", "use agent.step(loss, weight=0) for what shall not count"))

    def reduce(self) -> NoReturn:
        """Refused."""
        raise UsageError(CALLED.format("reduce()", "leave it out, or use AllReduce"))

    def update(self, optimizers: Sequence[Any]) -> bool:
        """Refused."""
        raise UsageError(CALLED.format("apply(optimizer)", "use agent.apply() and one optimizer, or AllReduce"))

    def stop(self) -> None:
        """Refused."""
        raise UsageError(CALLED.format("stop(reason)", "end the launch with SIGTERM, which leaves a checkpoint"))

    def exchange(
        self, value: torch.Tensor | None, *, inside: bool, between: bool = False, call: str = ""
    ) -> list[torch.Tensor | None]:
        """Refused."""
        raise UsageError(CALLED.format("all_reduce, gather, broadcast or barrier", "use AllReduce, or leave it out"))

    # -- a model

    def verify(self) -> None:
        """There is no other replica to compare with."""

    def load_back(self) -> None:
        """This worker writes no file of the model."""

    def drop_pending(self, up_to_step: int) -> None:
        """Nothing is pending here."""

    def check_finite(self) -> None:
        """Servers look at what they save."""

    def holds(self, path: Path) -> bool:
        """Servers hold the model."""
        return False

    def gather_random(self) -> list[bytes]:
        """None is saved with the model."""
        return []

    def snapshot(self, random: Sequence[bytes] = (), labels: Mapping[str, str] | None = None) -> bytes:
        """Servers hold the model."""
        raise AssertionError("a worker of servers has no model to save")

    def save(self, out: Any, random: Sequence[bytes] = (), labels: Mapping[str, str] | None = None) -> None:
        """Servers hold the model."""
        raise AssertionError("a worker of servers has no model to save")

    def restore(self, data: Any, check: Callable[[Any], None] | None = None, of: str = "The state") -> None:
        """Servers hold the model."""
        raise AssertionError("a worker of servers restores nothing")
