"""Exact integer splits of a global batch that minimise the time of the slowest worker.

Giving each next sample to the worker that would finish it first is exact when the cost does not fall with the batch
size; a bisection on the finishing time hands out all but about one sample a worker at once, the greedy rule the rest.
O(n log n) after at most 60 halvings. Source of both problems: AntDT (arXiv 2404.09679), non-dedicated and dedicated.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

ACCUMULATION_MAX = 64
HALVINGS = 60

Cost = Callable[[int, int], float]
Guess = Callable[[int, float], float]


def minimise_slowest(
    total: int, cost: Cost, guess: Guess, least: Sequence[int], most: Sequence[int]
) -> list[int] | None:
    """Integers q with sum `total` and least <= q <= most that minimise the largest cost(i, q_i), or None.

    `cost(i, q)` must not fall with q; `guess(i, t)` is about the largest q that costs at most t, off by a few.
    """
    size = len(least)
    assert len(most) == size, (size, len(most))
    if sum(least) > total or sum(most) < total or any(a > b for a, b in zip(least, most, strict=True)):
        return None

    def within(time: float) -> list[int]:
        return [_largest(i, time, cost, guess, least[i], most[i]) for i in range(size)]

    low, high = 0.0, max((cost(i, most[i]) for i in range(size)), default=0.0)
    best = list(least)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        split = within(middle)
        rest = total - sum(split)
        if rest < 0:
            high = middle
            continue
        low, best = middle, split
        if rest <= size:
            break
    return _hand_out(total - sum(best), best, cost, most)


def _largest(i: int, time: float, cost: Cost, guess: Guess, least: int, most: int) -> int:
    """The largest allowed q that costs at most `time`, exact in floating point; `least` when there is none."""
    q = min(max(int(min(guess(i, time), most)), least), most)
    while q < most and cost(i, q + 1) <= time:
        q += 1
    while q > least and cost(i, q) > time:
        q -= 1
    return q


def _hand_out(rest: int, split: list[int], cost: Cost, most: Sequence[int]) -> list[int]:
    heap = [(cost(i, q + 1), i) for i, q in enumerate(split) if q < most[i]]
    heapq.heapify(heap)
    for _ in range(rest):
        _, i = heapq.heappop(heap)
        split[i] += 1
        if split[i] < most[i]:
            heapq.heappush(heap, (cost(i, split[i] + 1), i))
    return split


def solve_nd(
    total: int, seconds_per_sample: Sequence[float], fixed_s: Sequence[float], least: Sequence[int], most: Sequence[int]
) -> list[int] | None:
    """Non-dedicated cluster: batch sizes that minimise max(fixed_i + q_i * seconds_per_sample_i), or None."""

    def cost(i: int, q: int) -> float:
        return fixed_s[i] + q * seconds_per_sample[i]

    def guess(i: int, time: float) -> float:
        return (time - fixed_s[i]) / seconds_per_sample[i]

    return minimise_slowest(total, cost, guess, least, most)


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

    def cost(i: int, q: int) -> float:
        return fixed_s[i] * -(-q // micro_batch_max[i]) + q * seconds_per_sample[i]

    def guess(i: int, time: float) -> float:
        full_s = fixed_s[i] + micro_batch_max[i] * seconds_per_sample[i]
        batches = int(time / full_s)
        rest = (time - batches * full_s - fixed_s[i]) / seconds_per_sample[i]
        return batches * micro_batch_max[i] + max(rest, 0.0)

    most = [accumulation_max * size for size in micro_batch_max]
    split = minimise_slowest(total, cost, guess, [1] * len(most), most)
    if split is None:
        return None
    return [(q, -(-q // size)) for q, size in zip(split, micro_batch_max, strict=True)]


def step_s(batch_sizes: Sequence[int], seconds_per_sample: Sequence[float], fixed_s: Sequence[float]) -> float:
    """Predicted seconds of a step: those of its slowest worker, 0 without workers."""
    rows = zip(batch_sizes, seconds_per_sample, fixed_s, strict=True)
    return max((fixed + size * rate for size, rate, fixed in rows), default=0.0)
