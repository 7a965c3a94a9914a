"""Each node's own rate: seconds a sample, as it is now.

The median since the last change point, at most `rate_samples`; a jump starts it anew from its newest samples. Noise
is drawn in by empirical Bayes: a rate moves towards its group by the share of its spread that noise explains, unless
it is many standard errors away. (Measured on production traces: better than medians of fixed length; a forecast for
each node was worse than none.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from antdt_streams.monitor.core.fixed_cost import FixedCosts
from antdt_streams.monitor.core.node import Sample, Track, push
from antdt_streams.monitor.core.options import DetectorOptions

MAD_TO_SIGMA = 1.4826
MEDIAN_ERROR = 1.25  # standard error of a median over the one of a mean, normal noise


@dataclass(frozen=True, slots=True)
class Rate:
    """Seconds a sample, and the relative standard error of that."""

    seconds_per_sample: float
    error: float


UNKNOWN = Rate(math.nan, math.nan)


def values_of(track: Track, costs: FixedCosts) -> list[float]:
    """Seconds a sample in each step of the ring, the fixed cost taken off; kept until that cost is known better."""
    fixed_s = costs.of(track.pool)
    if track.values_fixed_s != fixed_s or len(track.values) != len(track.ring):
        track.values = [costs.less(s.own_s, fixed_s) / s.batch_size for s in track.ring]
        track.values_fixed_s = fixed_s
    return track.values


def add_sample(track: Track, sample: Sample, costs: FixedCosts, noise: float) -> bool:
    """Take in one step; says whether the rate jumped, which forgets what came before."""
    options = costs.options
    values = values_of(track, costs)
    push(track.ring, sample, options.rate_samples)
    push(values, costs.less(sample.own_s, track.values_fixed_s) / sample.batch_size, options.rate_samples)
    least = options.rate_samples_min
    if len(values) < 2 * least:
        return False
    change = abs(math.log(median(values[-least:]) / median(values[:-least])))
    if change < max(math.log1p(options.jump), options.jump_errors * noise / math.sqrt(least)):
        return False
    del track.ring[:-least], values[:-least]
    return True


def own_rate(track: Track, costs: FixedCosts, noise: float) -> Rate:
    """The rate of one node by itself, UNKNOWN before it has enough samples."""
    if len(track.ring) < costs.options.rate_samples_min:
        return UNKNOWN
    values = values_of(track, costs)
    return Rate(median(values), MEDIAN_ERROR * noise / math.sqrt(len(values)))


def shrunk(rates: dict[str, Rate], options: DetectorOptions) -> dict[str, Rate]:
    """The rates of one pool, each drawn towards the others as far as noise explains its distance."""
    known = {worker: rate for worker, rate in rates.items() if not math.isnan(rate.seconds_per_sample)}
    if len(known) < 3:
        return rates
    logs = {worker: math.log(rate.seconds_per_sample) for worker, rate in known.items()}
    centre = median(logs.values())
    near = [w for w in known if abs(logs[w] - centre) <= options.shrink_errors * known[w].error]
    if len(near) < 3:
        return rates
    centre = math.fsum(logs[w] for w in near) / len(near)
    spread = math.fsum((logs[w] - centre) ** 2 for w in near) / (len(near) - 1)
    between = max(spread - math.fsum(known[w].error ** 2 for w in near) / len(near), 0.0)
    out = dict(rates)
    for w in near:
        variance = known[w].error ** 2
        if variance > 0.0:
            keep = between / (between + variance)
            out[w] = Rate(math.exp(centre + keep * (logs[w] - centre)), math.sqrt(keep * variance))
    return out


def scatter(tracks: Iterable[Track], costs: FixedCosts) -> float:
    """Relative standard deviation of one step, from what nodes have shown so far: the median over nodes, 0 while
    nobody has shown enough. What all have in common is in it, so the noise of windows is better once it is known.
    """
    found = []
    for track in tracks:
        values = values_of(track, costs)
        if len(values) >= costs.options.rate_samples_min:
            middle, correction = median(values), math.sqrt(len(values) / max(len(values) - 1.5, 1.0))
            found.append(MAD_TO_SIGMA * median(abs(math.log(x / middle)) for x in values) * correction)
    return median(found) if found else 0.0
