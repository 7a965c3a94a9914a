"""Which window is open, and when it closes.

Windows number `window_steps` steps each, over all generations without a gap: a new generation (whose steps may begin
again further back) and a jump of everybody's steps move the anchor, never the numbers. Owns no measurements.

A record may hold many windows at once, so a node that has not sent yet is not late: it is waited for until more than
a quorum of the others *began a record* after the next window.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from antdt_streams.monitor.core.node import Track
from antdt_streams.monitor.core.options import DetectorOptions


@dataclass(slots=True)
class Windows:
    """The anchor (`generation`, `shift`) and the next window to close.

    Invariant: `next` never falls. `open_offsets` holds the first input offset of each open window: the evidence.
    progress: how many members of the generation have each `standing`, counted anew when the next window changes, else
    by differences.
    """

    options: DetectorOptions
    generation: int = -1
    shift: int = 0
    next: int = 0
    first: int = 0
    newest_step: int = -1
    begun: bool = False
    open_offsets: dict[int, int] = field(default_factory=dict)
    progress: list[int] = field(default_factory=lambda: [0, 0, 0, 0])

    def of(self, step: int) -> int:
        return step // self.options.window_steps + self.shift

    def anchor(self, generation: int, step: int) -> None:
        """Steps of `generation` are counted from here; what was open is dropped, and nothing closes until begun."""
        self.shift = self.next - step // self.options.window_steps
        self.begun = self.begun and generation == self.generation
        self.generation, self.first, self.newest_step = generation, self.next, -1
        self.open_offsets.clear()

    def standing(self, track: Track) -> tuple[bool, bool, bool, bool]:
        """Whether this node is live, has finished the next window, moved on past the one after, or is far beyond."""
        if track.generation != self.generation or track.last_step < 0:
            return False, False, False, False
        if self.of(track.last_step) < self.next - self.options.absent_windows:
            return False, False, False, False
        finished = self.of(track.last_step + 1) > self.next
        moved = self.of(track.record_first) > self.next + 1
        return True, finished, moved, self.of(track.record_first) > self.next + self.options.hold_windows

    def count(self, standing: tuple[bool, bool, bool, bool], sign: int) -> None:
        self.progress = [count + sign * here for count, here in zip(self.progress, standing, strict=True)]

    def recount(self, tracks: Iterable[Track]) -> None:
        """Count everybody, after the next window has changed."""
        self.progress = [0, 0, 0, 0]
        for track in tracks:
            self.count(self.standing(track), 1)

    def end(self, number: int) -> int:
        """The first step after a window."""
        return (number + 1 - self.shift) * self.options.window_steps

    @property
    def due(self) -> bool:
        live, finished, moved, far = self.progress
        if not self.begun or not live:
            return False
        if finished == live or moved > self.options.quorum * live:
            return True
        # Two of four that died together are no quorum for the others; one of many that runs away is none either.
        return 2 * far >= live

    def to_row(self) -> list[Any]:
        offsets = sorted(self.open_offsets.items())
        return [self.generation, self.shift, self.next, self.first, self.newest_step, self.begun, offsets]

    def load(self, row: Sequence[Any], tracks: Iterable[Track]) -> None:
        self.generation, self.shift, self.next, self.first, self.newest_step, self.begun, offsets = row
        self.open_offsets = dict(offsets)
        self.recount(tracks)
