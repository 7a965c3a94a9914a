"""From residuals to classes: transient, persistent, deterministic, leader.

A window of a node is *flagged* by onset (slower than its own baseline, and than its class) or solo (the one slowest of
its group). Flags in most windows of the last long one make a node persistent; slow samples within one window make it
transient; a slower hardware class is nobody's sickness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median, median_low

from antdt_schemas.records import NodeClass

from antdt_streams.monitor.core.baselines import Noise, Residuals
from antdt_streams.monitor.core.node import WORKER, Health, Track, push
from antdt_streams.monitor.core.options import DetectorOptions

CLEAR_FLAGS = 1


@dataclass(slots=True)
class Peers:
    """Who a node is compared with: its hardware class, the two slowest of its pool, the fastest base of its group."""

    members: dict[str, list[str]] = field(default_factory=dict)
    class_level: dict[str, float] = field(default_factory=dict)
    slowest: dict[str, list[float]] = field(default_factory=dict)
    group_base: dict[str, float] = field(default_factory=dict)


def peers(found: Residuals, tracks: dict[str, Track], health: dict[str, Health], options: DetectorOptions) -> Peers:
    """Cut the sorted baselines of each pool (group and declared hardware) at gaps of `class_gap`."""
    out = Peers()
    pools: dict[str, list[str]] = {}
    for worker in found.level:
        pools.setdefault(tracks[worker].pool, []).append(worker)
    for pool, workers in pools.items():
        out.slowest[pool] = sorted(found.level[w] for w in workers)[-2:]
        for members in _cut(workers, health, math.log(options.class_gap)):
            level = median_low(found.level[w] for w in members)
            for worker in members:
                out.members[worker], out.class_level[worker] = members, level
    for worker in found.level:
        group, base = tracks[worker].group, health[worker].base
        assert base is not None
        out.group_base[group] = min(out.group_base.get(group, base), base)
    return out


def _cut(workers: list[str], health: dict[str, Health], gap: float) -> list[list[str]]:
    classes: list[list[str]] = []
    previous = -math.inf
    for base, worker in sorted((health[w].base or 0.0, w) for w in workers):
        if base - previous >= gap:
            classes.append([])
        classes[-1].append(worker)
        previous = base
    return classes


@dataclass(slots=True)
class Judge:
    window: int
    found: Residuals
    peers: Peers
    noise: Noise
    options: DetectorOptions

    def judge(self, track: Track, node: Health) -> None:
        """Flag this window of a node and set its class, hardware classes excepted."""
        options = self.options
        each, middle = self.found.each[track.worker], self.found.middle[track.worker]
        if len(each) < min(2, options.window_steps):
            return
        if node.blind:
            node.blind -= 1
            return
        gap = self.gap(track)
        push(node.residuals, middle, options.long_windows)
        push(node.gaps, gap, options.long_windows)
        push(node.flags, self.onset(track, node) or gap >= self.solo_threshold, options.long_windows)
        node.severity = max(node.usual if node.settled else 0.0, median(node.gaps), 0.0)
        self.classify(node, sum(x >= math.log1p(options.burst) for x in each), len(each))
        self.settle(node)

    @property
    def onset_threshold(self) -> float:
        return max(math.log1p(self.options.onset), self.options.flag_errors * self.noise.of_window)

    @property
    def solo_threshold(self) -> float:
        # The difference of two medians has sqrt(2) times the error of one.
        return max(math.log1p(self.options.solo), self.options.flag_errors * math.sqrt(2) * self.noise.of_window)

    def gap(self, track: Track) -> float:
        """How much slower than the next slowest of its pool; negative for all but the slowest."""
        slowest = self.peers.slowest[track.pool]
        if len(slowest) < 2:
            return 0.0
        level = self.found.level[track.worker]
        return level - (slowest[0] if level >= slowest[-1] else slowest[-1])

    def onset(self, track: Track, node: Health) -> bool:
        """Slower than its own baseline, and not because its whole class is."""
        threshold = self.onset_threshold
        if not node.settled or self.found.middle[track.worker] < threshold:
            return False
        above = self.found.level[track.worker] - self.peers.class_level[track.worker]
        return len(self.peers.members[track.worker]) < 2 or above >= threshold / 2

    def classify(self, node: Health, slow_samples: int, samples: int) -> None:
        options, flags = self.options, sum(node.flags)
        if node.node_class is NodeClass.PERSISTENT:
            persistent = flags > CLEAR_FLAGS
        else:
            persistent = flags >= options.persistent_windows and node.flags[-1]
            if persistent:
                node.since_window = self.window - options.persistent_windows + 1
        if persistent:
            node.node_class = NodeClass.PERSISTENT
        elif slow_samples >= max(options.burst_samples, options.burst_share * samples):
            node.node_class = NodeClass.TRANSIENT
        else:
            node.node_class = NodeClass.HEALTHY

    def settle(self, node: Health) -> None:
        """The first full long window sets the baseline; later only a real improvement does."""
        if len(node.residuals) < self.options.long_windows:
            return
        usual = node.usual
        if not node.settled or usual <= -math.log1p(self.options.onset):
            assert node.base is not None
            node.base += usual
            node.base_s = node.points[-1].own_s
            node.residuals = [x - usual for x in node.residuals]
            node.settled = True


def hardware_classes(seen: Peers, tracks: dict[str, Track], health: dict[str, Health], class_gap: float) -> None:
    """Healthy nodes of a slower class of at least two (or a declared one) are deterministic; the fast side leads."""
    slower = math.log(class_gap)
    led: set[str] = set()
    for worker, members in seen.members.items():
        track, node = tracks[worker], health[worker]
        if len(members) < 2 and not track.hardware:
            continue
        if (health[members[0]].base or 0.0) - seen.group_base[track.group] >= slower:
            led.add(track.group)
            if node.node_class is NodeClass.HEALTHY:
                node.node_class = NodeClass.DETERMINISTIC
    for worker, members in seen.members.items():
        track, node = tracks[worker], health[worker]
        fast = (health[members[0]].base or 0.0) - seen.group_base[track.group] < slower
        if track.group in led and fast and node.node_class is NodeClass.HEALTHY:
            node.node_class = NodeClass.LEADER


def structural(found: Residuals, tracks: dict[str, Track], class_gap: float) -> tuple[str, ...]:
    """Stages of workers whose centre is slower than the centre of the groups by `class_gap`: never a sick node."""
    levels: dict[str, list[float]] = {}
    for worker, level in found.level.items():
        if tracks[worker].role != WORKER:
            continue
        levels.setdefault(tracks[worker].group, []).append(level)
    if len(levels) < 2:
        return ()
    centres = {group: median(values) for group, values in levels.items()}
    low = median_low(centres.values())
    return tuple(sorted(group for group, centre in centres.items() if centre - low >= math.log(class_gap)))


@dataclass(slots=True)
class Rotation:
    """What the slowest node of each step costs beyond what is expected of it, and which node that was."""

    steps: int
    losses: list[float] = field(default_factory=list)
    slowest: list[str] = field(default_factory=list)

    def add(self, found: Residuals, tracks: dict[str, Track], health: dict[str, Health]) -> None:
        """Take in a window; steps of fewer than four workers say nothing."""
        usual = {w: health[w].usual for w in found.level if tracks[w].role == WORKER}
        for step in sorted(found.by_step):
            mine = found.by_step[step].items()
            factors = {w: math.exp(min(x - usual[w], 3.0)) for w, x in mine if w in usual}
            if len(factors) >= 4:
                worst = max(factors, key=lambda w: (factors[w], w))
                push(self.losses, factors[worst] * len(factors) / math.fsum(factors.values()) - 1.0, self.steps)
                push(self.slowest, worst, self.steps)

    @property
    def loss(self) -> float:
        """Share of the step time that the slowest node costs, unexplained, median."""
        return median(self.losses) if self.losses else 0.0

    def rotates(self, threshold: float) -> bool:
        """Whether much is lost, by another node each time: then no batch size helps."""
        if not self.losses or self.loss < threshold:
            return False
        costly = [w for w, loss in zip(self.slowest, self.losses, strict=True) if loss >= threshold]
        counts = sorted((costly.count(w) for w in set(costly)), reverse=True)
        # Two nodes that fell ill together take turns, too: that is no rotation.
        return counts[0] < len(costly) / 2 and sum(counts[:2]) < 3 * len(costly) / 4
