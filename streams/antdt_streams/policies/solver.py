"""Exact integer splits of a global batch that minimise the time of the slowest worker.

Giving each next sample to the worker that would finish it first is exact when the cost does not fall with the batch
size; a bisection on the finishing time hands out all but a few samples at once, the greedy rule the rest. All workers
are one array, so 4,096 of them take some milliseconds. The one place of the policies that knows numpy, and only when
something is solved. Source of both problems: AntDT (arXiv 2404.09679), non-dedicated and dedicated.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

ACCUMULATION_MAX = 64
HALVINGS = 60
# Samples that are handed out one by one: a few, or one a worker where many are done at the same moment
REST, NARROW = 32, 12

Costs = Callable[[Any], Any]
"""int64 array of quotas (workers,) -> float64 array of seconds (workers,)."""
Cost = Callable[[int, int], float]
Guess = Callable[[float], Any]


def minimise_slowest(
    total: int, costs: Costs, cost: Cost, guess: Guess, least: Sequence[int], most: Sequence[int], start_s: float
) -> list[int] | None:
    """Integers q with sum `total` and least <= q <= most that minimise the largest cost(i, q_i), or None.

    `cost(i, q)` must not fall with q, and `costs` is the same of all workers at once, to the bit; `guess(t)` is about
    the largest q of each that costs at most t, off by a few; `start_s` is about the answer's cost.
    """
    import numpy as np

    assert len(most) == len(least), (len(least), len(most))
    low_q, high_q = np.asarray(least, np.int64), np.asarray(most, np.int64)
    if not low_q.size:
        return [] if total == 0 else None
    rest = total - int(low_q.sum())
    if rest < 0 or high_q.sum() < total or bool((low_q > high_q).any()):
        return None
    if rest <= REST:  # as at the end of the bisection
        return _hand_out(rest, low_q.tolist(), costs, cost, high_q)
    low, high = 0.0, float(costs(high_q).max())
    best, middle, stride = low_q, min(start_s, high), start_s / 64
    below = above = False  # what is known of the answer's cost: a bound
    for number in range(HALVINGS):
        split = _largest(middle, costs, guess, low_q, high_q)
        rest = total - int(split.sum())
        if rest < 0:
            high, above = middle, True
        else:
            low, best, below = middle, split, True
            if rest <= (REST if number < NARROW else low_q.size):
                break
        if below and above:
            middle = (low + high) / 2
        else:
            middle = min(low + stride, high) if below else max(high - stride, 0.0)
            stride *= 4
    return _hand_out(total - int(best.sum()), best.tolist(), costs, cost, high_q)


def _largest(time: float, costs: Costs, guess: Guess, least: Any, most: Any) -> Any:
    """The largest allowed q that costs at most `time`, exact in floating point; `least` when there is none."""
    import numpy as np

    q = np.clip(np.nan_to_num(guess(time)), least, most).astype(np.int64)
    while (up := (q < most) & (costs(q + 1) <= time)).any():
        q = q + up
    while (down := (q > least) & (costs(q) > time)).any():
        q = q - down
    return q


def _hand_out(rest: int, split: list[int], costs: Costs, cost: Cost, most: Any) -> list[int]:
    import numpy as np

    if not rest:
        return split
    limits, next_s = most.tolist(), costs(np.asarray(split, np.int64) + 1).tolist()
    heap = [(next_s[i], i) for i, q in enumerate(split) if q < limits[i]]
    heapq.heapify(heap)
    for _ in range(rest):
        _, i = heap[0]
        split[i] += 1
        if split[i] < limits[i]:
            heapq.heapreplace(heap, (cost(i, split[i] + 1), i))
        else:
            heapq.heappop(heap)
    return split


def solve_nd(
    total: int, seconds_per_sample: Sequence[float], fixed_s: Sequence[float], least: Sequence[int], most: Sequence[int]
) -> list[int] | None:
    """Non-dedicated cluster: batch sizes that minimise max(fixed_i + q_i * seconds_per_sample_i), or None."""
    import numpy as np

    rates, fixed = np.asarray(seconds_per_sample, np.float64), np.asarray(fixed_s, np.float64)
    return minimise_slowest(
        total,
        lambda q: fixed + q * rates,
        lambda i, q: fixed_s[i] + q * seconds_per_sample[i],
        lambda time: (time - fixed) / rates,
        least,
        most,
        _level(total, fixed, rates),
    )


def solve_dd(
    total: int,
    fixed_s: Sequence[float],
    seconds_per_sample: Sequence[float],
    micro_batch_max: Sequence[int],
    accumulation_max: int = ACCUMULATION_MAX,
) -> list[tuple[int, int]] | None:
    """Dedicated cluster: (quota, accumulation) of each worker that minimise the slowest device time, or None.

    A quota of q samples takes ceil(q / micro_batch_max_i) micro-batches of fixed_i seconds, and q times
    seconds_per_sample_i.
    """
    import numpy as np

    fixed, rates = np.asarray(fixed_s, np.float64), np.asarray(seconds_per_sample, np.float64)
    sizes = np.asarray(micro_batch_max, np.int64)

    def guess(time: float) -> Any:
        full_s = fixed + sizes * rates
        batches = np.floor(time / full_s)
        rest = (time - batches * full_s - fixed) / rates
        return batches * sizes + np.maximum(rest, 0.0)

    split = minimise_slowest(
        total,
        lambda q: fixed * -(-q // sizes) + q * rates,
        lambda i, q: fixed_s[i] * -(-q // micro_batch_max[i]) + q * seconds_per_sample[i],
        guess,
        [1] * len(micro_batch_max),
        [accumulation_max * size for size in micro_batch_max],
        _level(total, fixed, rates + fixed / sizes),
    )
    if split is None:
        return None
    return [(q, -(-q // size)) for q, size in zip(split, micro_batch_max, strict=True)]


def _level(total: int, fixed: Any, rates: Any) -> float:
    """Seconds at which all would end together, if samples could be cut and nobody had bounds."""
    return float((total + (fixed / rates).sum()) / (1.0 / rates).sum()) if rates.size else 0.0


def step_s(batch_sizes: Sequence[int], seconds_per_sample: Sequence[float], fixed_s: Sequence[float]) -> float:
    """Predicted seconds of a step: those of its slowest worker, 0 without workers."""
    rows = zip(batch_sizes, seconds_per_sample, fixed_s, strict=True)
    return max((fixed + size * rate for size, rate, fixed in rows), default=0.0)
