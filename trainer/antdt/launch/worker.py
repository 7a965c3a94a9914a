"""One worker or server of a launch: its place in it, and what it shares with its process."""

from __future__ import annotations

from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess

from antdt.host import stacks, whereabouts
from antdt.launch.output import Stream


@dataclass(slots=True)
class Worker:
    """Its process is replaced when it is started again; None where none runs. stacks: where that writes them."""

    rank: int
    local_rank: int
    name: str
    process: ForkProcess | None = None
    streams: tuple[Stream, Stream] | None = None
    page: whereabouts.Page = field(default_factory=whereabouts.shared)
    stacks: int = field(default_factory=stacks.memory)

    @property
    def pid(self) -> int:
        """0 where no process runs."""
        return (self.process.pid or 0) if self.process is not None else 0
