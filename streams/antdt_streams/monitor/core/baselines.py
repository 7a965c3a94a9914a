"""One window against everybody's baselines: what nodes of a role share is taken out, the rest is each node's own.

All values are logarithms of seconds a sample. The common mode of a step is the median over nodes of the *change* from
their baselines: checkpoints, evaluation and warm-up vanish in it. A median of levels would flip as soon as half of the
nodes are a slower class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median

from antdt_streams.monitor.core.fixed_cost import FixedCosts
from antdt_streams.monitor.core.node import SERVER, Health, Sample, Track, push
from antdt_streams.monitor.core.rates import MAD_TO_SIGMA, MEDIAN_ERROR


@dataclass(slots=True)
class Window:
    """The samples of one window, by node, in the order of worker names."""

    number: int
    samples: dict[str, list[Sample]]


@dataclass(slots=True)
class Residuals:
    """What a window says about each node: `each` a residual a sample, `middle` their median, `level` with baseline."""

    each: dict[str, list[float]] = field(default_factory=dict)
    middle: dict[str, float] = field(default_factory=dict)
    level: dict[str, float] = field(default_factory=dict)
    by_step: dict[int, dict[str, float]] = field(default_factory=dict)


def residuals(window: Window, tracks: dict[str, Track], health: dict[str, Health], costs: FixedCosts) -> Residuals:
    """Measure a window against the baselines; nodes without one get a provisional one first."""
    values = {w: _logs(samples, tracks[w], health[w], costs) for w, samples in window.samples.items()}
    _first_baselines(window, values, tracks, health, costs)
    by_step: dict[int, dict[str, float]] = {}
    for worker, samples in window.samples.items():
        base = health[worker].base
        assert base is not None
        for sample, value in zip(samples, values[worker], strict=True):
            by_step.setdefault(sample.step, {})[worker] = value - base
    out = Residuals()
    for step in sorted(by_step):
        out.by_step[step] = _without_common(by_step[step], tracks)
    for worker, samples in window.samples.items():
        each = [out.by_step[s.step][worker] for s in samples]
        out.each[worker], out.middle[worker] = each, median(each)
        out.level[worker] = (health[worker].base or 0.0) + out.middle[worker]
    return out


def _without_common(changes: dict[str, float], tracks: dict[str, Track]) -> dict[str, float]:
    """What is left of each node's change. Of two servers the calmer one says what they have in common: a job often has
    no more, and one of them is to be seen.
    """
    out: dict[str, float] = {}
    for role in sorted({tracks[w].role for w in changes}):
        mine = {w: change for w, change in changes.items() if tracks[w].role == role}
        common = min(mine.values()) if role == SERVER and len(mine) == 2 else median(mine.values())
        out.update((w, change - common) for w, change in mine.items())
    return out


def _logs(samples: list[Sample], track: Track, health: Health, costs: FixedCosts) -> list[float]:
    """Logarithms of seconds a sample; a baseline follows when the fixed cost becomes better known."""
    fixed_s = costs.of(track.pool)
    if health.base is not None and fixed_s != health.base_fixed_s:
        old = costs.less(health.base_s, health.base_fixed_s)
        health.base += math.log(costs.less(health.base_s, fixed_s) / old)
    health.base_fixed_s = fixed_s
    return [math.log(costs.less(s.own_s, fixed_s) / s.batch_size) for s in samples]


def _first_baselines(
    window: Window,
    values: dict[str, list[float]],
    tracks: dict[str, Track],
    health: dict[str, Health],
    costs: FixedCosts,
) -> None:
    offsets: dict[str, list[float]] = {}
    for worker, logs in values.items():
        if (base := health[worker].base) is not None:
            offsets.setdefault(tracks[worker].role, []).append(median(logs) - base)
    for worker, logs in values.items():
        node, known = health[worker], offsets.get(tracks[worker].role)
        offset = median(known) if known else 0.0
        if node.base is None:
            node.base = median(logs) - offset
            node.base_s = median(s.own_s for s in window.samples[worker])
            node.base_fixed_s = costs.of(tracks[worker].pool)


@dataclass(slots=True)
class Noise:
    """Relative standard deviation of one step of one node, pooled over nodes: the median of the last windows."""

    windows: int
    steps: int
    recent: list[float] = field(default_factory=list)

    def add(self, found: Residuals) -> None:
        off = [abs(x - found.middle[w]) for w, each in found.each.items() if len(each) > 2 for x in each]
        if off:
            # So few samples lie nearer to their own median than to the true one: the factor was fitted.
            correction = math.sqrt(self.steps / max(self.steps - 1.5, 1.0))
            push(self.recent, MAD_TO_SIGMA * median(off) * correction, self.windows)

    @property
    def of_step(self) -> float:
        """Relative standard deviation of one step, 0 while unknown."""
        return median(self.recent) if self.recent else 0.0

    @property
    def of_window(self) -> float:
        """Standard error of a window's median."""
        return MEDIAN_ERROR * self.of_step / math.sqrt(self.steps)
