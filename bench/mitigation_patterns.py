"""Patterns of slowness for `bench.mitigation`, and what each costs at best. Pure.

A factor multiplies the time that a sample takes. The ideal knows the pattern: in each step it splits the global batch
exactly for the factors of that step, and pays what every step costs beside (`overhead_s`, as measured in the run
without slowness under equal batches). Where a node can be started again, the ideal does that at the onset if it pays.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from antdt_streams.policies.solver import solve_dd, solve_nd, step_s

WORKERS = 4
SLOT_S = 3.0  # a transient burst lasts so long
BURST_SHARE = 0.12  # of all slots, of each worker
ONSET = 0.2  # of the run


@dataclass(frozen=True)
class Work:
    """What a run has to do. sample_s: seconds of a sample on a healthy worker; fixed_s: of a micro-batch."""

    steps: int
    batch_size: int
    sample_s: float
    fixed_s: float = 0.0
    restart_s: float = 5.0
    seed: int = 0


Factor = Callable[[int, int, float, float, int], float]
"""(worker, number of its life, share of the run that is done, seconds since its start, seed) -> factor"""


@dataclass(frozen=True)
class Pattern:
    """holds: samples of a micro-batch that each worker can hold; none: all. servers: it needs some."""

    name: str
    factor: Factor
    holds: tuple[int, ...] = ()
    fixed_ms: float = 0.0
    heals: bool = False
    servers: bool = False


def _none(worker: int, life: int, done: float, now_s: float, seed: int) -> float:
    return 1.0


def _deterministic(factor: float) -> Factor:
    return lambda worker, life, done, now_s, seed: factor if worker == 1 else 1.0


def _transient(worker: int, life: int, done: float, now_s: float, seed: int) -> float:
    return 3.0 if _is_slow(worker, int(now_s / SLOT_S), seed) else 1.0


@cache
def _is_slow(worker: int, slot: int, seed: int) -> bool:
    return random.Random(f"{seed}/{worker}/{slot}").random() < BURST_SHARE


def _persistent(factor: float) -> Factor:
    """One worker, from a fifth of the run on; it is the machine's fault, so its next life is well."""
    return lambda worker, life, done, now_s, seed: factor if worker == 1 and life == 0 and done >= ONSET else 1.0


def _mixed(worker: int, life: int, done: float, now_s: float, seed: int) -> float:
    if worker == 1:
        return _persistent(3.0)(worker, life, done, now_s, seed)
    if worker == 2:
        return _transient(worker, life, done, now_s, seed)
    return 2.0 if worker == 3 else 1.0


def _devices(worker: int, life: int, done: float, now_s: float, seed: int) -> float:
    return 3.0 if worker >= WORKERS // 2 else 1.0


PATTERNS = {
    one.name: one
    for one in (
        Pattern("none", _none),
        *(Pattern(f"deterministic-{factor:g}", _deterministic(factor)) for factor in (1.5, 2.0, 3.0, 5.0)),
        Pattern("transient", _transient),
        Pattern("persistent", _persistent(3.0), heals=True),
        Pattern("persistent-server", _none, servers=True),
        Pattern("mixed", _mixed, heals=True),
        Pattern("devices", _devices, holds=(24, 24, 12, 12), fixed_ms=20.0),
    )
}


def ideal_s(pattern: Pattern, work: Work, overhead_s: float) -> float:
    """Seconds of a run that knows the pattern."""
    plain = _clairvoyant(pattern, work, overhead_s, restarts=False)
    return min(plain, _clairvoyant(pattern, work, overhead_s, restarts=True)) if pattern.heals else plain


def _clairvoyant(pattern: Pattern, work: Work, overhead_s: float, *, restarts: bool) -> float:
    now_s, away_until_s, life = 0.0, 0.0, 0
    for step in range(work.steps):
        done = step / work.steps
        if restarts and life == 0 and done >= ONSET:
            life, away_until_s = 1, now_s + work.restart_s
        here = [w for w in range(WORKERS) if w != 1 or now_s >= away_until_s]
        factors = tuple(pattern.factor(w, life if w == 1 else 0, done, now_s, work.seed) for w in here)
        holds = tuple(pattern.holds[w] for w in here) if pattern.holds else ()
        now_s += overhead_s + _best_s(work.batch_size, work.sample_s, work.fixed_s, factors, holds)
    return now_s


@cache
def _best_s(
    batch_size: int, sample_s: float, fixed_s: float, factors: tuple[float, ...], holds: tuple[int, ...]
) -> float:
    rates, fixed = [sample_s * factor for factor in factors], [fixed_s * factor for factor in factors]
    if holds:
        shares = solve_dd(batch_size, fixed, rates, list(holds))
        assert shares is not None
        rows = zip(shares, rates, fixed, strict=True)
        return max(count * each + quota * rate for (quota, count), rate, each in rows)
    split = solve_nd(batch_size, rates, fixed, [0] * len(rates), [batch_size] * len(rates))
    assert split is not None
    return step_s(split, rates, fixed)
