"""Patterns of slowness for `bench.mitigation`, and what each costs at best. Pure.

A factor multiplies the time that a sample takes, or that a server takes for one worker's gradient. The ideal knows the
pattern: in each step it splits the global batch exactly for the factors of that step, waits for the slowest server's
part (`Served`), and pays what every step costs beside (`overhead_s`, as measured in the run without slowness under
equal batches). Where a node can be started again, the ideal does that at the onset if it pays.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from antdt_streams.policies.solver import solve_dd, solve_nd, step_s

WORKERS, SERVERS = 4, 2
ALLREDUCE = "allreduce"  # the one strategy without servers
SLOT_S = 3.0  # a transient burst lasts so long
BURST_SHARE = 0.12  # of all slots, of each worker
ONSET = 0.2  # of the run


@dataclass(frozen=True)
class Work:
    """What a run has to do. sample_s: seconds of a sample on a healthy worker; fixed_s: of a micro-batch; exchange_s:
    that a healthy server takes for one worker's gradient, 0 without servers. waits: whether all workers wait for each
    other.
    """

    steps: int
    batch_size: int
    sample_s: float
    fixed_s: float = 0.0
    restart_s: float = 5.0
    seed: int = 0
    exchange_s: float = 0.0
    waits: bool = True


Factor = Callable[[int, int, float, float, int], float]
"""(worker, number of its life, share of the run that is done, seconds since its start, seed) -> factor"""


@dataclass(frozen=True)
class Served:
    """What a pattern is with servers. factor: of a server, as of a worker. exchange_ms: asleep for one worker's
    gradient, of each server, so that they are what a step mostly waits for; sample_share: of the usual time of a
    sample.
    """

    factor: Factor
    exchange_ms: float = 40.0
    sample_share: float = 0.1


@dataclass(frozen=True)
class Pattern:
    """holds: samples of a micro-batch that each worker can hold; none: all. served: what becomes of it with servers;
    None: their time is what it is. servers: it needs some.
    """

    name: str
    factor: Factor
    holds: tuple[int, ...] = ()
    fixed_ms: float = 0.0
    heals: bool = False
    served: Served | None = None
    servers: bool = False

    def sample_ms(self, usual_ms: float, *, servers: bool) -> float:
        """What a sample takes on a healthy worker."""
        return usual_ms * (self.served.sample_share if servers and self.served else 1.0)

    def exchange_ms(self, *, servers: bool) -> float:
        """What a healthy server takes for one worker's gradient, asleep."""
        return self.served.exchange_ms if servers and self.served else 0.0


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


def _persistent_server(server: int, life: int, done: float, now_s: float, seed: int) -> float:
    """The one that is not the primary, as a worker: its next life is well."""
    return _persistent(5.0)(server, life, done, now_s, seed)


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
        Pattern("persistent-server", _none, heals=True, served=Served(_persistent_server), servers=True),
        Pattern("mixed", _mixed, heals=True, served=Served(_persistent_server)),
        Pattern("devices", _devices, holds=(24, 24, 12, 12), fixed_ms=20.0),
    )
}


def ideal_s(pattern: Pattern, work: Work, overhead_s: float) -> float:
    """Seconds of a run that knows the pattern."""
    plain = _clairvoyant(pattern, work, overhead_s, restarts=False)
    return min(plain, _clairvoyant(pattern, work, overhead_s, restarts=True)) if pattern.heals else plain


def _clairvoyant(pattern: Pattern, work: Work, overhead_s: float, *, restarts: bool) -> float:
    """A server that is started again stops everybody; a worker leaves its part to the others meanwhile."""
    now_s, away_until_s, life = 0.0, 0.0, 0
    for step in range(work.steps):
        done = step / work.steps
        if restarts and life == 0 and done >= ONSET:
            now_s += work.restart_s if work.exchange_s else 0.0
            life, away_until_s = 1, now_s + work.restart_s
        here = [w for w in range(WORKERS) if w != 1 or now_s >= away_until_s]
        factors = tuple(pattern.factor(w, life if w == 1 else 0, done, now_s, work.seed) for w in here)
        holds = tuple(pattern.holds[w] for w in here) if pattern.holds else ()
        trained_s = _best_s(work.batch_size, work.sample_s, work.fixed_s, factors, holds)
        served_s = _served_s(pattern, work, life, done, now_s)
        now_s += overhead_s + (trained_s + served_s if work.waits else max(trained_s, served_s))
    return now_s


def _served_s(pattern: Pattern, work: Work, life: int, done: float, now_s: float) -> float:
    """What the slowest server takes for the gradients of a step, one after the other."""
    if pattern.served is None or not work.exchange_s:
        return 0.0
    factors = [pattern.served.factor(s, life if s == 1 else 0, done, now_s, work.seed) for s in range(SERVERS)]
    return WORKERS * work.exchange_s * max(factors)


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
