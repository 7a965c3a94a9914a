"""The solvers against brute force: exact, not nearly."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from time import process_time

import pytest
from antdt_streams.policies.solver import solve_dd, solve_nd, step_s
from hypothesis import given, settings
from hypothesis import strategies as st

positive = st.floats(1e-4, 10.0)
times = st.floats(0.0, 10.0)


def splits(total: int, least: Sequence[int], most: Sequence[int]) -> Iterator[list[int]]:
    """All splits within the bounds."""
    if len(least) == 1:
        if least[0] <= total <= most[0]:
            yield [total]
        return
    for first in range(least[0], min(most[0], total) + 1):
        for rest in splits(total - first, least[1:], most[1:]):
            yield [first, *rest]


@st.composite
def clusters(draw: st.DrawFn) -> tuple[int, list[float], list[float], list[int], list[int]]:
    size = draw(st.integers(1, 4))
    rates = draw(st.lists(positive, min_size=size, max_size=size))
    fixed_s = draw(st.lists(times, min_size=size, max_size=size))
    least = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    most = [a + draw(st.integers(0, 8)) for a in least]
    return draw(st.integers(0, 24)), rates, fixed_s, least, most


@given(clusters())
@settings(max_examples=600, deadline=None)
def test_nd_is_exact(cluster: tuple[int, list[float], list[float], list[int], list[int]]) -> None:
    total, rates, fixed_s, least, most = cluster
    found = solve_nd(total, rates, fixed_s, least, most)
    best = min((step_s(q, rates, fixed_s) for q in splits(total, least, most)), default=None)
    if found is None:
        assert best is None
        return
    assert sum(found) == total
    assert all(a <= q <= b for a, q, b in zip(least, found, most, strict=True))
    assert step_s(found, rates, fixed_s) == best


@given(
    st.integers(1, 20),
    st.lists(st.tuples(times, positive, st.integers(1, 6)), min_size=1, max_size=4),
    st.integers(1, 4),
)
@settings(max_examples=600, deadline=None)
def test_dd_is_exact(total: int, workers: list[tuple[float, float, int]], accumulation_max: int) -> None:
    fixed_s, rates, sizes = ([w[i] for w in workers] for i in range(3))

    def cost(split: Sequence[int]) -> float:
        return max(fixed_s[i] * -(-q // int(sizes[i])) + q * rates[i] for i, q in enumerate(split))

    most = [int(size) * accumulation_max for size in sizes]
    best = min((cost(q) for q in splits(total, [1] * len(most), most)), default=None)
    found = solve_dd(total, fixed_s, rates, [int(size) for size in sizes], accumulation_max)
    if found is None:
        assert best is None
        return
    assert sum(q for q, _ in found) == total
    assert all(1 <= c <= accumulation_max and (c - 1) * b < q <= c * b for (q, c), b in zip(found, sizes, strict=True))
    assert cost([q for q, _ in found]) == best


@given(st.integers(1, 4000), st.lists(positive, min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_nobody_could_take_one_sample_off_the_slowest(total: int, rates: list[float]) -> None:
    """Larger clusters than brute force can do: no exchange of one sample helps."""
    size = len(rates)
    found = solve_nd(total, rates, [0.0] * size, [0] * size, [total] * size)
    assert found is not None
    assert sum(found) == total
    slowest = max(q * rate for q, rate in zip(found, rates, strict=True))
    assert all((q + 1) * rate >= slowest for q, rate in zip(found, rates, strict=True))


@pytest.mark.parametrize("kind", ["spread", "equal", "two classes"])
def test_thousands_of_workers_take_milliseconds(kind: str) -> None:
    """4,096 workers, a global batch of 262,144: under 20 ms of processor time, the best of a few."""
    draw = random.Random(1)
    size, total = 4096, 262_144
    kinds = {"spread": [0.5 + 0.01 * i for i in range(200)], "equal": [1.0], "two classes": [1.0, 3.0]}
    rates = [1e-3 * draw.choice(kinds[kind]) for _ in range(size)]
    fixed_s, holds = [0.01] * size, [draw.choice([16, 32]) for _ in range(size)]

    def seconds(solve: Callable[[], object]) -> float:
        before_s = process_time()
        assert solve() is not None
        return process_time() - before_s

    assert min(seconds(lambda: solve_nd(total, rates, fixed_s, [1] * size, [total] * size)) for _ in range(3)) < 0.020
    assert min(seconds(lambda: solve_dd(total, fixed_s, rates, holds)) for _ in range(3)) < 0.020
