"""How fast all go on in a window: what policies are measured by.

A step's seconds are those of its worker, all waiting included, so under a barrier every worker says the same. Medians,
so that a pause of everybody (a checkpoint, an evaluation) is not read as slowness. Pure functions of a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from antdt_streams.monitor.core.baselines import Window
from antdt_streams.monitor.core.node import WORKER, Sample, Track


@dataclass(frozen=True, slots=True)
class Pace:
    """step_s: seconds of a step. samples_per_s: of all workers together. Both 0 while not known. busy: by node, the
    share of its time that was its own work.
    """

    step_s: float = 0.0
    samples_per_s: float = 0.0
    busy: Mapping[str, float] = field(default_factory=dict)


def pace_of(window: Window, tracks: Mapping[str, Track]) -> Pace:
    """The pace of a closed window."""
    return _pace(window.samples, tracks)


def pace_now(members: Iterable[Track], samples: int) -> Pace:
    """The pace of the newest samples, so many of each node: where a rate has jumped, those behind the jump."""
    tracks = {track.worker: track for track in members}
    return _pace({w: track.ring[-samples:] for w, track in tracks.items() if track.ring}, tracks)


def _pace(found: Mapping[str, Sequence[Sample]], tracks: Mapping[str, Track]) -> Pace:
    walls, rates, busy = [], [], {}
    for worker, samples in found.items():
        wall_s = median(sample.wall_s for sample in samples)
        if wall_s <= 0.0:
            continue
        own_s = median(sample.own_s * (sample.taken / sample.batch_size) for sample in samples)
        busy[worker] = min(own_s / wall_s, 1.0)
        if tracks[worker].role == WORKER:
            walls.append(wall_s)
            rates.append(median(sample.taken for sample in samples) / wall_s)
    return Pace(median(walls), math.fsum(rates), busy) if walls else Pace(busy=busy)
