"""The detector: everything that is done with a closed window, in order.

Owns what nodes have in common: fixed costs, noise, rotation. Knows nothing of records or of how windows close.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from antdt_streams.monitor.core.baselines import Noise, Window, residuals
from antdt_streams.monitor.core.classes import Judge, Rotation, hardware_classes, peers, structural
from antdt_streams.monitor.core.fixed_cost import FixedCosts
from antdt_streams.monitor.core.options import DetectorOptions
from antdt_streams.monitor.core.roster import HEALTH, Roster


class Detector:
    """What is remembered of all nodes together."""

    def __init__(self, options: DetectorOptions) -> None:
        self.options = options
        self.costs = FixedCosts(options)
        self.noise = Noise(options.long_windows, options.window_steps)
        self.rotation = Rotation(options.long_windows * options.window_steps)
        self.structural: tuple[str, ...] = ()

    def close(self, window: Window, roster: Roster) -> None:
        self._warm_up(window, roster)
        if not window.samples:
            return
        tracks, health = roster.tracks, roster.health
        found = residuals(window, tracks, health, self.costs)
        self.noise.add(found)
        self.rotation.add(found, tracks, health)
        seen = peers(found, tracks, health, self.options)
        judge = Judge(window.number, found, seen, self.noise, self.options)
        for worker, samples in window.samples.items():
            self.costs.learn(tracks[worker].pool, health[worker], samples)
            judge.judge(tracks[worker], health[worker])
            roster.touch(HEALTH, worker)
        hardware_classes(seen, tracks, health, self.options.class_gap)
        self.structural = structural(found, tracks, self.options.class_gap)

    def _warm_up(self, window: Window, roster: Roster) -> None:
        for worker in list(window.samples):
            if roster.health[worker].warm:
                roster.health[worker].warm -= 1
                del window.samples[worker]
                roster.touch(HEALTH, worker)

    def to_row(self) -> list[Any]:
        groups, found, rotation = list(self.structural), sorted(self.costs.found.items()), self.rotation
        return [self.noise.recent, rotation.losses, rotation.slowest, groups, found]

    def load(self, row: Sequence[Any]) -> None:
        self.noise.recent, self.rotation.losses, self.rotation.slowest, groups, found = row
        self.structural = tuple(groups)
        self.costs.found = dict(found)
