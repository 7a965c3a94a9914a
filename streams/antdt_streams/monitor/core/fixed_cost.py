"""The fixed seconds of a step, learned from changes of plan.

Two batch sizes of one node give a line; its intercept is the fixed cost. One line is noise, so the median over a pool
(group and hardware) counts, and nothing does before enough are known: until then a re-planned node must not be judged,
for a halved batch would look sick.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from antdt_streams.monitor.core.node import Health, Point, Sample, push
from antdt_streams.monitor.core.options import DetectorOptions

SLOPES = 31
POINTS = 3
BLIND_WINDOWS = 2


@dataclass(slots=True)
class FixedCosts:
    """Intercepts in seconds by pool."""

    options: DetectorOptions
    found: dict[str, list[float]] = field(default_factory=dict)
    _believed: dict[str, float] = field(default_factory=dict, init=False)

    def of(self, pool: str) -> float:
        """Fixed seconds a step of this pool, 0 while they are not known."""
        if self.options.fixed_s is not None:
            return self.options.fixed_s
        if pool not in self._believed:
            found = self.found.get(pool, ())
            self._believed[pool] = median(found) if len(found) >= self.options.fixed_slopes else 0.0
        return self._believed[pool]

    def known(self, pool: str) -> bool:
        """Whether a change of plan can be told from a change of speed."""
        return self.options.fixed_s is not None or len(self.found.get(pool, ())) >= self.options.fixed_slopes

    def learn(self, pool: str, health: Health, samples: list[Sample]) -> None:
        """Take in one node's window; a change of its batch size starts a line, the window after it ends it."""
        here = Point(median(s.batch_size for s in samples), median(s.own_s for s in samples))
        threshold = self.options.fixed_change
        if health.points and abs(here.batch_size - health.points[-1].batch_size) > threshold * here.batch_size:
            health.before = Point(health.points[-1].batch_size, median(p.own_s for p in health.points))
            health.points.clear()
            health.blind = 0 if self.known(pool) else BLIND_WINDOWS
        elif health.before is not None and health.points:
            self._add(pool, health.before, here)
            health.before = None
        push(health.points, here, POINTS)

    def _add(self, pool: str, before: Point, here: Point) -> None:
        change = before.batch_size - here.batch_size
        if abs(change) <= self.options.fixed_change * before.batch_size:
            return
        fixed_s = here.own_s - here.batch_size * (before.own_s - here.own_s) / change
        # A line that falls, or that leaves nothing to the samples, is a change of speed and not one of plan.
        if fixed_s <= self.options.fixed_share_max * min(here.own_s, before.own_s):
            push(self.found.setdefault(pool, []), max(fixed_s, 0.0), SLOPES)
            self._believed.pop(pool, None)

    def less(self, own_s: float, fixed_s: float) -> float:
        """Own seconds that are left to the samples of a step."""
        return max(own_s - fixed_s, self.options.floor * own_s)
