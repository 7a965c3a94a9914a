"""What is known, as a Measurement: absolute, one record for all nodes."""

from __future__ import annotations

import math

from antdt_schemas.records import Cause, Measurement, NodeClass, NodeMeasurement

from antdt_streams.monitor.core.detector import Detector
from antdt_streams.monitor.core.node import WORKER, Health, Track
from antdt_streams.monitor.core.pace import Pace, pace_now
from antdt_streams.monitor.core.rates import Rate, own_rate, scatter, shrunk
from antdt_streams.monitor.core.roster import Roster
from antdt_streams.monitor.core.windows import Windows

MANY = 4  # nodes, from which on their common mode is not one node's own


def measure(
    detector: Detector, roster: Roster, windows: Windows, window: int, cause: Cause, pace: Pace | None = None
) -> Measurement:
    """The members of the current generation as of `window`. pace: of that window; None: it is open, and this urgent."""
    members, urgent = list(roster.members(windows.generation)), pace is None
    pace = pace or pace_now(members, detector.options.rate_samples_min)
    rates = _rates(detector, members)
    nodes = tuple(
        _node(detector, track, roster.health[track.worker], rates[track.worker], window, pace) for track in members
    )
    persistent = any(node.node_class is NodeClass.PERSISTENT for node in nodes)
    return Measurement(
        cause=cause,
        window=window,
        urgent=urgent,
        generation=windows.generation,
        last_step=windows.newest_step if urgent else min(windows.newest_step, windows.end(window) - 1),
        plan=max((track.plan for track in members if track.role == WORKER), default=0),
        nodes=nodes,
        rotating=detector.rotation.rotates(detector.options.rotating_loss) and not persistent,
        structural=detector.structural,
        loss=detector.rotation.loss,
        first_offset=min(windows.open_offsets.values(), default=cause.offset),
        last_offset=cause.offset,
        strategy=roster.strategy,
        step_s=pace.step_s,
        samples_per_s=pace.samples_per_s,
    )


def _rates(detector: Detector, members: list[Track]) -> dict[str, Rate]:
    pools: dict[str, dict[str, Rate]] = {}
    noise = detector.noise.of_step
    if sum(track.role == WORKER for track in members) < MANY or not noise:
        # What two or three have in common is mostly what one of them does: their residuals look calm.
        noise = max(noise, scatter(members, detector.costs))
    for track in members:
        rate = own_rate(track, detector.costs, noise)
        pools.setdefault(track.pool, {})[track.worker] = rate
    out: dict[str, Rate] = {}
    for pool in sorted(pools):
        own = pools[pool]
        # The error stays that of a node's own samples: whoever asks what noise explains must not be told less.
        drawn = shrunk(own, detector.options).items()
        out.update((worker, Rate(rate.seconds_per_sample, own[worker].error)) for worker, rate in drawn)
    return out


def _node(detector: Detector, track: Track, health: Health, rate: Rate, window: int, pace: Pace) -> NodeMeasurement:
    persistent = health.node_class is NodeClass.PERSISTENT
    assert math.isfinite(health.severity), track.worker
    return NodeMeasurement(
        worker=track.worker,
        incarnation=track.incarnation,
        group=track.group,
        node_class=health.node_class,
        severity=health.severity,
        seconds_per_sample=rate.seconds_per_sample,
        rate_error=rate.error,
        fixed_s=detector.costs.of(track.pool),
        batch_size=track.plan_batch,
        persistent_windows=window - health.since_window + 1 if persistent else 0,
        rejected=track.rejected,
        batch_size_max=track.batch_size_max,
        role=track.role,
        stage=track.stage,
        busy=pace.busy.get(track.worker, 0.0),
    )
